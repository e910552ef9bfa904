"""The verifier passes what is equal and names the first tensor of what is not: faults in the program and in the file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import qcompiler
from qcompiler.backends import onnx_qdq
from qcompiler.backends.base import Lowered
from qcompiler.backends.integer import emit
from qcompiler.backends.onnx_qdq.bounds import cancellation, narrow_multiplier, steepness
from qcompiler.ir.graph import Module
from qcompiler.passes.base import PassContext
from qcompiler.passes.manager import PassManager
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Instruction
from qcompiler.session.emission import emit_forms
from qcompiler.session.pipeline import default_pipeline, quantization_passes
from qcompiler.targets import load_target
from qcompiler.verification.forms import Forms, verify
from tests.backends.integer.test_executor import Mixed
from tests.passes.test_default_pipeline import capture
from tests.support.forms import onnx_form

TARGET = load_target("int8_dsp_per_channel")


@pytest.fixture(scope="module")
def forms() -> tuple[Module, Module, ProgramFiles]:
    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(4, 3, 33, 29)
    quantized = capture(model, x)
    context = PassContext(TARGET, calibration_data=[[x]])
    PassManager(quantization_passes()).run(quantized, context)
    integer = capture(model, x)
    PassManager(default_pipeline()).run(integer, context)
    return quantized, integer, emit(integer.main)


def inputs() -> list[torch.Tensor]:
    return [torch.randn(3, 3, 33, 29, generator=torch.Generator().manual_seed(1))]


def test_equal_forms_pass_and_say_how_much_was_compared(forms: tuple[Module, Module, ProgramFiles]) -> None:
    quantized, integer, program = forms
    found = Forms(program, emit_forms(Lowered("mixed", integer.main, program), TARGET), quantized.main, integer.main)
    report = verify(found, inputs(), TARGET)
    assert report.passed
    assert [form.name for form in report.forms[:3]] == ["integer graph", "integer program", "C"]
    whole = [form for form in report.forms if form.name != "onnxruntime, default session"]
    assert len(whole) == len(report.forms) - 1
    assert all(form.tensors > 10 and form.elements > 10_000 for form in whole)


def instruction(op: str, **changes: object) -> Callable[[ProgramFiles], tuple[ProgramFiles, str]]:
    """A fault in the attributes of the first instruction `op`."""

    def inject(files: ProgramFiles) -> tuple[ProgramFiles, str]:
        index, old = next((i, item) for i, item in enumerate(files.program.instructions) if item.op == op)
        new = Instruction.model_validate({**old.model_dump(), "attributes": {**old.attributes, **changes}})
        items = (*files.program.instructions[:index], new, *files.program.instructions[index + 1 :])
        return ProgramFiles(files.program.model_copy(update={"instructions": items}), files.constants), old.output

    return inject


def tensor(op: str, operand: int | None, **changes: object) -> Callable[[ProgramFiles], tuple[ProgramFiles, str]]:
    """A fault in the declared grid of an operand or of the result of the first instruction `op`."""

    def inject(files: ProgramFiles) -> tuple[ProgramFiles, str]:
        old = next(item for item in files.program.instructions if item.op == op)
        name = old.output if operand is None else old.inputs[operand]
        tensors = {**files.program.tensors, name: files.program.tensors[name].model_copy(update=changes)}
        return ProgramFiles(files.program.model_copy(update={"tensors": tensors}), files.constants), old.output

    return inject


def constant(
    op: str, operand: int, change: Callable[..., object]
) -> Callable[[ProgramFiles], tuple[ProgramFiles, str]]:
    """A fault in a constant of the first instruction `op`."""

    def inject(files: ProgramFiles) -> tuple[ProgramFiles, str]:
        old = next(item for item in files.program.instructions if item.op == op)
        constants = copy.copy(dict(files.constants))
        array = constants[old.inputs[operand]]
        constants[old.inputs[operand]] = np.asarray(change(array), array.dtype)
        return ProgramFiles(files.program, constants), old.output

    return inject


FAULTS = {
    "rounding of the input": instruction("quantize", rounding="floor"),
    "requantization mode": instruction("int_conv2d", mode="double"),
    "padding": instruction("int_conv2d", padding=[0, 1, 2, 1]),
    "wrong axis": instruction("permute", axes=[0, 3, 2, 1]),
    "lower clamp": instruction("int_conv2d", qmin=-100),
    "upper clamp": instruction("int_conv2d", qmax=60),
    "pad value": instruction("pad", value=0.0),
    "average rounding": instruction("int_avg_pool2d", rounding="trunc"),
    "count of padding": instruction("int_avg_pool2d", count_include_pad=True),
    "table offset": instruction("lookup", offset=-127),
    "input zero point": tensor("quantize", None, zero_point=(3,)),
    "stale scale": constant("int_conv2d", 3, lambda m: m // 2 + 2**29),
    "shift": constant("int_conv2d", 4, lambda e: e + 1),
    "bias": constant("int_linear", 2, lambda b: b + 4000),
    "weight": constant("int_linear", 1, lambda w: -w),
    "channel order of the multipliers": constant("int_conv2d", 3, lambda m: np.roll(m, 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_and_names_its_tensor(fault: str, forms: tuple[Module, Module, ProgramFiles]) -> None:
    quantized, integer, program = forms
    try:
        broken, name = FAULTS[fault](program)
        report = verify(Forms(broken, {}, quantized.main, integer.main), inputs(), TARGET)
    except (ValueError, IndexError):
        pytest.fail("a fault must be found by the verifier, not by a crash")
    executor = report.forms[1]
    assert not report.passed
    assert executor.status == "differs"
    assert executor.first == name
    assert executor.differing > 0
    assert report.forms[0].status == "equal"


def stale_bias_scale(model: onnx.ModelProto) -> str:
    """The bias four times finer on a scale four times coarser: the same real numbers to a float kernel.

    The integer kernels of ONNX Runtime take x_scale * w_scale for granted, so that only a default session is wrong.
    """
    tensors = {item.name: item for item in model.graph.initializer}
    producers = {node.output[0]: node for node in model.graph.node}
    node = next(node for node in model.graph.node if node.op_type == "Gemm")
    codes, scale = (tensors[name] for name in producers[node.input[2]].input[:2])
    changes: list[tuple[onnx.TensorProto, Callable[[Any], Any]]] = [(codes, lambda b: b // 4), (scale, lambda s: s * 4)]
    for item, change in changes:
        item.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(item)), item.name))
    return consumer(model, node.output[0])


def float_weight(model: onnx.ModelProto) -> str:
    """The weight as the real numbers that its integers stand for: a default session quantizes it anew, per tensor."""
    tensors = {item.name: item for item in model.graph.initializer}
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    maker = next(other for other in model.graph.node if other.output[0] == node.input[1])
    codes, scale = (numpy_helper.to_array(tensors[name]) for name in maker.input[:2])
    real = codes.astype(np.float32) * scale.reshape(-1, 1, 1, 1)
    real[0] *= 300  # one large channel, which a scale for all channels serves alone
    model.graph.initializer.append(numpy_helper.from_array(real, "real.weight"))
    node.input[1] = "real.weight"
    return consumer(model, node.output[0])


def consumer(model: onnx.ModelProto, name: str) -> str:
    """The quantized tensor after a result."""
    node = next(node for node in model.graph.node if name in node.input)
    return node.output[0] if node.op_type == "QuantizeLinear" else consumer(model, node.output[0])


@pytest.mark.parametrize("fault", [stale_bias_scale, float_weight])
def test_a_file_that_means_two_things_is_caught(
    fault: Callable[[onnx.ModelProto], str], forms: tuple[Module, Module, ProgramFiles]
) -> None:
    """Exports that are right with optimisation off and wrong in a default session exist: both are run, and compared."""
    quantized, integer, program = forms
    model = onnx.load_from_string(onnx_qdq.emit(integer.main))
    name = fault(model)
    report = verify(
        Forms(program, onnx_form(model.SerializeToString()), quantized.main, integer.main), inputs(), TARGET
    )
    assert not report.passed
    default = report.form("onnxruntime, layer by layer")
    assert default.status == "differs"
    assert default.first == name
    if fault is stale_bias_scale:
        assert report.form("onnxruntime unoptimized, layer by layer").status in ("equal", "within bound")


class Steep(nn.Module):
    """A function whose argument passes thousands of its periods: one step of 16 bits is a tenth of one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(x * 1000.0)


