"""Float32 arithmetic against ONNX Runtime's quantized CPU kernels, bit for bit.

The elementwise kernels differ between instruction sets; these formulas are those of x86 with AVX2 and FMA.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from qcompiler.backends.onnx_qdq.runtime import Session
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.arithmetic import (
    Arithmetic,
    FloatOperation,
    add_codes,
    add_parameters,
    average_parameters,
    elementwise_float32,
    global_average_codes,
    lookup_table,
    mul_codes,
    mul_parameters,
)
from qcompiler.quant.requant import (
    RequantMode,
    RequantSpec,
    prepare_requantization,
    real_multiplier,
    requantize,
)
from qcompiler.quant.rounding import AverageRounding, Rounding

Array = npt.NDArray[np.generic]
TYPES = {"s8": (TensorProto.INT8, np.int8, -128, 127), "u8": (TensorProto.UINT8, np.uint8, 0, 255)}
FLOAT32 = Arithmetic(
    RequantSpec(RequantMode.FLOAT32_RNE),
    Rounding.NEAREST_EVEN,
    Rounding.NEAREST_EVEN,
    AverageRounding.NEAREST_EVEN,
    table_precision="float32",
)
needs_x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the elementwise kernels are those of x86"
)


def run_node(
    operator: str,
    inputs: list[str],
    constants: Mapping[str, Array],
    feeds: Mapping[str, Array],
    domain: str = "",
    **attributes: int | list[int],
) -> torch.Tensor:
    """Run one quantized operator; every name in `feeds` is a graph input, every other an initializer."""
    node = helper.make_node(operator, inputs, ["y"], domain=domain)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    code_type = helper.np_dtype_to_tensor_dtype(next(iter(feeds.values())).dtype)
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(name, code_type, value.shape) for name, value in feeds.items()],
        [helper.make_tensor_value_info("y", code_type, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    if "x" in feeds and feeds["x"].dtype == np.uint8:
        # Without it, processors that have AVX2 and no dot product add pairs of u8 x s8 in 16 bits, which saturate.
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, dict(feeds))[0].astype(np.int64))


def params(scale: float, zero_point: int) -> AffineParams:
    return AffineParams(torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int32))


def drawn(generator: np.random.Generator, kind: str) -> tuple[AffineParams, AffineParams, AffineParams]:
    """Parameters with scales in simple ratios, so that many sums lie on or next to a tie."""
    _, _, low, high = TYPES[kind]
    out = float(generator.uniform(0.002, 0.05))
    ratios = [float(generator.integers(1, 40) / (2 * generator.integers(1, 10))) for _ in range(2)]
    zeros = [int(zero) for zero in generator.integers(low, high + 1, 3)]
    return params(out * ratios[0], zeros[0]), params(out * ratios[1], zeros[1]), params(out, zeros[2])


def binary(
    operator: str, kind: str, a: Array, b: Array, left: AffineParams, right: AffineParams, out: AffineParams
) -> torch.Tensor:
    constants: dict[str, Array] = {}
    for name, side in (("a", left), ("b", right), ("y", out)):
        constants[f"{name}_scale"] = side.scale.numpy()
        constants[f"{name}_zero"] = side.zero_point.numpy().astype(TYPES[kind][1])
    inputs = ["a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "y_scale", "y_zero"]
    return run_node(operator, inputs, constants, {"a": a, "b": b}, "com.microsoft")


FLOAT_OPERATORS: dict[FloatOperation, tuple[str, ...]] = {"add": ("Sum",), "sub": ("Sub",), "mul": ("Mul", "Sum")}
"""How the exported file has them, so that no kernel on codes takes them in."""
BROADCASTS = [
    ((37,), (37,)),
    ((1,), (64,)),
    ((64,), (1,)),
    ((3, 1, 7), (2, 1, 5, 1)),
    ((2, 8, 3, 3), (8, 1, 1)),
    ((), (5,)),
]


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("constant", [None, 0, 1])
def test_float32_elementwise_operators_on_random_grids(constant: int | None, optimized: bool) -> None:
    """Hundreds of operators in one file: both kinds of codes, all broadcasts, an operand that is constant."""
    generator = np.random.default_rng(5)
    nodes, initializers, inputs, feeds = [], [], [], {}
    expected = {}
    for index, (operation, kind, shapes) in enumerate(itertools.product(FLOAT_OPERATORS, TYPES, BROADCASTS * 6)):
        element, code, low, high = TYPES[kind]
        left, right, out = drawn(generator, kind)
        if index % 2:  # other ratios than simple ones
            left, right = (
                params(float(generator.uniform(0.002, 0.05)), int(side.zero_point)) for side in (left, right)
            )
        if operation == "mul":
            out = params(float(left.scale * right.scale) * 2 * int(generator.integers(1, 150)), int(out.zero_point))
        codes = [generator.integers(low, high + 1, shape).astype(code) for shape in shapes]
        real = []
        for place, (side, name) in enumerate(zip((left, right), "ab", strict=True)):
            names = [f"{index}{name}{part}" for part in ("", "scale", "zero")]
            if place == constant:
                initializers.append(numpy_helper.from_array(codes[place], names[0]))
            else:
                inputs.append(helper.make_tensor_value_info(names[0], element, codes[place].shape))
                feeds[names[0]] = codes[place]
            initializers.append(numpy_helper.from_array(side.scale.numpy(), names[1]))
            initializers.append(numpy_helper.from_array(side.zero_point.numpy().astype(code), names[2]))
            nodes.append(helper.make_node("DequantizeLinear", names, [f"{index}{name}real"]))
            real.append(f"{index}{name}real")
        for step, operator in enumerate(FLOAT_OPERATORS[operation]):
            nodes.append(helper.make_node(operator, real, [f"{index}real{step}"]))
            real = [f"{index}real{step}"]
        initializers.append(numpy_helper.from_array(out.scale.numpy(), f"{index}scale"))
        initializers.append(numpy_helper.from_array(out.zero_point.numpy().astype(code), f"{index}zero"))
        nodes.append(helper.make_node("QuantizeLinear", [*real, f"{index}scale", f"{index}zero"], [f"{index}y"]))
        expected[f"{index}y"] = (
            elementwise_float32(operation, [widened(c) for c in codes], [left, right], out, qmin=low, qmax=high),
            element,
        )
    outputs = [helper.make_tensor_value_info(name, element, None) for name, (_, element) in expected.items()]
    graph = helper.make_graph(nodes, "grids", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    found = Session(model.SerializeToString(), optimize=optimized).run_named(feeds)
    assert len(found) > 200
    for (name, (codes_of_ours, _)), array in zip(expected.items(), found, strict=True):
        assert codes_of_ours.tolist() == array.astype(np.int64).tolist(), name


@pytest.mark.parametrize("operation", FLOAT_OPERATORS)
def test_no_kernel_on_codes_takes_in_elementwise_operators(operation: FloatOperation, tmp_path: Path) -> None:
    """The emitted file as ONNX Runtime really runs it, and the same result with all its optimization off."""
    computed: dict[FloatOperation, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]
    computed = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}
    compute = computed[operation]

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.constant = torch.nn.Parameter(torch.linspace(0.5, 2, 9))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return compute(compute(x, y), self.constant)

    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in ((4, 8, 9, 9), (4, 8, 1, 1)))
    compiled = qcompiler.compile(Two().eval(), "ort_cpu", calibration_data=[(x, y)])
    file = (compiled.save(tmp_path / "out") / "model.onnx").read_bytes()
    Session(file, optimized=tmp_path / "run.onnx")
    kernels = {node.op_type for node in onnx.load(str(tmp_path / "run.onnx")).graph.node}
    assert not {name for name in kernels if name.startswith("QLinear")}
    report = compiled.verify(x, y)
    for session in ("onnxruntime", "onnxruntime unoptimized"):
        for part in ("layer by layer", "end to end"):
            form = report.form(f"{session}, {part}")
            assert form.elements and not form.differing, str(form)


def all_pairs(kind: str) -> tuple[Array, Array]:
    _, code, low, high = TYPES[kind]
    codes = np.arange(low, high + 1).astype(code)
    return np.repeat(codes, 256), np.tile(codes, 256)


def widened(codes: Array) -> torch.Tensor:
    return torch.from_numpy(codes.astype(np.int64))


@needs_x86
@pytest.mark.parametrize("kind", TYPES)
def test_add_on_all_pairs_of_codes(kind: str) -> None:
    generator = np.random.default_rng(0)
    a, b = all_pairs(kind)
    for _ in range(12):
        left, right, out = drawn(generator, kind)
        expected = binary("QLinearAdd", kind, a, b, left, right, out)
        parameters = add_parameters(left, right, out, FLOAT32)
        actual = add_codes(widened(a), widened(b), parameters, qmin=TYPES[kind][2], qmax=TYPES[kind][3])
        assert torch.equal(actual, expected)


@needs_x86
@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize(
    ("left_shape", "right_shape"),
    [((1,), (256,)), ((256,), (1,)), ((1, 16, 1, 1), (2, 16, 9, 9)), ((33, 1), (1, 41)), ((37,), (37,)), ((1,), (1,))],
)
def test_tails_and_broadcasting(operator: str, left_shape: tuple[int, ...], right_shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        left, right, out = drawn(generator, "u8")
        if operator == "QLinearMul":
            out = params(float(left.scale * right.scale) * 2 * int(generator.integers(1, 150)), int(out.zero_point))
        a, b = (generator.integers(0, 256, shape).astype(np.uint8) for shape in (left_shape, right_shape))
        expected = binary(operator, "u8", a, b, left, right, out)
        x, y = widened(a), widened(b)
        if operator == "QLinearMul":
            actual = mul_codes(x, y, mul_parameters(left, right, out, FLOAT32), qmin=0, qmax=255)
        else:
            actual = add_codes(x, y, add_parameters(left, right, out, FLOAT32), qmin=0, qmax=255)
        assert torch.equal(actual, expected)


@needs_x86
@pytest.mark.parametrize("kind", TYPES)
def test_mul_on_all_pairs_of_codes(kind: str) -> None:
    generator = np.random.default_rng(2)
    a, b = all_pairs(kind)
    for _ in range(12):
        left, right, out = drawn(generator, kind)
        out = params(float(left.scale * right.scale) * 2 * int(generator.integers(1, 150)), int(out.zero_point))
        expected = binary("QLinearMul", kind, a, b, left, right, out)
        parameters = mul_parameters(left, right, out, FLOAT32)
        actual = mul_codes(widened(a), widened(b), parameters, qmin=TYPES[kind][2], qmax=TYPES[kind][3])
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(("x_kind", "w_kind"), [("u8", "u8"), ("u8", "s8"), ("s8", "s8")])
def test_matmul_per_column(x_kind: str, w_kind: str) -> None:
    generator = np.random.default_rng(3)
    _, x_type, low, high = TYPES[x_kind]
    # The longest sums pass 2^24, where converting the accumulator to float32 rounds already.
    for depth in (17, 300, 20000):
        x = generator.integers(low, high + 1, (9, depth)).astype(x_type)
        w = generator.integers(TYPES[w_kind][2], TYPES[w_kind][3] + 1, (depth, 24)).astype(TYPES[w_kind][1])
        x_zero = int(generator.integers(low, high + 1))
        w_zero = 128 if w_kind == "u8" else 0
        x_scale = torch.tensor(0.0213)
        w_scale = torch.from_numpy(generator.uniform(0.001, 0.02, 24).astype(np.float32))
        out = params(0.0213 * 0.01 * depth**0.5 * 60, int(generator.integers(low, high + 1)))
        constants: dict[str, Array] = {
            "x_scale": x_scale.numpy(),
            "x_zero": np.array(x_zero, x_type),
            "w": w,
            "w_scale": w_scale.numpy(),
            "w_zero": np.full(24, w_zero, w.dtype),
            "y_scale": out.scale.numpy(),
            "y_zero": out.zero_point.numpy().astype(x_type),
        }
        inputs = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero"]
        expected = run_node("QLinearMatMul", inputs, constants, {"x": x})
        acc = (widened(x) - x_zero) @ (widened(w) - w_zero)
        multiplier = real_multiplier(x_scale, w_scale, out.scale, RequantMode.FLOAT32_RNE)
        actual = requantize(
            acc,
            multiplier,
            None,
            RequantMode.FLOAT32_RNE,
            zero_point=int(out.zero_point),
            qmin=low,
            qmax=high,
            axis=1,
        )
        assert torch.equal(actual, expected)
        assert len(set(actual.flatten().tolist())) > 50


@pytest.mark.parametrize("groups", [1, 8])
def test_conv_per_channel_with_bias_and_padding(groups: int) -> None:
    generator = np.random.default_rng(4)
    x = generator.integers(0, 256, (2, 8, 13, 11)).astype(np.uint8)
    w = generator.integers(-127, 128, (16, 8 // groups, 3, 3)).astype(np.int8)
    bias = generator.integers(-20000, 20000, 16).astype(np.int32)
    x_scale = torch.tensor(0.031)
    w_scale = torch.from_numpy(generator.uniform(0.002, 0.02, 16).astype(np.float32))
    out = params(0.19 if groups == 1 else 0.08, 119)
    constants: dict[str, Array] = {
        "x_scale": x_scale.numpy(),
        "x_zero": np.array(131, np.uint8),
        "w": w,
        "w_scale": w_scale.numpy(),
        "w_zero": np.zeros(16, np.int8),
        "y_scale": out.scale.numpy(),
        "y_zero": np.array(119, np.uint8),
        "bias": bias,
    }
    inputs = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", "bias"]
    expected = run_node("QLinearConv", inputs, constants, {"x": x}, pads=[1, 1, 1, 1], group=groups)
    # Below 2^53 a float64 convolution of integers is exact.
    real = torch.nn.functional.conv2d(
        (widened(x) - 131).double(), widened(w).double(), widened(bias).double(), padding=1, groups=groups
    )
    multiplier = real_multiplier(x_scale, w_scale, out.scale, RequantMode.FLOAT32_RNE)
    prepared = prepare_requantization(multiplier, RequantMode.FLOAT32_RNE)
    actual = prepared.apply(real.long(), zero_point=119, qmin=0, qmax=255, axis=1)
    assert torch.equal(actual, expected)
    assert len(set(actual.flatten().tolist())) > 100


@pytest.mark.parametrize("kind", TYPES)
def test_global_average(kind: str) -> None:
    generator = np.random.default_rng(5)
    _, code, low, high = TYPES[kind]
    codes = np.arange(low, high + 1).astype(code)
    for height, width in ((7, 7), (5, 9), (1, 1), (3, 7), (6, 11), (13, 5)):
        # Constant planes with scales in simple ratios put every second average on a tie.
        source, target, _ = drawn(generator, kind)
        x = np.broadcast_to(codes.reshape(1, 256, 1, 1), (1, 256, height, width)).copy()
        constants: dict[str, Array] = {
            "x_scale": source.scale.numpy(),
            "x_zero": source.zero_point.numpy().astype(code),
            "y_scale": target.scale.numpy(),
            "y_zero": target.zero_point.numpy().astype(code),
        }
        inputs = ["x", "x_scale", "x_zero", "y_scale", "y_zero"]
        expected = run_node("QLinearGlobalAveragePool", inputs, constants, {"x": x}, "com.microsoft")
        multiplier = average_parameters(source.scale, target.scale, height * width, FLOAT32)
        actual = global_average_codes(
            widened(x),
            (2, 3),
            multiplier,
            in_zero_point=int(source.zero_point),
            out_zero_point=int(target.zero_point),
            qmin=low,
            qmax=high,
        )
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", TYPES)
def test_sigmoid_table(kind: str) -> None:
    generator = np.random.default_rng(6)
    _, code, low, high = TYPES[kind]
    codes = np.arange(low, high + 1).astype(code)
    for _ in range(20):
        source = params(float(generator.uniform(0.005, 0.1)), int(generator.integers(low, high + 1)))
        target = params(float(generator.choice([1 / 256, 1 / 255, 0.0071])), low)
        constants: dict[str, Array] = {
            "x_scale": source.scale.numpy(),
            "x_zero": source.zero_point.numpy().astype(code),
            "y_scale": target.scale.numpy(),
            "y_zero": target.zero_point.numpy().astype(code),
        }
        inputs = ["x", "x_scale", "x_zero", "y_scale", "y_zero"]
        expected = run_node("QLinearSigmoid", inputs, constants, {"x": codes}, "com.microsoft")
        table = lookup_table(
            lambda x: 1.0 / (1.0 + np.exp(-x)),
            source,
            target,
            FLOAT32,
            in_qmin=low,
            in_qmax=high,
            out_qmin=low,
            out_qmax=high,
        )
        assert torch.equal(table, expected)
