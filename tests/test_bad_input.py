"""Mistakes of users: each case is an error of its own kind that says what, where and what to do, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import errors
from qcompiler.passes import Pass
from qcompiler.session.pipeline import default_pipeline

Options = dict[str, Any]


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)]
    return nn.Sequential(*layers).eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 6, 6)), generator=torch.Generator().manual_seed(0))


class Burnt(nn.Module):
    """Fixes its batch size while it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        traced = type(x) is torch.fx.Proxy  # type: ignore[comparison-overlap]
        return x.reshape(2, -1) if traced else x.flatten(1)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x.relu()
        return x


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no luck today")


class Reciprocal(nn.Module):
    """Without data the input may be 0, where the reciprocal has no value."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.reciprocal(x) * 2.0


class Plain(nn.Module):
    """Without a batch norm the range of the product is unknown."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * x


def on_meta() -> nn.Module:
    return net().to("meta")


def one_in_train_mode() -> nn.Module:
    model = net()
    model.get_submodule("1").train()
    return model


def wide() -> nn.Module:
    """Sums of 3 x 10^5 products at the ends of both grids do not fit 32 bits."""
    model = nn.Sequential(nn.Linear(200_000, 1, bias=False)).eval()
    nn.init.constant_(model[0].weight, 1.0)  # type: ignore[arg-type]
    return model


