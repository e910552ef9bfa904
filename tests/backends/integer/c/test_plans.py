"""The C computes correctly in shared places: views, results on their operands, outputs that are inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.integer import c
from qcompiler.backends.integer.memory import plan
from qcompiler.errors import UnsupportedError
from qcompiler.program.files import ProgramFiles
from tests.backends.integer.c.builds import SANITIZED, STRICT, codes_of, differing
from tests.backends.integer.programs import Builder, inputs_of, runnable
from tests.support.forms import c_of

LAYOUTS: tuple[Literal["NHWC", "NCHW"], ...] = ("NHWC", "NCHW")
CROSSING = [
    ((4, 17), (17, 4, 1)),
    ((4, 17, 1), (17, 4, 1)),
    ((2, 34), (17, 4, 1)),
    ((6, 4), (4, 6)),
    ((5, 3, 2), (3, 2, 5)),
]
"""Sizes before and after a reshape of which neither divides the other."""


@given(files=runnable(), batch=st.sampled_from((1, 3)), alignment=st.sampled_from((1, 16)))
@settings(max_examples=80)
def test_no_plan_contradicts_c(files: ProgramFiles, batch: int, alignment: int) -> None:
    """`emit` proves byte by byte that each instruction reads what was written for it."""
    try:
        c.emit(files, "model", plan(files.program, batch, alignment))
    except UnsupportedError as error:
        assert "quantizers with different grids" in str(error) or "read as real numbers" in str(error)  # noqa: PT017


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reshapes_of_sizes_that_cross(layout: Literal["NHWC", "NCHW"], tmp_path: Path) -> None:
    builder, outputs = Builder(layout), []
    for before, after in CROSSING:
        x = builder.input(before)
        table = builder.constant(np.arange(256).astype(np.int8), "i8")
        outputs.append(builder.add("reshape", [builder.add("lookup", [x, table], before, offset=-128)], after))
    files = builder.files(*outputs)
    inputs = inputs_of(files, 3)
    assert codes_of(files, inputs)
    assert not differing(files, inputs, tmp_path, ("-O0", *STRICT), 3, plan(files.program, 3))


class Function(nn.Module):
    """Nothing but what comes and goes, in codes: no layer makes them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.name == "relu":
            return torch.relu(x)
        if self.name == "relu6":
            return nn.functional.relu6(x)
        if self.name == "clamp":
            return x.clamp(-0.25, 0.75)
        if self.name == "two":
            return torch.relu(x), x.clamp(0, 1)
        if self.name == "movement":
            return x.reshape(-1, 17, 4, 1)
        return torch.relu(x).reshape(-1, 17, 4, 1)


TARGETS = ("int8_dsp", "ort_cpu", "openvino", "tflite_int8", "int16x8", "nvdla", "pow2_mcu", "hexagon_htp_a16w8")
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "relu": [(9,), (4, 3, 5, 5)], "relu6": [(9,), (2, 7)], "clamp": [(9,), (4, 3, 5)], "two": [(9,), (4, 3, 5, 5)],
    "movement": [(6, 4, 17), (6, 4, 17, 1)], "moved": [(6, 4, 17), (6, 2, 34)],
}  # fmt: skip
FAST = {("ort_cpu", "relu"), ("openvino", "movement"), ("int16x8", "clamp")}


@pytest.mark.parametrize(
    ("target", "name"),
    [
        pytest.param(target, name, marks=[] if (target, name) in FAST else pytest.mark.slow)
        for target in TARGETS
        for name in SHAPES
    ],
)
def test_models_without_a_layer(target: str, name: str) -> None:
    for shape in SHAPES[name]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 4
        for data in (x, x.abs()):  # without negative numbers a ReLU is taken in by the quantizer of the input
            compiled = qcompiler.compile(Function(name).eval(), target, calibration_data=[data])
            assert compiled.verification is not None
            form = compiled.verification.form("C")
            assert form.status == "equal" and form.elements, str(form)


def test_codes_that_are_input_and_output(tmp_path: Path) -> None:
    """A clamp that the quantizer of the input takes in leaves nothing but this quantizer."""
    x = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
    compiled = qcompiler.compile(Function("relu").eval(), "int8_dsp", calibration_data=[x], verify="off")
    assert [item.op for item in compiled.artifact.program.program.instructions] == ["quantize", "dequantize"]
    binary = c.Binary(c_of(compiled.artifact), tmp_path, cflags=("-O1", *STRICT, *SANITIZED))
    assert [end["quantized"] for end in (*binary.contract["inputs"], *binary.contract["outputs"])] == [True, False]
    (found,) = binary.run([x.numpy()], real=True).outputs
    assert np.array_equal(found, np.asarray(compiled.run(x)))