def test_a_steep_function_in_float32_may_be_off_as_its_argument_is() -> None:
    x = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(16))
    for model, target, bound in [(Steep(), "int16x8", 24), (Steep(), "int8_dsp", 0), (nn.Tanh(), "int16x8", 0)]:
        compiled = qcompiler.compile(model.eval(), target, calibration_data=[x])
        assert compiled.verification is not None and compiled.verification.passed
        artifact = compiled.artifact
        table = next(item for item in artifact.program.program.instructions if item.op == "lookup")
        assert steepness(artifact.program, table) <= bound
        if bound:
            assert steepness(artifact.program, table) > 1


class Difference(nn.Module):
    """x - tanh(x) as two operators: for small x, a small difference of large numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.tanh(x)


class Shift(nn.Module):
    """Another layer reads the result of one whose products are a thousand times as large as their sum with the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.second.weight[:] = 1000.0
            self.second.bias[:] = -4000.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(1.0 + 1e-4 * torch.tanh(self.first(x)))
        return y


@pytest.mark.parametrize(
    ("model", "size", "target", "least"),
    [
        (Difference(), 2e-2, "nvdla", 2.0),
        (nn.Tanhshrink(), 1e-3, "int8_dsp", 2.0),
        (Shift(), 1.0, "int16x8", 1.0),
    ],
)
def test_large_summands_that_cancel_may_be_off_by_their_roundings(
    model: nn.Module, size: float, target: str, least: float
) -> None:
    torch.manual_seed(40)
    compiled = qcompiler.compile(model.eval(), target, calibration_data=[torch.randn(16, 4) * size])
    assert compiled.verification is not None and compiled.verification.passed
    files = compiled.artifact.program
    steps = [cancellation(files, item) + narrow_multiplier(files, item) for item in files.program.instructions]
    assert max(steps) >= least


def test_no_layer_of_an_ordinary_network_may_be_off_by_more(forms: tuple[Module, Module, ProgramFiles]) -> None:
    files = forms[2]
    layers = [item for item in files.program.instructions if files.program.tensors[item.output].scale]
    assert len(layers) > 10
    assert all(cancellation(files, item) < 0.01 and narrow_multiplier(files, item) == 0 for item in layers)
