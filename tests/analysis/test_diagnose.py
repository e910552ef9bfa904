"""The flow chart of debugging: the order of the fixes, the score after each, and where the path ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import qcompiler
from qcompiler import cli
from qcompiler.errors import InputError
from tests.analysis.illnesses import CASES, digits
from tests.analysis.test_analyze import analyzed, applied


def titles(path: qcompiler.Diagnosis) -> list[str]:
    return [step.title for step in path.steps]


def test_a_path_for_activations_ends_with_the_layer() -> None:
    case, found = analyzed("saturating_sigmoid")
    path = found.diagnose()
    assert titles(path) == [
        "is the graph right without quantizers?",
        "weights or activations?",
        "fix activations",
        "ranges by min_max",
        "ranges by mse",
        "layer by layer",
        "16 bits for the activation of gate",
        "what remains?",
    ]
    assert "activations (only weights: " in path.steps[1].answer
    assert [step.kept for step in path.steps[3:5]] == [False, False]
    assert path.met
    assert path.remedy == {"overrides": {"gate": {"activation_bits": 16}}}
    assert path.start == found.scores["quantized"] < path.score
    assert applied(case, **path.remedy) == pytest.approx(path.score)
    assert "  ├─ + 16 bits for the activation of gate: overrides=" in str(path)


def test_nothing_is_tried_within_the_allowed_drop() -> None:
    _, found = analyzed("saturating_sigmoid")
    path = found.diagnose(allowed_drop=0.5)
    assert path.remedy == {}
    assert path.met
    assert "neither" in path.steps[1].answer
    assert titles(path)[-1] == "what remains?"
    with pytest.raises(InputError, match="allowed_drop is 1"):
        found.diagnose(1.0)


def test_a_score_that_is_low_without_quantizers_ends_the_path() -> None:
    calls: list[int] = []

    def evaluate(model: object) -> float:
        calls.append(1)
        return 1.0 if len(calls) == 1 else 0.0  # only the float model is good

    case = CASES["saturating_sigmoid"]()
    path = qcompiler.analyze(case.model, case.target, case.data, evaluate, budget=1).diagnose()
    assert titles(path) == ["is the graph right without quantizers?"]
    assert "does not come from quantization" in path.steps[0].answer
    assert not path.met


@pytest.mark.slow
def test_a_path_for_weights_begins_with_equalization() -> None:
    _, found = analyzed("depthwise")
    path = found.diagnose()
    assert titles(path)[2:4] == ["fix weights", "equalization"]
    assert path.met
    assert path.remedy == {"effort": "default"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", digits().calibration_images[:64].numpy())
    command = ["debug", "tests.analysis.test_analyze:healthy", "--calibration", str(tmp_path / "x.npy")]
    assert cli.main(command) == 0
    assert "weights or activations?" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["met"] is True
