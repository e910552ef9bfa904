"""The ONNX file in ONNX Runtime against the integer graph: every layer on the same integers, in a default session."""

from __future__ import annotations

import copy
import itertools
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
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.types import DType
from qcompiler.ops import UNARY
from qcompiler.targets import load_target
from qcompiler.verification.report import Report
from tests.backends.integer.test_executor import Mixed, build, shared
from tests.passes.test_default_pipeline import capture
from tests.support.forms import onnx_of
from tests.support.running import outputs_of

EXACT = {"", "Conv", "Gemm", "GlobalAveragePool", "Sigmoid", "Sum"}
"""Operators whose kernels in ONNX Runtime ort_cpu reproduces; the empty one quantizes the input, sums are of two tensors."""


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2", "mixed"])
def test_ort_cpu_equals_the_kernels_of_onnx_runtime(network: str) -> None:
    module = shared(network, "ort_cpu")
    model = emit(module.main)
    sizes = module.main.inputs[0].type.shape[1:]
    x = torch.randn(7, *(int(size) for size in sizes), generator=torch.Generator().manual_seed(1))
    expected: dict[str, np.ndarray] = {}
    outputs_of(module.main, [x], lambda value, tensor: expected.update({value.name: tensor.numpy()}))
    layers = Layers(model)
    found = layers.run([x.numpy()], expected)
    assert len(found) == sum(node.output.type.quant is not None for node in module.main.nodes if node.op not in LEAVES)
    operators = set(layers.operators.values())
    assert "Conv" in operators and "Gemm" in operators
    for name, codes in found.items():
        distance = np.abs(codes.astype(np.int64) - expected[name])
        assert int(distance.max()) <= (0 if layers.operators[name] in EXACT else 1), name


@pytest.mark.parametrize(
    ("network", "target"),
    [
        ("resnet18", "ort_cpu"),
        ("mobilenet_v2", "int8_dsp"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("mobilenet_v2", "ort_cpu"),
                ("mobilenet_v2", "int8_dsp_per_channel"),
                ("resnet18", "int8_dsp"),
                ("resnet18", "int8_dsp_per_channel"),
            ]
        ),
    ],
)
def test_every_product_runs_in_an_integer_kernel(network: str, target: str) -> None:
    module = shared(network, target)
    weights = {node.inputs[1].name for node in module.main.nodes if node.op in ("int_conv2d", "int_linear")}
    assert weights and integer_weights(emit(module.main)) == weights


def test_file_is_about_a_quarter() -> None:
    size = len(emit(shared("resnet18", "ort_cpu").main))
    floats = 4 * 11_684_712  # parameters of ResNet-18 after folding
    assert 0.24 < size / floats < 0.27


def test_file_is_the_same_bytes_twice() -> None:
    assert emit(build("mixed", "int8_dsp").main) == emit(build("mixed", "int8_dsp").main)


