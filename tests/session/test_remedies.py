"""The remedies of diagnostics are typed as they are printed, run, and remove or lessen what was found."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import qcompiler
from qcompiler.cli import main
from qcompiler.ir.diagnostics import SUMMARY, Diagnostic
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.session.compile import Compiled
from qcompiler.session.pipeline import default_pipeline
from tests.session.test_quality import Net, compiled, images, problems


def typed(item: Diagnostic, target: object = "int8_dsp") -> tuple[object, dict[str, Any]]:
    """Target and arguments of the first remedy of a diagnostic, read from its sentence."""
    text = str(item)
    assert text.endswith(item.data["fix"])
    arguments: dict[str, Any] = {}
    if found := re.search(r"overrides=(\{.*?\})", item.data["fix"]):
        arguments["overrides"] = ast.literal_eval(found[1])
    elif found := re.search(r"target\.override\((\w+)=(\w+)\)", item.data["fix"]):
        target = qcompiler.load_target(str(target)).override(**{found[1]: ast.literal_eval(found[2])})
    elif found := re.search(r"effort='(\w+)'", item.data["fix"]):
        arguments["effort"] = found[1]
    assert arguments or not isinstance(target, str), text
    return target, arguments


def hidden_scores(x: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Scores that a wide neighbour rounds to one value."""
    both = torch.cat([second * 60, torch.sigmoid(first[:, :2, 1:-1, 1:-1])], 1)
    return {"map": second, "scores": both[:, 4:]}


@pytest.mark.parametrize("target", ["int8_dsp", "hexagon_htp"])
def test_the_remedy_of_a_constant_output(target: str) -> None:
    found = compiled(Net(hidden_scores), target)
    item = problems(found)["constant-output"]
    assert item.data["output"] == "output 1 (scores)"
    assert "test_remedies:" in item.where
    to, arguments = typed(item, target)
    again = problems(compiled(Net(hidden_scores), to, **arguments))
    assert "constant-output" not in again


def low_output(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first[:, :1, 1:-1, 1:-1] * 300, second], 1)[:, 1:]


def test_the_remedy_of_an_output_below_ten_decibels() -> None:
    before = problems(compiled(Net(low_output), "hexagon_htp"))["poor-output"]
    to, arguments = typed(before, "hexagon_htp")
    again = compiled(Net(low_output), to, **arguments)
    assert "poor-output" not in problems(again), "at least 10 dB"


def test_the_remedy_of_a_concat_that_cannot_be_wider() -> None:
    """The wish is refused with the remedy that names the operands; typed, it is granted."""

    def tail(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([second, first[:, :, 1:-1, 1:-1].sigmoid()], 1)[:, 1:]

    overrides = {"slice": 16}
    item = problems(compiled(Net(tail), "hexagon_htp", overrides=overrides))["refused-override"]
    to, arguments = typed(item, "hexagon_htp")
    again = problems(compiled(Net(tail), to, **arguments))
    assert "refused-override" not in again


def test_the_remedy_of_a_batch_norm_that_never_saw_data() -> None:
    model = Net(trained=False)
    item = problems(compiled(model))["untrained-batch-norm"]
    assert "run model.train() on data" in str(item)
    assert "test_quality:" in item.where
    model.train()(images())
    assert not problems(compiled(model.eval()))


def test_the_remedy_of_a_saturated_input() -> None:
    few = images()
    few[0, 0, 0, 0] = 1e5
    data = [few, *[images()] * 12]
    passes = [
        CalibrateActivations("percentile") if isinstance(item, CalibrateActivations) else item
        for item in default_pipeline()
    ]
    item = problems(compiled_and_compared(data, passes=passes))["clipped-input"]
    _, arguments = typed(item)
    assert "clipped-input" not in problems(compiled_and_compared(data, **arguments))


def compiled_and_compared(data: list[Tensor], **arguments: Any) -> Compiled:
    return qcompiler.compile(Net(), "int8_dsp", calibration_data=data, **arguments)


def test_the_remedy_of_a_first_batch_unlike_the_others() -> None:
    """The data in another order, as a loader with shuffle=True gives them."""
    data = torch.cat([images(20.0), *[images()] * 6])
    ordered = problems(compiled(Net(), calibration_data=list(data.split(8))))
    assert "shuffle=True" in str(ordered["unlike-calibration"])
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data),
        batch_size=8,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    shuffled = [batch for (batch,) in loader]
    assert "unlike-calibration" not in problems(compiled(Net(), calibration_data=shuffled))


def test_the_remedy_of_inputs_unlike_the_calibration() -> None:
    found = compiled(Net())
    (item,) = found.verify(images(0.02)).diagnostics
    assert "calibrate with inputs like these" in str(item)
    assert not compiled(Net(), calibration_data=[images(0.02)]).verify(images(0.02)).diagnostics


def test_the_remedy_of_an_operator_that_is_not_known_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compiled(Net(lambda x, first, second: second.sigmoid()), "cmsis_nn")
    item = problems(found)["unknown-operator"]
    assert "qcompiler compare" in str(item)
    x = images()
    folder = found.save(tmp_path / "out")
    # The device computes as the program does, so the comparison finds nothing.
    found.layer_outputs(x).save(tmp_path / "device.npz")
    assert main(["compare", str(tmp_path / "device.npz"), str(folder)]) == 0
    assert capsys.readouterr().out
    assert np.load(tmp_path / "device.npz")


def test_all_of_them_at_once_are_named_each_with_its_place() -> None:
    """One network with everything: no problem hides another."""

    def tail(x: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {**hidden_scores(x, first, second), "low": low_output(x, first, second), "sure": second.sigmoid()}

    model = Net(tail, trained=False)
    data = [images(20.0), *[images()] * 6]
    found = compiled(model, "hexagon_htp", calibration_data=data, overrides={"slice_1": 16})
    told = problems(found)
    wanted = {"constant-output", "poor-output", "refused-override", "untrained-batch-norm", "unlike-calibration"}
    assert wanted <= set(told)
    for item in found.diagnostics:
        if item.code not in SUMMARY:
            assert item.data["fix"] in str(item)
            assert item.where or item.code == "runtime", str(item)
