"""The integer graph and the executor against plain loops: every operator, every element, every requantization mode."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.registry import Trait, known_ops
from qcompiler.ir.types import DType, QuantParams, Stage, TensorType
from qcompiler.quant.requant import RequantMode
from qcompiler.quant.rounding import AverageRounding
from tests.backends.integer.test_executor import build
from tests.reference import operators, requant
from tests.reference.exact_operators import EXACT_OPERATORS
from tests.reference.maker import Maker, check

MODES = tuple(RequantMode)
ROUNDINGS = [str(rounding) for rounding in AverageRounding]
CONVOLUTIONS: list[tuple[int, int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
    # channels, filters, groups, kernel, stride, padding (top, left, bottom, right), dilation
    (3, 4, 1, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (4, 4, 4, (3, 2), (2, 1), (0, 2, 1, 0), (1, 1)),
    (4, 6, 2, (2, 3), (1, 2), (2, 0, 0, 2), (2, 1)),
    (2, 8, 2, (1, 1), (3, 3), (0, 0, 0, 0), (1, 1)),
    (3, 2, 1, (3, 3), (2, 2), (3, 3, 3, 3), (2, 2)),
    (4, 6, 2, (3,), (2,), (2, 1), (2,)),
    (3, 3, 3, (2,), (1,), (0, 1), (1,)),
    (2, 4, 1, (2, 1, 3), (1, 2, 1), (0, 1, 1, 1, 0, 2), (1, 1, 2)),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", range(len(CONVOLUTIONS)))
@pytest.mark.parametrize("batch", [1, 3])
def test_convolution(case: int, mode: RequantMode, batch: int) -> None:
    channels, filters, groups, kernel, stride, padding, dilation = CONVOLUTIONS[case]
    make = Maker(case * 7 + batch, mode)
    dtype = make.random.choice([DType.I8, DType.U8])
    x = make.input((batch, channels, *(7, 6, 5)[: len(kernel)]), dtype)
    weight = torch.randint(-127, 128, (filters, channels // groups, *kernel), generator=make.generator)
    bias = torch.randint(-(2**14), 2**14, (filters,), generator=make.generator).to(torch.int32)
    axis = make.random.choice([None, 0])
    params = QuantParams((0.01,) * (1 if axis is None else filters), (0,) * (1 if axis is None else filters), axis)
    operands = [x, make.leaf(weight.to(torch.int8), params), make.leaf(bias, params)]
    operands += make.multiplier(1 if axis is None else filters, -11, -6)
    geometry: dict[str, Attribute] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    make.apply(f"int_conv{len(kernel)}d", operands, geometry)
    make.check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", ["int_conv2d", "int_conv1d", "int_conv_transpose2d", "int_linear"])
@pytest.mark.parametrize("block", [1, 3, 5, 8])
def test_weights_with_a_factor_per_block_of_inputs(op: str, mode: RequantMode, block: int) -> None:
    """Blocks that divide the inputs, that do not, and one that holds them all."""
    make = Maker(block, mode)
    rank = {"int_conv1d": 1, "int_linear": 0}.get(op, 2)
    x = make.input((2, *([8, 4, 3][: rank + 1])))
    axis = 1 if "transpose" in op else 0
    sizes = (8, 6) if axis else (6, 8)
    codes = torch.randint(-7, 8, (*sizes, *(3, 2)[:rank]), generator=make.generator).to(torch.int8)
    factors = torch.randint(1, 16, (6, -(-8 // block)), generator=make.generator).to(torch.uint8)
    params, wide = (QuantParams((0.01,) * 6, (0,) * 6, place) for place in (axis, 0))
    leaf = make.leaf(codes, params, DType.I4)
    attributes: dict[str, Attribute] = {"axis": axis, "block": block}
    types = [TensorType(DType.I16, tuple(codes.shape), params)]
    expanded = make.graph.append("expand_blocks", [leaf, make.leaf(factors)], attributes, types=types).output
    bias = torch.randint(-(2**14), 2**14, (6,), generator=make.generator).to(torch.int32)
    make.apply(op, [x, expanded, make.leaf(bias, wide), *make.multiplier(6, -11, -6)], {})
    make.check()


TRANSPOSED: list[
    tuple[int, int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
] = [
    # channels, filters, groups, kernel, stride, padding, output padding, dilation
    (3, 4, 1, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    (4, 4, 4, (2, 3), (2, 1), (0, 1), (1, 0), (1, 1)),
    (4, 6, 2, (2, 2), (3, 2), (1, 0), (0, 0), (1, 2)),
    (2, 3, 1, (3,), (2,), (1,), (1,), (1,)),
    (2, 2, 2, (2, 2, 1), (1, 2, 1), (0, 1, 0), (0, 1, 0), (1, 1, 1)),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", range(len(TRANSPOSED)))
def test_transposed_convolution(case: int, mode: RequantMode) -> None:
    channels, filters, groups, kernel, stride, padding, extra, dilation = TRANSPOSED[case]
    make = Maker(case, mode)
    x = make.input((2, channels, *(4, 3, 3)[: len(kernel)]))
    weight = torch.randint(-127, 128, (channels, filters // groups, *kernel), generator=make.generator)
    bias = torch.randint(-(2**14), 2**14, (filters,), generator=make.generator).to(torch.int32)
    count = filters if groups == 1 else 1
    params = QuantParams((0.01,) * count, (0,) * count, 1 if groups == 1 else None)
    wide = QuantParams((0.01,) * count, (0,) * count, 0 if groups == 1 else None)
    operands = [x, make.leaf(weight.to(torch.int8), params), make.leaf(bias, wide), *make.multiplier(count, -11, -6)]
    geometry: dict[str, Attribute] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    make.apply(f"int_conv_transpose{len(kernel)}d", operands, {**geometry, "output_padding": extra})
    make.check()


@pytest.mark.parametrize("mode", MODES)
def test_linear_near_the_ends_of_the_accumulator(mode: RequantMode) -> None:
    make = Maker(3, mode)
    x = make.input((2, 9))
    weight = torch.randint(-127, 128, (5, 9), generator=make.generator).to(torch.int8)
    bias = torch.tensor([2**31 - 400_000, -(2**31) + 400_000, 2**24 + 1, -3, 0], dtype=torch.int32)
    params = QuantParams((0.01,) * 5, (0,) * 5, 0)
    operands = [x, make.leaf(weight, params), make.leaf(bias, params), *make.multiplier(5, -26, -8)]
    make.apply("int_linear", operands, {})
    make.check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["int_conv2d", "int_conv_transpose1d", "int_linear"])
@pytest.mark.parametrize("sides", [("qmin",), ("qmax",), ("qmin", "qmax")])
def test_limits_per_channel(mode: RequantMode, kind: str, sides: tuple[str, ...]) -> None:
    make = Maker(len(sides), mode)
    dtype = make.random.choice([DType.I8, DType.U8, DType.I16])
    shape = {"int_conv2d": (2, 4, 5, 6), "int_conv_transpose1d": (2, 4, 5), "int_linear": (2, 3, 4)}[kind]
    kernel = {"int_conv2d": (6, 2, 3, 2), "int_conv_transpose1d": (4, 3, 2), "int_linear": (6, 4)}[kind]
    weight = torch.randint(-127, 128, kernel, generator=make.generator).to(torch.int8)
    bias = torch.randint(-(2**14), 2**14, (6,), generator=make.generator).to(torch.int32)
    params = QuantParams((0.01,), (0,))
    x = make.input(shape)
    operands = [x, make.leaf(weight, params), make.leaf(bias, params), *make.multiplier(1, -4, -3)]
    low, high = dtype.limits
    middle = (low + high) // 2
    limits: dict[str, Attribute] = {
        "qmin": tuple(make.random.randint(low, middle) for _ in range(6)),
        "qmax": tuple(make.random.randint(middle, high) for _ in range(6)),
    }
    given: dict[str, Attribute] = {side: limits[side] for side in sides}
    groups: dict[str, Attribute] = {} if kind == "int_linear" else {"groups": 2}
    node = make.apply(kind, operands, {**groups, **given}, dtype)
    codes = make.check()[node.name]
    axis = 2 if kind == "int_linear" else 1
    for side, ends in (("qmin", codes.min), ("qmax", codes.max)):
        if side in sides:
            others = tuple(i for i in range(codes.ndim) if i != axis)
            reached = zip(ends(axis=others).tolist(), limits[side], strict=True)  # type: ignore[arg-type]  # a tuple
            assert any(code == limit for code, limit in reached), "the limits clip some results"


@pytest.mark.parametrize("dtype", [DType.I8, DType.U8, DType.I16])
@pytest.mark.parametrize("axis", [1, 3])
def test_clamp_of_codes(dtype: DType, axis: int) -> None:
    make = Maker(axis)
    x = make.input((2, 3, 4, 5), dtype)
    low, high = dtype.limits
    codes = [sorted(make.random.randint(low, high) for _ in range(2)) for _ in range(x.type.shape[axis])]
    limits: dict[str, Attribute] = {"qmin": tuple(a for a, _ in codes), "qmax": tuple(b for _, b in codes)}
    make.requantized("int_clamp", [x], {"axis": axis, **limits}, dtype, like=x)
    make.check()
    one_sided = Maker(axis)
    x = one_sided.input((2, 3, 4, 5), dtype)
    one_sided.requantized("int_clamp", [x], {"axis": axis, "qmin": low, "qmax": limits["qmax"]}, dtype, like=x)
    one_sided.check()


def test_a_clamp_of_codes_keeps_the_grid() -> None:
    make = Maker(1)
    x = make.input((2, 3))
    make.requantized("int_clamp", [x], {"axis": 1}, DType.I8)
    with pytest.raises(GraphError, match="the result of a clamp of codes has another grid"):
        make.check()


SHAPES = [((2, 3, 4), (2, 3, 4)), ((2, 3, 1), (2, 3, 4)), ((2, 3, 4), (2, 1, 4)), ((4,), (2, 3, 4)), ((1, 1), (2, 3))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_addition(mode: RequantMode, shapes: tuple[tuple[int, ...], tuple[int, ...]], seed: int) -> None:
    make = Maker(seed, mode)
    a, b = (make.input(shape) for shape in shapes)
    attributes: dict[str, Attribute] = {"shift": 20, "offset": None, "scalar_left_offset": None, "subtract": seed == 2}
    for side in ("left", "right", "out"):
        attributes[f"{side}_multiplier"] = attributes[f"{side}_exponent"] = None
    if mode is RequantMode.FLOAT32_RNE:
        for key in ("left_multiplier", "right_multiplier", "offset", "scalar_left_offset"):
            value = make.random.choice([0.5, 0.25, make.random.uniform(-2, 2)])
            attributes[key] = float(torch.tensor(value, dtype=torch.float32))
    else:
        for side, low, high in (("left", -2.0, 0.0), ("right", -2.0, 0.0), ("out", -20.0, -18.0)):
            real = make.random.choice([2.0**low, 2.0 ** make.random.uniform(low, high)])
            attributes.update(make.scalar(side, real))
    make.apply("int_add", [a, b], attributes)
    make.check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shapes", SHAPES)
def test_multiplication(mode: RequantMode, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    make = Maker(5, mode)
    a, b = (make.input(shape, make.random.choice([DType.I8, DType.U8, DType.I16])) for shape in shapes)
    make.apply("int_mul", [a, b], make.scalar("product", 2.0**-7))
    make.check()


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("op", ["maximum", "minimum"])
@pytest.mark.parametrize("dtype", [DType.I8, DType.U8, DType.I16])
def test_extremes(op: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: DType) -> None:
    make = Maker(len(op) + len(shapes[1]))
    a = make.input(shapes[0], dtype)
    b = make.input(shapes[1], dtype, a.type.quant)
    make.graph.set_outputs([make.graph.append(op, [a, b]).output])
    make.check()


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
@pytest.mark.parametrize("exact", [True, False])
def test_elementwise_operators_in_float32(
    operation: str, shapes: tuple[tuple[int, ...], tuple[int, ...]], exact: bool
) -> None:
    """On scales in simple ratios, where many results are ties, and on others."""
    make = Maker(len(operation) + len(shapes[0]))
    grids = [
        QuantParams((0.25 if exact else make.random.uniform(0.01, 0.1),), (make.random.randint(-100, 100),))
        for _ in range(3)
    ]
    grids[2] = QuantParams(
        (float(torch.tensor(grids[2].scale[0] * (2 if exact else 0.3)).float()),), grids[2].zero_point
    )
    a, b = (make.input(shape, DType.I8, quant) for shape, quant in zip(shapes, grids, strict=False))
    make.elementwise_float32(operation, a, b, grids[2])
    make.check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("axes", "keepdim"), [((2, 3), True), ((2, 3), False), ((1,), False), ((3, 1), True)])
def test_mean(mode: RequantMode, axes: tuple[int, ...], keepdim: bool) -> None:
    make = Maker(len(axes), mode)
    x = make.input((2, 3, 4, 5))
    make.apply("int_mean", [x, *make.multiplier(1, -5, -1)], {"axes": axes, "keepdim": keepdim})
    make.check()


@given(data=st.data())
@settings(max_examples=60)
def test_average_pooling(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    make = Maker(data.draw(st.integers(0, 999)), RequantMode.SINGLE)
    x = make.input((1, 2, data.draw(st.integers(3, 7)), data.draw(st.integers(3, 7))))
    attributes: dict[str, Attribute] = {
        "kernel": kernel,
        "stride": data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": (data.draw(st.integers(0, kernel[0] // 2)), data.draw(st.integers(0, kernel[1] // 2))),
        "ceil_mode": data.draw(st.booleans()),
        "count_include_pad": data.draw(st.booleans()),
        "divisor_override": data.draw(st.sampled_from([None, 3, 8])),
        "rounding": data.draw(st.sampled_from(ROUNDINGS)),
    }
    make.requantized("int_avg_pool2d", [x], attributes, DType.I8, like=x)
    make.check()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_resampling(rounding: str) -> None:
    make = Maker(4, RequantMode.SINGLE)
    x = make.input((2, 2, 5, 3))
    rows, columns = (
        torch.randint(0, 4, (size, axis), generator=make.generator).to(torch.int32) + 1
        for size, axis in ((7, 5), (2, 3))
    )
    divisor = torch.outer(rows.sum(1), columns.sum(1)).to(torch.int32)
    operands = [x, *map(make.leaf, (rows, columns, divisor))]
    make.requantized("int_resample2d", operands, {"rounding": rounding, "function": "resize"}, DType.I8, like=x)
    make.check()


@given(data=st.data())
@settings(max_examples=40)
def test_max_pooling(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    make = Maker(data.draw(st.integers(0, 999)), RequantMode.SINGLE)
    x = make.input((2, 1, data.draw(st.integers(5, 8)), data.draw(st.integers(5, 8))))
    attributes: dict[str, Attribute] = {
        "kernel": kernel,
        "stride": data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": (data.draw(st.integers(0, kernel[0] // 2)), data.draw(st.integers(0, kernel[1] // 2))),
        "dilation": data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "ceil_mode": data.draw(st.booleans()),
    }
    make.graph.set_outputs([make.graph.append("max_pool2d", [x], attributes).output])
    make.check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtypes", [(DType.I8, DType.I16), (DType.I16, DType.I8), (DType.U8, DType.I8)])
def test_rescale(mode: RequantMode, dtypes: tuple[DType, DType]) -> None:
    make = Maker(1, mode)
    x = make.input((3, 50), dtypes[0])
    exponent = 7 if dtypes[1] is DType.I16 else -7 if dtypes[0] is DType.I16 else -1
    make.apply("rescale", [x, *make.multiplier(1, exponent - 0.9, exponent)], {}, dtypes[1])
    make.check()


def test_lookup() -> None:
    make = Maker(0, RequantMode.SINGLE)
    x = make.input((2, 128))
    table = make.leaf(torch.randint(-128, 128, (256,), generator=make.generator).to(torch.int8))
    make.requantized("lookup", [x, table], {"offset": -128, "function": "tanh"}, DType.I8)
    make.check()


MOVEMENTS: list[tuple[str, int, dict[str, Attribute]]] = [
    ("reshape", 1, {"shape": (2, 60)}),
    ("reshape", 1, {"shape": (2, 12, 5, 1)}),
    ("permute", 1, {"axes": (0, 3, 1, 2)}),
    ("permute", 1, {"axes": (3, 2, 1, 0)}),
    ("concat", 3, {"axis": 1}),
    ("concat", 2, {"axis": 3}),
    ("slice", 1, {"axis": 1, "start": 1, "stop": 3, "step": 1}),
    ("slice", 1, {"axis": 3, "start": 0, "stop": 5, "step": 2}),
    ("gather", 1, {"axis": 1, "indices": (2, 0, 0, 1)}),
    ("gather", 1, {"axis": 3, "indices": (4, 3, 2, 1, 0)}),
    ("pad", 1, {"pad": (0, 0, 1, 2, 0, 0, 0, 3), "value": -7.0}),
    ("pad", 1, {"pad": (0, 0, -1, 2, 0, 0, 1, -3), "value": 5.0}),
]


@pytest.mark.parametrize("case", range(len(MOVEMENTS)))
def test_movement(case: int) -> None:
    op, count, attributes = MOVEMENTS[case]
    make = Maker(case, RequantMode.SINGLE)
    first = make.input((2, 3, 4, 5))
    operands = [first, *(make.input((2, 3, 4, 5), quant=first.type.quant) for _ in range(count - 1))]
    make.graph.set_outputs([make.graph.append(op, operands, attributes).output])
    make.check()


@pytest.mark.parametrize("target", ["int8_dsp", "int8_dsp_per_channel", "ort_cpu"])
def test_a_compiled_network(target: str) -> None:
    graph = build("mixed", target).main
    check(graph, [torch.randn(1, 3, 33, 29, generator=torch.Generator().manual_seed(4))])


def test_every_integer_operator_has_a_reference() -> None:
    """All but `call`, which runs a float graph."""
    integer = {name for name, item in known_ops().items() if Stage.INTEGER in item.stages and not item.has(Trait.LEAF)}
    integer -= {"call"}
    assert {name for name in integer if not name.startswith("test_")} == {*operators.OPERATORS, *EXACT_OPERATORS}


@pytest.mark.parametrize("module", [operators, requant])
def test_the_reference_imports_nothing_of_ours(module: Any) -> None:  # a module
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    allowed = {"__future__", "collections.abc", "dataclasses", "fractions", "itertools", "math", "typing"}
    assert names <= allowed | {"tests.reference.requant"}