def test_equal_numbers_are_stored_once() -> None:
    """Many slices of a tensor have its grid: an initializer for each would take longer to load than the operators."""

    class Slices(nn.Module):
        """A concat of the channels of a tensor."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """The same tensor."""
            return torch.cat([x[:, index : index + 1] for index in range(16)], 1)

    compiled = qcompiler.compile(Slices().eval(), calibration_data=[torch.randn(2, 16)])
    initializers = onnx.load_from_string(onnx_of(compiled.artifact)).graph.initializer
    stored = [(item.data_type, tuple(item.dims), item.raw_data) for item in initializers]
    assert len(set(stored)) == len(stored) <= 16 + 1 + 4, "starts and stops, axis and step, scale and zero point"


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
    module = shared("mixed", "ort_cpu")
    x = torch.randn(2, 3, 33, 29, generator=torch.Generator().manual_seed(1)).numpy()
    plain, _ = run_observed(emit(module.main), [x])
    monkeypatch.setattr(runtime, "saturates", lambda: True)
    precise, _ = run_observed(emit(module.main), [x])
    assert all(np.array_equal(plain[name], precise[name]) for name in plain)


def test_wide_activations_raise_the_opset_and_run() -> None:
    x = torch.randn(2, 3, 33, 29, generator=torch.Generator().manual_seed(1))
    compiled = qcompiler.compile(Mixed().eval(), calibration_data=[x], overrides={"b": 16, "*": 16})
    model = onnx.load_from_string(onnx_of(compiled.artifact))
    assert model.opset_import[0].version >= 21
    assert compiled.verification is not None
    assert compiled.verification.passed


def test_what_no_runtime_takes_is_refused() -> None:
    with pytest.raises(VerificationError, match=r"ONNX Runtime .* refuses the file"):
        run(b"no model", [])
    module = shared("mixed", "int8_dsp")
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
    assert onnx.load_from_string(onnx_of(compiled.artifact)).opset_import[0].version == 13
    assert compiled.verification is not None
    assert compiled.verification.form("onnxruntime, layer by layer").largest <= 1
    with torch.no_grad():
        error = (compiled.run(x) - model(x)).abs().max()
    assert float(error) < 0.1


def test_every_function_of_a_table_has_an_onnx_form() -> None:
    assert set(FUNCTIONS) == set(UNARY)


def test_a_clamp_behind_a_layer_costs_no_integer_kernel() -> None:
    """A relu whose result shares a grid that reaches below zero: codes are clamped, after the quantizer."""

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
    assert compiled.verification.integer_macs == {"onnxruntime": 1.0}
    clips = [node for node in onnx.load_from_string(onnx_of(compiled.artifact)).graph.node if node.op_type == "Clip"]
    assert [node.output[0] for node in clips] == ["relu.q"]
    assert compiled.verification.form("onnxruntime, layer by layer").tensors == 2 * 4


def report(compiled: qcompiler.Compiled) -> Report:
    """The report of the verification during the compile."""
    assert compiled.verification is not None
    return compiled.verification


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(3, 4, 3), (3, 9)),
    "conv2d": (nn.Conv2d(3, 4, 3, stride=2), (3, 8, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 6)),
    "conv3d": (nn.Conv3d(3, 4, 2), (3, 4, 4, 4)),
    "conv_transpose1d": (nn.ConvTranspose1d(3, 4, 3, stride=2), (3, 6)),
    "conv_transpose2d": (nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 6, 6)),
    "conv_transpose3d": (nn.ConvTranspose3d(3, 4, 2, stride=2), (3, 3, 3, 3)),
    "linear": (nn.Linear(12, 5), (12,)),
    "linear of rows": (nn.Linear(12, 5), (3, 12)),
}


class _EachOnItsOwn(nn.Module):
    """All layers side by side, each with an input of its own and a bias that is `factor` times as large."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList()
        for layer, _ in LAYERS.values():
            layer = copy.deepcopy(layer)
            with torch.no_grad():
                for name, parameter in layer.named_parameters():
                    drawn = torch.rand(parameter.shape, generator=generator) - 0.5
                    parameter.copy_(drawn * factor if name == "bias" else drawn)
            self.layers.append(layer)

    def forward(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        c: torch.Tensor,
        d: torch.Tensor,
        e: torch.Tensor,
        f: torch.Tensor,
        g: torch.Tensor,
        h: torch.Tensor,
        i: torch.Tensor,
    ) -> list[torch.Tensor]:
        return [layer(x) for layer, x in zip(self.layers, (a, b, c, d, e, f, g, h, i), strict=True)]


@pytest.mark.parametrize(
    ("target", "factor"),
    [
        ("int16x8", 1e4),
        *(
            pytest.param(target, factor, marks=pytest.mark.slow)
            for target in ("int16x8", "cmsis_nn", "ethos_u55", "tosa_int", "hexagon_htp_a16w8")
            for factor in (1.0, 1e2, 1e4, 1e6, 1e9)
        ),
    ],
)
def test_biases_of_more_than_32_bits(target: str, factor: float) -> None:
    """ONNX Runtime would quantize them to 32 bits, where they wrap."""
    chosen = load_target(target)
    if chosen.activation_bits == 8:
        chosen = chosen.override(activation_bits=16)
    generator = torch.Generator().manual_seed(1)
    inputs = tuple(torch.randn(4, *shape, generator=generator) for _, shape in LAYERS.values())
    compiled = qcompiler.compile(_EachOnItsOwn(factor).eval(), chosen, calibration_data=[inputs])
    biases = [node.inputs[2] for node in compiled.integer.main.nodes if node.op.startswith(("int_conv", "int_linear"))]
    wide = [value for value in biases if value.type.dtype is DType.I64]
    assert len(biases) == len(LAYERS) and (wide or chosen.arithmetic.bias_bits == 32)
    for session in ("onnxruntime", "onnxruntime unoptimized"):
        assert report(compiled).form(f"{session}, layer by layer").largest <= 1


