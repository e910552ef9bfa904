"""`qcompiler.mixed_precision`: fronts whose points are measured, and overrides for every budget."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import qcompiler
from qcompiler import cli
from qcompiler.errors import InputError, TargetError, UnsupportedError
from tests.analysis.illnesses import Case, batches, digits, trained

HERE = "tests.analysis.test_mixed_precision"
ALL = ((8, 4), (8, 8), (16, 4), (16, 8))


def accuracy(model: nn.Module) -> float:
    outputs: Tensor = model(digits().test_images[::2])
    return float((outputs.argmax(1) == digits().test_labels[::2]).double().mean())


@functools.cache
def front() -> qcompiler.Front:
    return qcompiler.mixed_precision(trained(), "int8_dsp", batches(), evaluate=accuracy)


def compiled_with(overrides: Any) -> qcompiler.Compiled:
    return qcompiler.compile(trained(), "int8_dsp", calibration_data=batches(), overrides=overrides, verify="off")


def sqnr(compiled: qcompiler.Compiled) -> float:
    """Signal-to-noise ratio of the outputs of the integer program, dB."""
    images = batches()[0][:32]
    with torch.no_grad():
        wanted = trained()(images)
    found = compiled.run(images)
    assert isinstance(found, Tensor)
    return float(10 * torch.log10(wanted.square().sum() / (wanted - found).square().sum()))


def test_points_rise_in_cost_and_score_and_are_those_of_the_program() -> None:
    points = front().points
    assert 3 < len(points) <= 12
    for first, second in itertools.pairwise(points):
        assert first.cost < second.cost
        assert first.score is not None
        assert second.score is not None
        assert first.score < second.score
    for point in (points[0], points[len(points) // 2], points[-1]):
        compiled = compiled_with(point.overrides)
        assert sqnr(compiled) == pytest.approx(point.score, abs=0.01)
        assert point.accuracy == accuracy(compiled.simulate)  # type: ignore[arg-type]  # called like a model
        count = len(digits().test_images[::2])
        assert point.accuracy is not None
        error = math.sqrt(point.accuracy * (1 - point.accuracy) / count)
        assert point.accuracy_error == pytest.approx(error)


def test_brute_force_confirms_the_assignments() -> None:
    problem = front().problem
    every = list(itertools.product(*problem.noise))
    assert len(every) == 2**6  # three weights, three activations; the input has no choice
    for budget in np.geomspace(min(map(problem.cost, every)), max(map(problem.cost, every)), 9):
        widths = problem.best(budget * (1 + 1e-9))
        assert widths is not None
        within = [item for item in every if problem.cost(item) <= budget * (1 + 1e-9)]
        assert problem.expected(widths) == pytest.approx(min(map(problem.expected, within)), rel=1e-9)


def test_the_expected_noise_ranks_all_assignments_as_measured() -> None:
    problem = front().problem
    chosen = list(itertools.product(*problem.noise))[::9]
    measured = [sqnr(compiled_with(front().overrides(widths))) for widths in chosen]
    expected = [-problem.expected(widths) for widths in chosen]
    assert spearmanr(expected, measured).statistic > 0.85


def test_at_a_cost_and_at_a_score() -> None:
    found, points = front(), front().points
    for point in points:
        assert found.problem.cost(point.widths) == point.cost
        assert found.at(score=point.score) == point.overrides
        within = found.at(cost=point.cost)
        assert found.overrides(point.widths) == point.overrides
        assert isinstance(within, dict)
    middle = (points[0].cost + points[-1].cost) / 2
    compiled = compiled_with(found.at(cost=middle))
    assert sqnr(compiled) > (points[0].score or 0.0)
    best = max(point.accuracy for point in points if point.accuracy is not None)
    assert found.at(accuracy=best)
    with pytest.raises(InputError, match="no measured point has the score 200"):
        found.at(score=200.0)
    with pytest.raises(InputError, match="no assignment costs at most 1 bit operations"):
        found.at(cost=1.0)
    with pytest.raises(InputError, match="at has no argument"):
        found.at()
    with pytest.raises(InputError, match="at has cost and score"):
        found.at(cost=1.0, score=1.0)


def test_the_call_can_be_pasted() -> None:
    point = front().points[1]
    names = {
        "qcompiler": qcompiler,
        "model": trained(),
        "target": "int8_dsp",
        "calibration_data": batches(),
    }
    pasted = eval(front().call(point.overrides), names)  # noqa: S307  # text of our own
    assert sqnr(pasted) == pytest.approx(point.score, abs=0.01)


def test_two_calls_give_the_same_json_and_text() -> None:
    again = qcompiler.mixed_precision(trained(), "int8_dsp", batches(), evaluate=accuracy)
    assert json.dumps(again.to_dict()) == json.dumps(front().to_dict())
    assert str(again) == str(front())
    assert "rank correlation of expected and measured: " in str(again)
    assert "bit operations" in str(again)


def test_layers_of_overrides_and_inputs_keep_their_widths() -> None:
    given = {"conv1": {"weight_bits": 6, "activation_bits": 7}}
    found = qcompiler.mixed_precision(trained(), "int8_dsp", batches(), overrides=given, points=3)
    widths = {item.name: tuple(item.noise) for item in found.groups}
    assert (widths["x"], widths["conv1.weight"], widths["relu"]) == ((8,), (6,), (7,))
    assert widths["head.weight"] == (4, 8)
    assert all(point.overrides["conv1"] == given["conv1"] for point in found.measured)


def test_only_pairs_of_candidates_are_assigned() -> None:
    found = qcompiler.mixed_precision(trained(), "int8_dsp", batches(), [(8, 8), (16, 8)], points=4)
    assert {tuple(item.noise) for item in found.groups} == {(8,), (8, 16)}
    pairs = [(8, 4), (16, 8)]
    found = qcompiler.mixed_precision(trained(), "int8_dsp", batches(), pairs, points=4)
    names = [item.name for item in found.groups]
    for point in found.measured:
        width = dict(zip(names, point.widths, strict=True))
        assert (width["relu"], width["conv2.weight"]) in pairs
        assert (width["relu_1"], width["head.weight"]) in pairs


def test_an_evaluation_may_give_its_error() -> None:
    found = qcompiler.mixed_precision(
        trained(), "int8_dsp", batches(), evaluate=lambda model: (100 * accuracy(model), 1.5), points=2
    )
    assert all(point.accuracy_error == 1.5 for point in found.measured)
    assert all(point.accuracy is not None and point.accuracy > 50 for point in found.measured)
    found = qcompiler.mixed_precision(
        trained(), "int8_dsp", batches(), evaluate=lambda model: 100 * accuracy(model), points=2
    )
    assert all(point.accuracy_error is None for point in found.measured)


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = trained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    qcompiler.mixed_precision(model, "int8_dsp", batches(), points=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"calibration_data": None}, InputError, "needs calibration_data"),
        ({"cost": "money"}, InputError, "cost is 'money'"),
        ({"points": 1}, InputError, "points is 1"),
        ({"samples": 0}, InputError, "samples is 0"),
        ({"candidates": []}, InputError, "candidates is empty"),
        ({"candidates": [8]}, InputError, "a candidate is 8"),
        ({"candidates": [(8, 8, 8)]}, InputError, "a candidate is"),
        ({"candidates": [(9, 8)]}, TargetError, "no activations of 9 bits"),
        ({"candidates": [(8, 8)]}, InputError, "only one width"),
        ({"evaluate": lambda model: "good"}, InputError, "evaluate returned"),
        ({"target": "lsq_paper"}, UnsupportedError, "simulation only"),
        ({"cost": "cycles"}, TargetError, "has no cycles"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    arguments = {"target": "int8_dsp", "calibration_data": batches(), "points": 2, **options}
    with pytest.raises(kind, match=words):
        qcompiler.mixed_precision(trained(), **arguments)


def test_a_prepared_model_is_refused() -> None:
    prepared = qcompiler.prepare_qat(trained(), "int8_dsp", calibration_data=batches())
    with pytest.raises(UnsupportedError, match="prepared for training"):
        qcompiler.mixed_precision(prepared, "int8_dsp", batches())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", digits().calibration_images[:64].numpy())
    command = ["mixed-precision", "tests.analysis.test_analyze:healthy", "--calibration", str(tmp_path / "x.npy")]
    assert cli.main([*command, "--points", "3", "--evaluate", f"{HERE}:accuracy"]) == 0
    assert "points, cost in bit operations" in capsys.readouterr().out
    assert cli.main([*command, "--points", "3", "--cost", "bytes", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["unit"] == "bytes"
    cost = str(plain["points"][0]["cost"])
    arguments = ["--points", "2", "--cost", "bytes", "--candidate", "a8w8", "--candidate", "a16w8", "--at-cost", cost]
    assert cli.main([*command, *arguments]) == 0
    assert capsys.readouterr().out.startswith("qcompiler.compile(")
    assert cli.main([*command, "--candidate", "8x8"]) == 1
    assert "--candidate is '8x8'" in capsys.readouterr().err


def test_case_is_healthy() -> None:
    """So that the front is about widths and nothing else."""
    assert Case(trained(), batches(), None, ()).evaluate(trained()) > 95.0  # type: ignore[arg-type]


def test_the_page_has_every_point_and_group(tmp_path: Path) -> None:
    found = front()
    text = found.report(tmp_path / "front.html").read_text()
    assert found.report(tmp_path / "again.html").read_text() == text
    points = text.partition("<h2>Points</h2>")[2].partition("<h2>")[0]
    assert points.count("<tr>") == 1 + len(found.measured)
    assert points.count("<td>yes</td>") == len(found.points)
    groups = text.partition("<h2>Groups</h2>")[2]
    assert groups.count("<tr>") == 1 + len(found.groups)
    assert all(f"{point.score:.1f} dB" in points for point in found.measured if point.score is not None)
    assert '<g id="front">' in text
    assert 'class="verdict"' in found._repr_html_()