# The mistakes: the class, words of the message, the model, and the options of compile.
CASES: dict[str, tuple[type[Exception], list[str], Callable[[], object], Options]] = {
    "train mode": (errors.InputError, ["train mode", "model.eval()"], lambda: net().train(), {"example_inputs": images()}),
    "one module in train mode": (
        errors.InputError,
        ["train mode: 1", "model.eval()"],
        one_in_train_mode,
        {"example_inputs": images()},
    ),
    "no example inputs": (errors.InputError, ["no example inputs", "example_input_array", "example_inputs="], net, {}),
    "example of the wrong rank": (errors.InputError, ["does not run", "float32[2, 3]"], net, {"example_inputs": images(2, 3)}),
    "example with other channels": (errors.InputError, ["does not run", "0"], net, {"example_inputs": images(2, 4, 6, 6)}),
    "example of the wrong type": (errors.InputError, ["does not run", "float64"], net, {"example_inputs": images().double()}),
    "an array for an example": (errors.InputError, ["ndarray", "torch.as_tensor"], net, {"example_inputs": images().numpy()}),
    "an empty example": (errors.InputError, ["empty"], net, {"example_inputs": images(0, 3, 6, 6)}),
    "an example that is not finite": (
        errors.InputError,
        ["NaN", "finite"],
        net,
        {"example_inputs": torch.full((2, 3, 6, 6), torch.nan)},
    ),
    "too many arguments": (errors.InputError, ["do not fit", "forward"], net, {"example_inputs": (images(), images())}),
    "an argument of another name": (errors.InputError, ["do not fit"], TwoInputs, {"example_inputs": {"x": images(), "z": images()}}),
    "a model on the meta device": (errors.InputError, ["meta", "Load the weights"], on_meta, {"example_inputs": images()}),
    "a class for a model": (errors.InputError, ["the class Plain", "nn.Module"], lambda: Plain, {"example_inputs": images()}),
    "a function for a model": (errors.InputError, ["function"], lambda: torch.relu, {"example_inputs": images()}),
    "a path of no known kind": (errors.InputError, ["model.bin", ".pt2"], lambda: "model.bin", {}),
    "a path that is not there": (errors.InputError, ["no file", "missing.pt2"], lambda: "missing.pt2", {}),
    "an absent ONNX file": (errors.InputError, ["there is no file"], lambda: "model.onnx", {}),
    "a model of Keras": (errors.NotSupportedYetError, ["TensorFlow", "tf2onnx"], lambda: "model.keras", {}),
    "a forward that fails": (errors.InputError, ["no luck today"], lambda: Failing().eval(), {"example_inputs": images()}),
    "a branch on values": (
        errors.CaptureError,
        ["neither by torch.fx", "nor by torch.export", "if x.sum() > 0", "Branching.forward", "Rewrite this line"],
        lambda: Branching().eval(),
        {"example_inputs": images()},
    ),
    "an unknown function": (errors.UnsupportedError, ["cumsum", "Unknown.forward"], lambda: Unknown().eval(), {"example_inputs": images()}),
    "no data and no batch norm": (
        errors.PassError,
        ["after this: reciprocal has no finite mean or range for inputs around", "Reciprocal.forward", "calibration_data"],
        lambda: Reciprocal().eval(),
        {"example_inputs": images()},
    ),
    "no calibration batch": (errors.CalibrationError, ["empty", "one batch"], net, {"calibration_data": []}),
    "a tensor for the calibration data": (errors.InputError, ["Tensor", "[batch]"], net, {"calibration_data": images()}),
    "a number for the calibration data": (errors.InputError, ["int", "iterable"], net, {"calibration_data": 7}),
    "a batch of another shape": (
        errors.InputError,
        ["batch 1 of calibration_data", "dimension 2"],
        net,
        {"calibration_data": [images(), images(2, 3, 5, 5)]},
    ),
    "a batch with NaN": (
        errors.InputError,
        ["batch 1 of calibration_data", "NaN"],
        net,
        {"calibration_data": [images(), torch.full((2, 3, 6, 6), torch.nan)]},
    ),
    "forward= without data": (errors.InputError, ["forward="], net, {"forward": lambda m, b: m(b), "example_inputs": images()}),
    "forward= that does not call the model": (
        errors.InputError,
        ["did not call"],
        net,
        {"forward": lambda m, b: None, "calibration_data": [images()]},
    ),
    "an unknown target": (errors.TargetError, ["int8_dps", "Did you mean", "int8_dsp"], net, {"target": "int8_dps"}),
    "a target file that is not there": (errors.TargetError, ["nowhere.toml"], net, {"target": "nowhere.toml"}),
    "an override that matches nothing": (
        errors.InputError,
        ["matches no node", "'9'"],
        net,
        {"example_inputs": images(), "overrides": {"9": 16}},
    ),
    "an override to a width that is not there": (
        errors.TargetError,
        ["12 bits", "one of"],
        net,
        {"example_inputs": images(), "overrides": {"0": 12}},
    ),
    "an override that is no width": (
        errors.InputError,
        ["'wide'", "a number of bits"],
        net,
        {"example_inputs": images(), "overrides": {"0": "wide"}},
    ),
    "an override to float": (
        errors.UnsupportedError,
        ["an override selects float", 'override(fallback="float")'],
        net,
        {"example_inputs": images(), "overrides": {"0": "float"}},
    ),
    "an effort that is none": (errors.InputError, ["'great'", "fast"], net, {"effort": "great"}),
    "the best effort without data": (errors.InputError, ["effort='best'", "calibration_data"], net, {"effort": "best", "example_inputs": images()}),
    "a verify that is none": (errors.InputError, ["'maybe'", "warn"], net, {"verify": "maybe"}),
    "passes and a pipeline": (errors.InputError, ["both"], net, {"passes": [], "pipeline": "default"}),
    "an unknown pass": (errors.PipelineError, ["fold-batchnorm", "fold-batch-norm"], net, {"pipeline": "fold-batchnorm"}),
    "an unknown option": (
        errors.PipelineError,
        ["no option 'alfa'", "alpha"],
        net,
        {"pipeline": "calibrate-activations{alfa=3}"},
    ),
    "an option of the wrong type": (
        errors.PipelineError,
        ["alpha", "'six'"],
        net,
        {"pipeline": "calibrate-activations{alpha=six}"},
    ),
    "a pipeline that is no text of one": (errors.PipelineError, ["column 14", "name{option=value"], net, {"pipeline": "canonicalize, {"}),
    "an empty pipeline": (errors.PipelineError, ["empty"], net, {"pipeline": ""}),
    "a pipeline in the wrong order": (
        errors.PipelineError,
        ["calibrate-weights", "stage canonical", "position 2"],
        net,
        {"pipeline": "canonicalize, calibrate-weights", "example_inputs": images()},
    ),
    "a pipeline that stops early": (
        errors.PipelineError,
        ["ends at stage", "lower-to-integer"],
        net,
        {"pipeline": "canonicalize", "example_inputs": images()},
    ),
    "something that is no pass": (
        errors.PipelineError,
        ["is not a pass"],
        net,
        {"passes": [Pass], "example_inputs": images()},
    ),
    "a calibration method that is none": (
        errors.InputError,
        ["'entropie'", "min_max"],
        net,
        {"calibration_data": [images()], "pipeline": ", ".join(map(str, default_pipeline())).replace("calibrate-activations", "calibrate-activations{method=entropie}")},
    ),
    "an accumulator that overflows": (
        errors.UnsupportedError,
        ["the accumulator can reach", "32 bits", "fewer bits"],
        wide,
        {"calibration_data": [torch.ones(1, 200_000)]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_and_writes_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, words, make, options = CASES[case]
    monkeypatch.chdir(tmp_path)
    model = make()
    with pytest.raises(errors.QCompilerError) as caught:
        qcompiler.compile(model, output=tmp_path / "out", **options)  # type: ignore[arg-type]
    assert type(caught.value) is kind, caught.value
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert list(tmp_path.iterdir()) == []


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 25


def test_a_burnt_in_batch_size_is_found(tmp_path: Path) -> None:
    with pytest.raises(errors.CaptureError, match=r"differ on inputs of shape \[3, 3, 6, 6\].*\(Burnt\)"):
        qcompiler.compile(Burnt().eval(), example_inputs=images(), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", ["file", "folder"])
def test_what_is_not_ours_is_not_overwritten(existing: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    if existing == "folder":
        output.mkdir()
    (output / "thesis.tex" if existing == "folder" else output).write_text("years of work")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(errors.ArtifactError, match="exists and is not an artifact"):
        qcompiler.compile(net(), example_inputs=images(), output=output)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_inputs_of_a_compiled_model_are_checked() -> None:
    compiled = qcompiler.compile(net(), example_inputs=images())
    for run in (compiled.run, compiled.simulate, compiled.module(), compiled.verify):
        with pytest.raises(errors.InputError, match="have the structure"):
            run(images(), images())
        with pytest.raises(errors.InputError, match="shape"):
            run(images(2, 3, 6, 7))
    for run in (compiled.run, compiled.simulate, compiled.verify):
        with pytest.raises(errors.InputError, match="element type"):
            run(images().double())
    with pytest.raises(errors.InputError, match="element type"):
        compiled.module()(images().to(torch.int64))
    with pytest.raises(errors.InputError, match="no pass changed or refused"):
        compiled.explain("features.99")