class _Softmax(nn.Module):
    """A softmax, what moves its result, and what scales it."""

    def __init__(self, move: str, spread: float) -> None:
        super().__init__()
        self.move, self.spread = move, spread
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(2)
            self.conv.weight.copy_(torch.rand(self.conv.weight.shape, generator=generator) - 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.softmax(self.conv(x).mean((2, 3)) * self.spread, 1)
        if self.move == "reshape":
            x = x.reshape(-1, 3, 4)
        if self.move == "transpose":
            x = x.reshape(-1, 3, 4).transpose(1, 2)
        return x * 3


FAST = {("ort_cpu", "", 30.0), ("ort_cpu", "reshape", 0.1), ("int8_dsp", "transpose", 0.1), ("openvino", "", 0.1)}


@pytest.mark.parametrize(
    ("target", "move", "spread"),
    [
        pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
        for case in itertools.product(
            ["ort_cpu", "int8_dsp", "openvino", "tflite_int8"], ["", "reshape", "transpose"], [0.1, 30.0]
        )
    ],
)
def test_a_softmax_on_any_grid(target: str, move: str, spread: float) -> None:
    """ONNX Runtime's QLinearSoftmax wraps on fine grids: nearly equal classes have them, one sure class has not."""
    x = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(3)) - 0.5
    model = _Softmax(move, spread).eval()
    compiled = qcompiler.compile(model, load_target(target).override(fallback="float"), calibration_data=[x])
    for session in ("onnxruntime", "onnxruntime unoptimized"):
        form = report(compiled).form(f"{session}, layer by layer")
        assert form.elements and form.largest <= 1, str(form)
    program = compiled.artifact.program.program
    softmax = next(item for item in program.instructions if item.op == "int_softmax")
    assert (program.tensors[softmax.output].scale == (1 / 256,)) == (target != "openvino")


FLOAT_LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolution": (nn.Conv2d(3, 4, 3), (2, 3, 6, 6)),
    "convolution and ReLU": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (2, 3, 6, 6)),
    "convolution of sequences": (nn.Conv1d(3, 4, 3), (2, 3, 6)),
    "transposed convolution": (nn.ConvTranspose2d(3, 4, 3), (2, 3, 6, 6)),
    "linear": (nn.Linear(6, 4), (2, 6)),
    "linear of sequences": (nn.Linear(6, 4), (2, 3, 6)),
}


@pytest.mark.parametrize("name", FLOAT_LAYERS)
def test_a_layer_that_stays_in_float_has_float_weights_in_the_runtime(name: str, tmp_path: Path) -> None:
    """ONNX Runtime's optimizer quantizes float32 weights between DequantizeLinear and QuantizeLinear."""
    layer, shape = FLOAT_LAYERS[name]
    model = nn.Sequential(nn.Hardtanh(-1.0, 1.0), layer, nn.Tanh()).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    chosen = load_target("nvdla").override(fallback="float")
    compiled = qcompiler.compile(model, chosen, calibration_data=[x], overrides={"1*": "float"})
    assert report(compiled).form("onnxruntime, layer by layer").largest <= 1
    runtime.Session(compiled.artifact.files()["model.onnx"], optimized=tmp_path / "optimized.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "QuantizeLinear" in operators
    assert not set(operators) & {*runtime.INTEGER_KERNELS, "QLinearConvTranspose"}, operators
    assert operators.count("DequantizeLinear") <= operators.count("QuantizeLinear") + 1, "weights have no such node"
