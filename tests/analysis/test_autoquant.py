"""`qcompiler.autoquant`: cheapest first, within the drop, always verified, and going on after an interruption."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import cli
from qcompiler.analysis.search_space import TECHNIQUES, Candidate, given_hardware
from qcompiler.errors import ArtifactError, InputError, TargetError, UnsupportedError
from qcompiler.passes.absorb_bias import AbsorbBias
from qcompiler.session.compile import compile_session
from qcompiler.storage.destination import Destination
from tests.analysis.illnesses import CASES, Case, batches, digits, trained

HERE = "tests.analysis.test_autoquant"


@functools.cache
def case() -> Case:
    """A network of which one layer needs 16 bits."""
    return CASES["saturating_sigmoid"]()


def search(evaluate: Callable[[nn.Module], float] | None = None, **options: Any) -> qcompiler.Search:
    return qcompiler.autoquant(case().model, case().target, case().data, evaluate or case().evaluate, **options)


@functools.cache
def found() -> qcompiler.Search:
    return search()


def saved(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_search_ends_with_the_first_candidate_within_the_drop() -> None:
    result = found()
    assert result.met
    assert result.wanted == pytest.approx(0.99 * result.whole)
    assert all(item.score is None or item.score < result.wanted for item in result.tried[:-1])
    assert result.tried[-1].score == result.score == case().evaluate(result.compiled.simulate)
    assert result.compiled.verification is not None
    assert result.compiled.verification.passed
    assert result.compiled.quantized.main.module is result.compiled.quantized
    assert (result.parts, result.training) == ({}, "")
    # The given target comes first, then other granularities, then other widths.
    hardware = list(dict.fromkeys(item.name.split(";")[0] for item in result.tried))
    assert hardware == ["given target", "a scale per channel", "a scale per channel, more bits for 1 layers"]
    assert "'gate': {'activation_bits': 16}" in result.call


def test_the_score_is_that_of_the_integer_program() -> None:
    images = digits().test_images[:64]
    wanted, simulated = (run(images) for run in (found().compiled.run, found().compiled.simulate))
    assert isinstance(wanted, Tensor)
    assert isinstance(simulated, Tensor)
    assert torch.equal(wanted, simulated)


def test_the_call_gives_the_same_codes() -> None:
    names = {"qcompiler": qcompiler, "model": case().model, "calibration_data": case().data}
    pasted = eval(found().call, names)  # noqa: S307  # text of our own
    assert pasted.artifact.files() == found().compiled.artifact.files()


def test_nothing_else_is_tried_if_the_default_is_enough() -> None:
    result = qcompiler.autoquant(trained(), "int8_dsp", batches(), Case(trained(), [], None, ()).evaluate)  # type: ignore[arg-type]
    assert [item.name for item in result.tried] == ["given target"]
    assert result.evaluations == 1
    assert result.call.splitlines() == [
        "qcompiler.compile(",
        "    model,",
        '    target=qcompiler.load_target("int8_dsp"),',
        "    calibration_data=calibration_data,",
        ")",
    ]


def test_a_drop_that_nothing_meets_gives_the_best_the_reason_and_a_training() -> None:
    result = search(allowed_drop=0.0, budget=3)
    assert not result.met
    assert result.evaluations == 3
    assert result.reason == "The budget (3 evaluations) is spent."
    assert result.score == max(item.score for item in result.tried if item.score is not None)
    assert result.parts["weights only"] > result.parts["activations only"]
    assert result.training.startswith("qat = qcompiler.prepare_qat(\n    model,\n    target=")
    assert "Float fake quantization of parts of it: weights only" in str(result)
    names = {"qcompiler": qcompiler, "model": case().model, "calibration_data": case().data}
    exec(result.training, names)  # noqa: S102  # text of our own
    assert isinstance(names["qat"], qcompiler.QATModule)


def test_the_same_graph_is_not_scored_twice() -> None:
    scored: list[nn.Module] = []

    def evaluate(model: nn.Module) -> float:
        scored.append(model)
        return case().evaluate(model)

    result = search(evaluate, budget=8, allowed_drop=0.0)
    same = [item for item in result.tried if item.same_as]
    # Of two parts, weights and activations, the score is asked for in addition, and of the float model.
    assert len(scored) == result.evaluations + 3 == 11
    assert same
    for item in same:
        assert item.score == next(other.score for other in result.tried if other.name == item.same_as)


class Killed(BaseException):
    """Ends a process at any place, for all that the search knows."""


def killed_after(calls: int) -> Callable[[nn.Module], float]:
    """An evaluation during which the process is killed."""
    done: list[int] = []

    def evaluate(model: nn.Module) -> float:
        done.append(1)
        if len(done) > calls:
            raise Killed
        return case().evaluate(model)

    return evaluate


def test_a_search_that_is_killed_ten_times_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = 0
    for round_ in range(10):
        with monkeypatch.context() as patch:
            if round_ in (1, 3):  # before and after the best artifact so far is replaced
                patch.setattr(Destination, "replace", killing(Destination.replace if round_ == 3 else None))
            with pytest.raises(Killed):  # during the first candidate that is not recorded, or the second one
                search(killed_after(1 + round_ % 2), output=tmp_path / "out")
        before, pieces = pieces, len(list((tmp_path / "out.work").rglob("*.safetensors")))
        assert pieces >= before + round_ % 2
        assert not (tmp_path / "out").exists() or qcompiler.load(tmp_path / "out").verify().passed
    assert (tmp_path / "out").exists()
    resumed = search(output=tmp_path / "out")
    assert resumed.to_dict() == found().to_dict()
    assert saved(tmp_path / "out") == found().compiled.artifact.files()
    assert not (tmp_path / "out.work").exists()


def killing(first: Callable[..., object] | None) -> Callable[..., object]:
    """A function that is killed, after `first`."""

    def function(*arguments: object) -> object:
        if first is not None:
            first(*arguments)
        raise Killed

    return function


def test_records_of_another_evaluation_are_not_used(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        search(killed_after(3), output=tmp_path / "out", budget=4)
    result = search(lambda model: case().evaluate(model) / 100.0, output=tmp_path / "out", budget=4)
    assert all(item.score is not None and item.score <= 1.0 for item in result.tried)


def test_a_candidate_that_fails_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise TargetError("no such bias")

    monkeypatch.setattr(AbsorbBias, "run", refuse)
    calls: list[int] = []

    def evaluate(model: nn.Module) -> float:
        calls.append(1)
        return float("nan") if len(calls) == 3 else case().evaluate(model)

    result = search(evaluate, budget=8, allowed_drop=0.0)
    failed = {item.name.split("; ")[-1]: item.error for item in result.tried if item.score is None}
    assert "evaluate returned NaN" in failed["weight ranges by mse"]
    assert failed["absorbed biases"].startswith("TargetError: no such bias")
    assert "failed: TargetError" in str(result)


def test_a_candidate_that_is_not_verified_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compile_session

    def distrust(session: Any) -> Any:
        if session.options.pipeline is not None:
            raise qcompiler.errors.VerificationError("a form differs")
        return whole(session)

    monkeypatch.setattr("qcompiler.analysis.autoquant.compile_session", distrust)
    result = search(budget=3, allowed_drop=0.0)
    better = result.tried[1]
    assert better.score is not None
    assert better.score > result.score == result.tried[0].score
    assert better.error == "VerificationError: a form differs"
    assert not better.best


def test_a_model_that_cannot_be_compiled_is_refused_as_by_compile(tmp_path: Path) -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(1).values

    with pytest.raises(UnsupportedError, match="sort"):
        qcompiler.autoquant(Sorted().eval(), "int8_dsp", batches(), lambda model: 1.0, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_time_as_budget_ends_after_the_running_candidate() -> None:
    result = search(budget="0.001 s", allowed_drop=0.0)  # the float model alone takes longer
    assert [item.name for item in result.tried] == ["given target"]
    assert result.reason == "The budget (1.66667e-05 min) is spent."


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration_data": None}, "needs calibration_data"),
        ({"evaluate": None}, "evaluate is None"),
        ({"evaluate": lambda model: "good"}, "evaluate returned"),
        ({"allowed_drop": 1.0}, r"allowed_drop is 1\.0"),
        ({"allowed_drop": True}, "allowed_drop is True"),
        ({"budget": 0}, "budget is 0 evaluations"),
        ({"budget": "soon"}, "budget is 'soon'"),
        ({"budget": 2.5}, r"budget is 2\.5"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    arguments = {"calibration_data": batches(), "evaluate": lambda model: 1.0, **options}
    with pytest.raises(InputError, match=words):
        qcompiler.autoquant(trained(), "int8_dsp", **arguments)


def test_targets_of_simulation_prepared_models_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="simulation only"):
        qcompiler.autoquant(trained(), "lsq_paper", batches(), lambda model: 1.0)
    prepared = qcompiler.prepare_qat(trained(), "int8_dsp", calibration_data=batches())
    with pytest.raises(UnsupportedError, match="prepared for training"):
        qcompiler.autoquant(prepared, "int8_dsp", batches(), lambda model: 1.0)
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"mine\.txt"):
        qcompiler.autoquant(trained(), "int8_dsp", batches(), lambda model: 1.0, output=tmp_path)


def test_techniques_of_one_kind_replace_each_other() -> None:
    plain = Candidate(given_hardware(qcompiler.load_target("int8_dsp"), {}))
    both = plain.with_technique("absorbed biases").with_technique("ranges by mse").with_technique("ranges by min_max")
    assert both.techniques == ("ranges by min_max", "absorbed biases")
    for name in TECHNIQUES:
        assert plain.with_technique(name).with_technique(name) == plain.with_technique(name)


def accuracy_of(model: nn.Module) -> float:
    outputs: Tensor = model(digits().test_images[:64])
    return float((outputs.argmax(1) == digits().test_labels[:64]).double().mean())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", digits().calibration_images[:64].numpy())
    command = ["autoquant", "tests.analysis.test_analyze:healthy", "--calibration", str(tmp_path / "x.npy")]
    output = ["--output", str(tmp_path / "out")]
    assert cli.main([*command, "--evaluate", f"{HERE}:accuracy_of", *output]) == 0
    text = capsys.readouterr().out
    assert "within the allowed drop" in text
    assert f"written to {tmp_path / 'out'}" in text
    assert qcompiler.load(tmp_path / "out").verify().passed
    arguments = ["--evaluate", f"{HERE}:accuracy_of", "--json", "--budget", "2"]
    assert cli.main([*command, *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["met"] is True
    assert cli.main([*command, "--evaluate", f"{HERE}:accuracy_of", "--budget", "soon"]) == 1
    assert "budget is 'soon'" in capsys.readouterr().err
    assert cli.main(command) == 2
    assert "--evaluate" in capsys.readouterr().err
