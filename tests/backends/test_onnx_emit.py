"""The ONNX file in ONNX Runtime against the integer graph: every layer on the same integers, in a default session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.backends.onnx_qdq import Layers, emit, integer_weights, run, run_observed, runtime
from qcompiler.backends.onnx_qdq.functions import FUNCTIONS
from qcompiler.errors import InputError, UnsupportedError, VerificationError
from qcompiler.ir.interpret import LEAVES, interpret
from qcompiler.ops import UNARY
from tests.backends.test_integer_program import Mixed, build
from tests.passes.test_default_pipeline import capture

EXACT = {"", "Conv", "Gemm", "GlobalAveragePool", "Sigmoid"}
"""Operators whose kernels in ONNX Runtime ort_cpu reproduces; the empty one quantizes the input."""


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2", "mixed"])
def test_ort_cpu_equals_the_kernels_of_onnx_runtime(network: str) -> None:
    module = build(network, "ort_cpu")
    model = emit(module.main)
    sizes = module.main.inputs[0].type.shape[1:]
    x = torch.randn(7, *(int(size) for size in sizes), generator=torch.Generator().manual_seed(1))
    expected: dict[str, np.ndarray] = {}
    interpret(module.main, [x], lambda value, tensor: expected.update({value.name: tensor.numpy()}))
    layers = Layers(model)
    found = layers.run([x.numpy()], expected)
    assert len(found) == sum(node.output.type.quant is not None for node in module.main.nodes if node.op not in LEAVES)
    operators = set(layers.operators.values())
    assert "Conv" in operators and "Gemm" in operators
    for name, codes in found.items():
        distance = np.abs(codes.astype(np.int64) - expected[name])
        assert int(distance.max()) <= (0 if layers.operators[name] in EXACT else 1), name


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2"])
def test_every_product_runs_in_an_integer_kernel(network: str) -> None:
    for target in ("ort_cpu", "int8_dsp", "int8_dsp_per_channel"):
        module = build(network, target)
        weights = {node.inputs[1].name for node in module.main.nodes if node.op in ("int_conv2d", "int_linear")}
        assert integer_weights(emit(module.main)) == weights


def test_file_is_about_a_quarter_and_the_same_bytes_twice() -> None:
    module = build("resnet18", "int8_dsp")
    size = len(emit(module.main))
    floats = 4 * 11_684_712  # parameters of ResNet-18 after folding
    assert 0.24 < size / floats < 0.27
    assert emit(module.main) == emit(build("resnet18", "int8_dsp").main)


def test_refuses_a_graph_that_is_not_integer() -> None:
    with pytest.raises(UnsupportedError, match="stage float"):
        emit(capture(torch.nn.Linear(2, 2), torch.zeros(1, 2)).main)


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "flags : sse2 avx2 avx512f", True),
        ("x86_64", "flags : sse2 avx2 avx_vnni", False),
        ("AMD64", "flags : avx512_vnni", False),
        ("x86_64", None, True),
        ("aarch64", None, False),
    ],
)
def test_processors_whose_kernels_saturate_are_told_apart(
    machine: str, flags: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    monkeypatch.setattr(runtime, "_CPU_FLAGS", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    runtime.saturates.cache_clear()
    assert runtime.saturates() is expected
    runtime.saturates.cache_clear()


def test_a_session_that_asks_for_precision_gives_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build("mixed", "ort_cpu")
    x = torch.randn(2, 3, 33, 29, generator=torch.Generator().manual_seed(1)).numpy()
    plain, _ = run_observed(emit(module.main), [x])
    monkeypatch.setattr(runtime, "saturates", lambda: True)
    precise, _ = run_observed(emit(module.main), [x])
    assert all(np.array_equal(plain[name], precise[name]) for name in plain)


def test_wide_activations_raise_the_opset_and_run() -> None:
    x = torch.randn(2, 3, 33, 29, generator=torch.Generator().manual_seed(1))
    compiled = qcompiler.compile(Mixed().eval(), calibration_data=[x], overrides={"b": 16, "*": 16})
    model = onnx.load_from_string(compiled.artifact.onnx)
    assert model.opset_import[0].version >= 21
    assert compiled.verification is not None
    assert compiled.verification.passed


def test_what_no_runtime_takes_is_refused() -> None:
    with pytest.raises(VerificationError, match=r"ONNX Runtime .* refuses the file"):
        run(b"no model", [])
    module = build("mixed", "int8_dsp")
    with pytest.raises(InputError, match="2 inputs"):
        run(emit(module.main), [np.zeros(1), np.zeros(1)])


FUNCTION_MODULES = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "gelu": nn.GELU(),
    "gelu by tanh": nn.GELU("tanh"),
    "leaky_relu": nn.LeakyReLU(0.2),
    "elu": nn.ELU(0.7),
    "softplus": nn.Softplus(),
    "mish": nn.Mish(),
}


@pytest.mark.parametrize("target", ["int8_dsp", "ort_cpu"])
@pytest.mark.parametrize("name", FUNCTION_MODULES)
def test_functions_are_written_in_operators_of_opset_13(name: str, target: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FUNCTION_MODULES[name], nn.Conv2d(4, 2, 1)).eval()
    x = torch.randn(4, 3, 8, 8) * 3
    compiled = qcompiler.compile(model, target, calibration_data=[x])
    assert onnx.load_from_string(compiled.artifact.onnx).opset_import[0].version == 13
    assert compiled.verification is not None
    assert compiled.verification.form("onnxruntime, layer by layer").largest <= 1
    with torch.no_grad():
        error = (compiled.run(x) - model(x)).abs().max()
    assert float(error) < 0.1


def test_every_function_of_a_table_has_an_onnx_form() -> None:
    assert set(FUNCTIONS) == set(UNARY)


def test_a_clamp_behind_a_layer_costs_no_integer_kernel() -> None:
    """A relu whose result shares a grid that reaches below zero: the clamp is of codes, behind the quantizer."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.left(x), torch.relu(self.right(x))], 1)

    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    compiled = qcompiler.compile(Shared().eval(), calibration_data=[x])
    assert compiled.verification is not None
    assert compiled.verification.integer_macs == 1.0
    clips = [node for node in onnx.load_from_string(compiled.artifact.onnx).graph.node if node.op_type == "Clip"]
    assert [node.output[0] for node in clips] == ["relu.q"]
    assert compiled.verification.form("onnxruntime, layer by layer").tensors == 2 * 4
