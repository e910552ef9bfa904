"""Codes of one type at the inputs and outputs of a program, in every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import InputError, PassError, UnsupportedError
from qcompiler.passes.external_types import ExternalTypes
from qcompiler.session.pipeline import model_as_it_is, parse_pipeline
from tests.support.processors import exact_options

TARGETS = ("int8_dsp", "tflite_int8", "pow2_mcu", "w4a8_npu", "ort_cpu", "cmsis_nn", "hexagon_htp")
TYPES: tuple[Literal["uint8", "int8"], ...] = ("uint8", "int8")


class Camera(nn.Module):
    """A network that normalizes the pixels that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.mean = nn.Buffer(torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1))
        self.std = nn.Buffer(torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.conv((x - self.mean) / self.std).relu()
        return self.head(features.mean((2, 3))), features.flatten(2)


class Twice(nn.Module):
    """An input that is returned, and read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"sum": self.a(x) + self.b(x), "y": torch.cat([y, y], 1)}


def network() -> nn.Module:
    torch.manual_seed(0)
    return Camera().eval()


def pixels() -> Tensor:
    """Bytes of a camera, [8, 3, 6, 6]."""
    return torch.randint(0, 256, (8, 3, 6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def compiled_for(target: str, io: Literal["float", "uint8", "int8"]) -> qcompiler.Compiled:
    x = pixels().float() / 255
    compiled = qcompiler.compile(network(), target, calibration_data=[x], effort="fast", io=io)
    assert compiled.verification is not None
    assert compiled.verification.passed
    return compiled


def onnx_session(compiled: qcompiler.Compiled) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(compiled.artifact.forms["ONNX"].files["model.onnx"], exact_options())


@pytest.mark.parametrize("io", TYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_all_forms_read_and_write_codes(target: str, io: Literal["uint8", "int8"]) -> None:
    compiled = compiled_for(target, io)
    program = compiled.artifact.program.program
    ends = [item for item in program.instructions if item.op in ("quantize", "dequantize")]
    dtypes = {program.tensors[item.output if item.op == "quantize" else item.inputs[0]].dtype for item in ends}
    assert dtypes == {{"uint8": "u8", "int8": "i8"}[io]}
    session = onnx_session(compiled)
    assert {item.type for item in (*session.get_inputs(), *session.get_outputs())} == {f"tensor({io})"}
    contract = json.loads(compiled.artifact.forms["C"].files["c/contract.json"])
    assert {end["type"] for end in (*contract["inputs"], *contract["outputs"])} == {f"{io}_t"}
    first = next(index for index, item in enumerate(program.instructions) if item.op == "int_conv2d")
    moved = {"quantize", "rescale", "slice", "pad", "concat"}
    assert {item.op for item in program.instructions[:first]} <= moved, "mean and std are part of the first layer"


def test_bytes_of_a_camera_are_codes_and_results_are_those_of_the_model() -> None:
    compiled, model = compiled_for("int8_dsp", "uint8"), network()
    scores, features = compiled.run_integer(pixels())
    assert scores.dtype == features.dtype == torch.uint8
    found = onnx_session(compiled).run(None, {"x": pixels().numpy()})
    for ours, theirs in zip((scores, features), found, strict=True):
        assert np.array_equal(ours.numpy(), theirs)
    program = compiled.artifact.program.program
    taken = [item for item in program.instructions if item.op == "dequantize"]
    grid = program.tensors[taken[0].inputs[0]]
    real = (scores.float() - grid.zero_point[0]) * grid.scale[0]
    expected = model(pixels().float() / 255)[0].detach()
    assert float((real - expected).abs().max()) < 0.05 * float(expected.abs().max())
    assert torch.equal(real, compiled.run(pixels().float() / 255)[0])  # type: ignore[index]


def test_a_folded_normalization_has_less_noise() -> None:
    x = pixels().float() / 255
    folded = compiled_for("int8_dsp", "uint8")
    passes = model_as_it_is(parse_pipeline(folded.artifact.pipeline))
    apart = qcompiler.compile(network(), calibration_data=[x], passes=passes)
    expected = network()(x)[1].detach()
    noise = [float((item.run(x)[1] - expected).square().sum()) for item in (folded, apart)]  # type: ignore[index]
    assert noise[0] < noise[1]


def test_only_the_type_changes() -> None:
    """Normal numbers are no pixels, so the codes are those of the calibrated range."""
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    every: tuple[Literal["float", "uint8", "int8"], ...] = ("float", *TYPES)
    runs = [qcompiler.compile(network(), calibration_data=[x], effort="fast", io=io).run(x) for io in every]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))  # type: ignore[call-overload]


@pytest.mark.parametrize("levels", [1.0, 255.0])
def test_pixels_have_their_own_grid(levels: float) -> None:
    x = pixels()[:, :, :2, :2].float().clamp(3, 200) / 255 * levels
    compiled = qcompiler.compile(nn.Conv2d(3, 4, 1).eval(), calibration_data=[x], io="uint8")
    program = compiled.artifact.program.program
    given = next(program.tensors[item.output] for item in program.instructions if item.op == "quantize")
    assert given.scale == (float(torch.tensor(levels / 255)),)
    assert given.zero_point == (0,)


@pytest.mark.parametrize(("value", "byte"), [(0.4, True), (1.5, False)])
def test_a_border_of_pixels_keeps_their_grid(value: float, byte: bool) -> None:
    x = pixels().float() / 255
    model = nn.Sequential(nn.ConstantPad2d(1, value), nn.Conv2d(3, 4, 3)).eval()
    compiled = qcompiler.compile(model, calibration_data=[x], effort="fast", io="uint8")
    program = compiled.artifact.program.program
    given = next(program.tensors[item.output] for item in program.instructions if item.op == "quantize")
    assert (given.scale == (float(torch.tensor(1 / 255)),)) is byte


@pytest.mark.parametrize("io", TYPES)
def test_inputs_that_several_read_and_outputs_that_are_inputs(io: Literal["uint8", "int8"]) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 6), torch.randn(4, 3)
    compiled = qcompiler.compile(Twice().eval(), example_inputs=(x, y), calibration_data=[(x, y)], io=io)
    assert compiled.verification is not None
    assert compiled.verification.passed
    assert {item.type for item in onnx_session(compiled).get_inputs()} == {f"tensor({io})"}


def test_what_has_no_such_codes_is_refused_by_name() -> None:
    x = torch.randn(4, 3, 6, 6)
    with pytest.raises(UnsupportedError, match=r"the input 'x' has no codes of uint8: it has 16 bits"):
        qcompiler.compile(network(), "int16x8", calibration_data=[x], io="uint8")
    target = qcompiler.load_target("int8_dsp").override(fallback="float")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Threshold(0.1, 0.0)).eval()
    with pytest.raises(UnsupportedError, match=r"the output .* has no codes of int8: it is computed in float"):
        qcompiler.compile(model, target, calibration_data=[x], io="int8")


def test_unknown_types_are_refused() -> None:
    with pytest.raises(InputError, match="io is 'int4'"):
        qcompiler.compile(network(), example_inputs=torch.randn(2, 3, 6, 6), io="int4")  # type: ignore[arg-type]
    with pytest.raises(PassError, match="the external type is 'int4'"):
        ExternalTypes("int4")  # type: ignore[arg-type]


def test_the_pass_is_part_of_the_recorded_pipeline() -> None:
    compiled = compiled_for("int8_dsp", "int8")
    assert ExternalTypes("int8") in parse_pipeline(compiled.artifact.pipeline)
    x = pixels().float() / 255
    again = qcompiler.compile(network(), calibration_data=[x], pipeline=compiled.artifact.pipeline)
    assert again.artifact.files() == compiled.artifact.files()


def test_a_loaded_artifact_keeps_its_types(tmp_path: Path) -> None:
    compiled = compiled_for("int8_dsp", "uint8")
    loaded = qcompiler.load(compiled.save(tmp_path / "out"))
    assert torch.equal(loaded.run_integer(pixels())[0], compiled.run_integer(pixels())[0])
