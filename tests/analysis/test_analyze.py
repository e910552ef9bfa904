"""`qcompiler.analyze` names the planted illness of a network first, and its remedy works."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import cli
from qcompiler.analysis.findings import Cause
from qcompiler.errors import InputError, UnsupportedError
from tests.analysis.illnesses import CASES, Case, batches, digits, trained

NAMED = 9
"""Illnesses of ten that have to be named first."""
QUICK = ("saturating_sigmoid", "untrained_batch_norms", "preprocessing")


@functools.cache
def analyzed(name: str) -> tuple[Case, qcompiler.Analysis]:
    case = CASES[name]()
    return case, qcompiler.analyze(case.model, case.target, case.data, case.evaluate, **case.options)  # type: ignore[arg-type]


def is_named(case: Case, found: qcompiler.Analysis) -> bool:
    first = found.findings[0] if found.findings else None
    return first is not None and first.cause is case.cause and first.layer in case.layers


def applied(case: Case, **remedy: Any) -> float:
    """Accuracy of a compile with the keywords of the analysis, of which some are replaced."""
    keywords = {"target": case.target, "calibration_data": case.data, **case.options, **remedy}
    compiled = qcompiler.compile(case.model, verify="off", **keywords)
    return case.evaluate(compiled.simulate)


@pytest.mark.parametrize("name", QUICK)
def test_the_illness_is_named_first_and_the_remedy_gives_what_it_promises(name: str) -> None:
    case, found = analyzed(name)
    assert is_named(case, found), str(found)
    first = found.findings[0]
    assert applied(case, **first.remedy) == pytest.approx(found.scores["quantized"] + first.predicted_gain)


@pytest.mark.slow
def test_nine_of_ten_illnesses_are_named_first() -> None:
    wrong = {name: str(analyzed(name)[1]) for name in CASES if not is_named(*analyzed(name))}
    assert len(CASES) - len(wrong) >= NAMED, "\n\n".join(f"{name}: {text}" for name, text in wrong.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_remedy_is_within_a_point_of_all_single_overrides_and_efforts(name: str) -> None:
    case, found = analyzed(name)
    with_remedy = applied(case, **found.findings[0].remedy)
    given: dict[str, object] = dict(case.options.get("overrides", {}))  # type: ignore[call-overload]
    best = max(applied(case, effort=effort) for effort in ("fast", "default", "best"))
    for layer in dict.fromkeys(part.layer for part in found.parts if part.layer != "x"):
        best = max(best, applied(case, overrides={**given, layer: 16}))
    assert with_remedy >= best - 1.0


def test_a_healthy_network_has_no_findings() -> None:
    model = trained()
    found = qcompiler.analyze(model, "int8_dsp", batches())
    assert found.metric == "SQNR"
    assert found.scores["quantized"] > 25
    assert all(item.cause is not Cause.CONCAT for item in found.findings)
    accuracy = Case(model, batches(), Cause.ROUNDING, ()).evaluate
    assert qcompiler.analyze(model, "int8_dsp", batches(), accuracy).findings == ()


def test_the_table_holds_every_quantizer_and_agrees_with_whole_runs() -> None:
    _, found = analyzed("saturating_sigmoid")
    names = {part.name for part in found.parts}
    assert {"x", "gate", "gate.weight", "sigmoid", "conv1.weight", "head"} <= names
    weights = [part for part in found.parts if part.kind == "weight"]
    assert sum(part.macs for part in weights) == pytest.approx(1.0)
    for kind in ("weight", "activation"):
        assert sum(part.bytes for part in found.parts if part.kind == kind) == pytest.approx(1.0)
    gate = next(part for part in found.parts if part.name == "gate")
    assert found.worst(1) == (gate,)
    assert gate.reach[1] == pytest.approx(4000, rel=0.01)
    assert sum(gate.histogram) > 1000
    # With the gate in float, the noise of all other parts is left, which the sum of their own noise approximates.
    others = sum(part.noise for part in found.parts if part is not gate)
    assert gate.without_db == pytest.approx(-10 * np.log10(others), abs=1.5)


def test_without_evaluate_the_gain_is_in_decibels_and_few_samples_change_little() -> None:
    case = CASES["saturating_sigmoid"]()
    found = qcompiler.analyze(case.model, case.target, case.data)
    assert is_named(case, found)
    assert found.findings[0].predicted_gain > 20
    small = qcompiler.analyze(case.model, case.target, case.data, memory=0, budget=4)
    assert [part.name for part in small.parts] == [part.name for part in found.parts]
    for part, other in zip(small.parts, found.parts, strict=True):
        assert part.alone_db == pytest.approx(other.alone_db, abs=0.01)
    assert small.evaluations <= 4


def test_wrong_preprocessing_is_found_without_evaluate_too() -> None:
    case = CASES["preprocessing"]()
    found = qcompiler.analyze(case.model, case.target, case.data)
    first = found.findings[0]
    assert (first.cause, first.layer) == (Cause.PREPROCESSING, "x")
    assert "norm1" in first.evidence


def test_two_calls_give_the_same_text_and_json() -> None:
    case, found = analyzed("saturating_sigmoid")
    again = qcompiler.analyze(case.model, case.target, case.data, case.evaluate)
    assert str(again) == str(found)
    text = json.dumps(found.to_dict())
    assert text == json.dumps(again.to_dict())
    assert json.loads(text)["findings"][0]["remedy"] == "overrides={'gate': {'activation_bits': 16}}"


def test_the_model_and_its_mode_are_left_alone() -> None:
    model = trained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    qcompiler.analyze(model, "int8_dsp", batches())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"calibration_data": None}, "needs calibration_data"),
        ({"samples": 0}, "samples is 0"),
        ({"budget": True}, "budget is True"),
        ({"evaluate": lambda model: "good"}, "evaluate returned"),
        ({"evaluate": lambda model: float("nan")}, "evaluate returned NaN"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    arguments = {"calibration_data": batches(), **options}
    with pytest.raises(InputError, match=words):
        qcompiler.analyze(trained(), "int8_dsp", **arguments)


def test_targets_of_simulation_and_prepared_models_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="simulation only"):
        qcompiler.analyze(trained(), "lsq_paper", batches())
    prepared = qcompiler.prepare_qat(trained(), "int8_dsp", calibration_data=batches())
    with pytest.raises(UnsupportedError, match="prepared for training"):
        qcompiler.analyze(prepared, "int8_dsp", batches())


def accuracy_of(model: nn.Module) -> float:
    outputs: Tensor = model(digits().test_images[:64])
    return float((outputs.argmax(1) == digits().test_labels[:64]).double().mean())


def healthy() -> nn.Module:
    return trained()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", digits().calibration_images[:64].numpy())
    here = "tests.analysis.test_analyze"
    command = ["analyze", f"{here}:healthy", "--calibration", str(tmp_path / "x.npy")]
    assert cli.main([*command, "--evaluate", f"{here}:accuracy_of"]) == 0
    text = capsys.readouterr().out
    assert "score of evaluate: float " in text
    assert "conv1.weight" in text
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "SQNR"
    assert cli.main([*command, "--evaluate", f"{here}:QUICK"]) == 1
    assert "cannot be read" in capsys.readouterr().err
