"""Random geometry, element types, zero points and multipliers against the plain loops; numbers at the edges of int32."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Value
from qcompiler.ir.types import DType, QuantParams, TensorType
from qcompiler.quant.requant import RequantMode
from qcompiler.quant.rounding import AverageRounding, Rounding
from tests.reference.maker import CODES, Maker, expected_by_loops
from tests.reference.requant import half_even, reference_float32

WIDE_MODES = [mode for mode in RequantMode if mode.form.significand_bits == 31]
NARROW_MODES = [mode for mode in RequantMode if mode.form.significand_bits == 15]
SHIFT_MODES = [mode for mode in RequantMode if mode.is_shift]
ROUNDINGS = [str(rounding) for rounding in Rounding]
AVERAGE_ROUNDINGS = [str(rounding) for rounding in AverageRounding]
UNIT = QuantParams((1.0,), (0,))
MODES = st.sampled_from(RequantMode)
DTYPES = st.sampled_from(sorted(CODES))


def weight_and_bias(make: Maker, draw: Any, shape: tuple[int, ...], axis: int, filters: int) -> tuple[list[Value], int]:
    """A weight with zero points, and a bias; and how many multipliers there are."""
    dtype = draw(st.sampled_from([DType.I4, DType.I8, DType.U8]))
    low, high = CODES[dtype]
    codes = make.codes(shape, dtype)
    channels = shape[axis] if draw(st.booleans()) else 1
    zeros = tuple(draw(st.sampled_from([0, 0, low, high])) for _ in range(channels))
    params = QuantParams((0.01,) * channels, zeros, axis if channels > 1 else None)
    bias = torch.randint(-(2**14), 2**14, (filters,), generator=make.generator).to(torch.int32)
    return [make.leaf(codes, params, dtype), make.leaf(bias)], filters if channels == filters else 1


def spread(make: Maker, operands: list[Value], taps: int, count: int, out: DType) -> list[Value]:
    """Multipliers that spread the accumulators over the codes of the result, and somewhat beyond."""
    x, weight = (CODES[value.type.dtype] for value in operands[:2])
    largest = math.sqrt(taps) * (x[1] - x[0]) * (weight[1] - weight[0]) / 4 + 2**13
    high = math.log2((CODES[out][1] - CODES[out][0]) / largest)
    # The two-stage modes shift left where the multiplier is above 1: those have a test of their own.
    return make.multiplier(count, min(high, 0.0) - 3, min(high, 0.0))


@given(data=st.data())
@settings(max_examples=90)
def test_convolutions(data: st.DataObject) -> None:
    make = Maker(data.draw(st.integers(0, 9999)), data.draw(MODES))
    rank = data.draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups, per_group, rows = data.draw(st.sampled_from([(1, 3, 2), (2, 2, 1), (3, 1, 1), (2, 1, 2), (1, 1, 1)]))
    kernel, stride, dilation = (tuple(data.draw(st.integers(1, most)) for _ in range(rank)) for most in (3, 3, 2))
    padding = tuple(data.draw(st.integers(0, 3)) for _ in range(2 * rank))
    size = tuple(
        data.draw(st.integers(max(1, d * (k - 1) + 1 - begin - end), 5))
        for d, k, begin, end in zip(dilation, kernel, padding[:rank], padding[rank:], strict=True)
    )
    x = make.input((data.draw(st.sampled_from([1, 3])), groups * per_group, *size), data.draw(DTYPES))
    filters = groups * rows
    parameters, count = weight_and_bias(make, data.draw, (filters, per_group, *kernel), 0, filters)
    out = data.draw(DTYPES)
    operands = [x, *parameters]
    operands += spread(make, operands, per_group * math.prod(kernel), count, out)
    geometry: dict[str, Attribute] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    make.apply(f"int_conv{rank}d", operands, geometry, out)
    make.check()


@given(data=st.data())
@settings(max_examples=40)
def test_transposed_convolutions(data: st.DataObject) -> None:
    make = Maker(data.draw(st.integers(0, 9999)), data.draw(MODES))
    rank = data.draw(st.sampled_from([1, 2, 2, 3]))
    groups, columns, per_group = data.draw(st.sampled_from([(1, 3, 2), (2, 2, 1), (3, 1, 1), (2, 1, 2)]))
    kernel, stride, dilation = (tuple(data.draw(st.integers(1, most)) for _ in range(rank)) for most in (3, 3, 2))
    extra = tuple(data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    size = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    spans = [
        (n - 1) * s + d * (k - 1) + e + 1 for n, s, d, k, e in zip(size, stride, dilation, kernel, extra, strict=True)
    ]
    padding = tuple(data.draw(st.integers(0, min(2, (span - 1) // 2))) for span in spans)
    x = make.input((data.draw(st.sampled_from([1, 2])), groups * columns, *size), data.draw(DTYPES))
    filters = groups * per_group
    shape = (groups * columns, per_group, *kernel)
    parameters, count = weight_and_bias(make, data.draw, shape, 1, filters)
    out = data.draw(DTYPES)
    operands = [x, *parameters]
    operands += spread(make, operands, columns * math.prod(kernel), count, out)
    geometry: dict[str, Attribute] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    make.apply(f"int_conv_transpose{rank}d", operands, {**geometry, "output_padding": extra}, out)
    make.check()


@given(data=st.data())
@settings(max_examples=40)
def test_linear_layers_of_any_rank(data: st.DataObject) -> None:
    make = Maker(data.draw(st.integers(0, 9999)), data.draw(MODES))
    batch = tuple(data.draw(st.lists(st.integers(1, 3), max_size=3)))
    features, filters = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    x = make.input((*batch, features), data.draw(DTYPES))
    parameters, count = weight_and_bias(make, data.draw, (filters, features), 0, filters)
    out = data.draw(DTYPES)
    operands = [x, *parameters]
    operands += spread(make, operands, features, count, out)
    make.apply("int_linear", operands, {}, out)
    make.check()


EDGES = sorted(
    {0, -(2**31), 2**31 - 1, -(2**31) + 1}
    | {sign * (2**power + near) for power in (1, 7, 8, 15, 23, 24, 25, 30) for near in (-1, 0, 1) for sign in (1, -1)}
)
"""Accumulators where something changes: ends of int32, and of what float32 holds."""


def requantized_edges(mode: RequantMode, parts: list[torch.Tensor], shift: int = 0) -> tuple[Maker, Any]:
    """A linear layer of weight 0 whose biases, and so its accumulators, are the edges divided by 2^shift."""
    make = Maker(0, mode)
    x = make.input((1, 1))
    edges = torch.tensor(sorted({edge >> shift for edge in EDGES}))
    bias = edges.repeat(len(parts[0])).to(torch.int32)
    weight = make.leaf(torch.zeros(len(bias), 1, dtype=torch.int8), QuantParams((0.01,), (0,)))
    parts = [part.repeat_interleave(len(edges)) for part in parts]
    node = make.apply("int_linear", [x, weight, make.leaf(bias), *map(make.leaf, parts)], {}, DType.I16)
    return make, node


@pytest.mark.parametrize("mode", WIDE_MODES)
def test_every_multiplier_meets_accumulators_at_the_edges_of_int32(mode: RequantMode) -> None:
    significands = [2**30, 2**30 + 1, 1_518_500_250, 2**31 - 2, 2**31 - 1]
    pairs = [(0, 0), *itertools.product(significands, range(-31, 1 if mode is not RequantMode.SINGLE else 31))]
    parts = [
        torch.tensor([m for m, _ in pairs], dtype=torch.int32),
        torch.tensor([e for _, e in pairs], dtype=torch.int8),
    ]
    make, node = requantized_edges(mode, parts)
    values = make.check()
    others = [other for other in WIDE_MODES if other is not mode]
    found = values[node.name].reshape(-1).tolist()
    for other in others if mode is not RequantMode.SINGLE else []:
        assert found != expected_by_loops(node, values, mode=str(other)), "cases that do not distinguish the modes"


@pytest.mark.parametrize("mode", NARROW_MODES)
def test_every_narrow_multiplier_meets_them(mode: RequantMode) -> None:
    significands = [1, 2**14, 2**14 + 1, 23_171, 2**15 - 2, 2**15 - 1]
    exponents = range(mode.form.min_exponent, mode.form.max_exponent + 1)
    pairs = [(0, 0), *itertools.product(significands, exponents)]
    parts = [
        torch.tensor([m for m, _ in pairs], dtype=torch.int16),
        torch.tensor([e for _, e in pairs], dtype=torch.int8),
    ]
    make, node = requantized_edges(mode, parts)
    values = make.check()
    if mode is RequantMode.NVDLA:
        halves_up = expected_by_loops(node, values, mode="tosa16")
        assert values[node.name].reshape(-1).tolist() != halves_up, "cases that do not distinguish the modes"


@pytest.mark.parametrize("mode", SHIFT_MODES)
def test_every_shift_meets_them(mode: RequantMode) -> None:
    exponents = torch.arange(-62, 31, dtype=torch.int8)  # as far as an accumulator of 32 bits stays in 62
    make, node = requantized_edges(mode, [exponents])
    values = make.check()
    for other in SHIFT_MODES:
        if other is not mode:
            others = expected_by_loops(node, values, mode=str(other))
            assert values[node.name].reshape(-1).tolist() != others, "cases that do not distinguish the modes"


@pytest.mark.parametrize("mode", [RequantMode.DOUBLE, RequantMode.DOUBLE_HALF_UP])
def test_multipliers_above_one_shift_left_first(mode: RequantMode) -> None:
    for exponent in (1, 2, 8, 17):
        significand = torch.tensor([2**30, 1_518_500_250, 2**31 - 1], dtype=torch.int32)
        parts = [significand, torch.full((3,), exponent, dtype=torch.int8)]
        requantized_edges(mode, parts, shift=exponent)[0].check()


def test_float32_multipliers_meet_accumulators_at_the_edges_of_int32() -> None:
    powers = [2.0**power for power in range(-40, 8)]
    multipliers = torch.tensor([0.0, *powers, *(p * 1.3 for p in powers), *(p * (1 + 2**-23) for p in powers)])
    requantized_edges(RequantMode.FLOAT32_RNE, [multipliers.to(torch.float32)])[0].check()


@pytest.mark.parametrize("mode", RequantMode)
@pytest.mark.parametrize("zero_point", [-128, -1, 0, 127])
def test_ties_of_both_signs(mode: RequantMode, zero_point: int) -> None:
    """All codes times one quarter: of four steps one is a tie, and two more become one after the first stage."""
    make = Maker(1, mode)
    codes = torch.arange(-128, 128).to(torch.int8)
    x = make.input((256,), quant=QuantParams((0.1,), (zero_point,)), codes=codes)
    node = make.apply("rescale", [x, *make.multiplier(1, -2.0, -2.0)], {"qmin": -32768, "qmax": 32767}, DType.I16)
    node.output.type = TensorType(DType.I16, (256,), QuantParams((0.1,), (3,)))
    values = make.check()
    steps = codes.to(torch.int64) - zero_point
    first = (steps + 1) // 2
    half_up, half_away = (steps + 2) // 4, torch.sign(steps) * ((steps.abs() + 2) // 4)
    by_hand = {
        RequantMode.SINGLE: half_up,
        RequantMode.TOSA16: half_up,
        RequantMode.S64_16: half_up,
        RequantMode.NVDLA: half_away,
        RequantMode.POW2_SHIFT: half_up,
        RequantMode.POW2_SHIFT_HALF_AWAY: half_away,
        RequantMode.POW2_SHIFT_NEAREST_EVEN: torch.round(steps / 4).to(torch.int64),
        RequantMode.POW2_SHIFT_FLOOR: steps // 4,
        RequantMode.POW2_SHIFT_TRUNCATE: torch.trunc(steps / 4).to(torch.int64),
        RequantMode.DOUBLE: torch.sign(first) * ((first.abs() + 1) // 2),
        RequantMode.DOUBLE_HALF_UP: (first + 1) // 2,
        RequantMode.FLOAT32_RNE: torch.round(steps / 4).to(torch.int64),
    }
    assert values[node.name].tolist() == (by_hand[mode] + 3).tolist()


@given(data=st.data())
@settings(max_examples=60)
def test_binary_operators_of_any_element_type(data: st.DataObject) -> None:
    make = Maker(data.draw(st.integers(0, 9999)), data.draw(MODES))
    rank = data.draw(st.integers(1, 4))
    sizes = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    shapes = [tuple(data.draw(st.sampled_from([1, size])) for size in sizes) for _ in range(2)]
    shapes[0] = shapes[0][data.draw(st.integers(0, rank - 1)) :]
    a, b = (make.input(shape, data.draw(DTYPES)) for shape in shapes)
    out = data.draw(DTYPES)
    if data.draw(st.integers(0, 3)) == 0:
        scale = float(torch.tensor(2.0 ** data.draw(st.floats(-8, 2))))
        make.elementwise_float32(
            data.draw(st.sampled_from(["add", "sub", "mul"])), a, b, QuantParams((scale,), (3,)), out
        )
        make.check()
        return
    steps = [max(abs(code - value.type.quant.zero_point[0]) for code in CODES[value.type.dtype]) for value in (a, b)]  # type: ignore[union-attr]  # given by the maker
    if data.draw(st.booleans()):
        # Two wide operands at most: what lowering refuses for the two-stage modes has no meaning there.
        if steps[0] * steps[1] >= 2**31:
            return
        high = math.log2(CODES[out][1] / (steps[0] * steps[1]))
        attributes = scalar_multiplier(make, "product", min(high, -1.0) - 2, min(high, -1.0))
        make.apply("int_mul", [a, b], attributes, out)
    else:
        make.apply("int_add", [a, b], sum_attributes(make, max(steps), out, data.draw(st.booleans())), out)
    make.check()


def scalar_multiplier(make: Maker, name: str, low: float, high: float) -> dict[str, Attribute]:
    """A multiplier as attributes."""
    return make.scalar(name, make.random.choice([2.0 ** make.random.uniform(low, high), 2.0 ** round(low)]))


def sum_attributes(make: Maker, largest: int, out: DType, subtract: bool) -> dict[str, Attribute]:
    """Attributes of an addition of steps up to `largest`."""
    base: dict[str, Attribute] = {"shift": 0, "offset": None, "scalar_left_offset": None, "subtract": subtract}
    if make.mode is RequantMode.FLOAT32_RNE:
        for key in ("left_multiplier", "right_multiplier", "offset", "scalar_left_offset"):
            base[key] = float(torch.tensor(make.random.choice([0.5, 0.25, make.random.uniform(-2, 2)])))
        return {**base, "left_exponent": None, "right_exponent": None, "out_multiplier": None, "out_exponent": None}
    shift = min(20, 30 - largest.bit_length())
    high = min(math.log2(CODES[out][1] / (largest << shift)), -1.0)
    return {
        **base,
        "shift": shift,
        **scalar_multiplier(make, "left", -4.0, -1.0),
        **scalar_multiplier(make, "right", -1.0, -1.0),
        **scalar_multiplier(make, "out", high - 1, high),
    }


@given(data=st.data())
@settings(max_examples=30)
def test_means_over_any_axes(data: st.DataObject) -> None:
    make = Maker(data.draw(st.integers(0, 9999)), data.draw(MODES))
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    out = data.draw(DTYPES)
    x = make.input(shape, data.draw(DTYPES))
    count = math.prod(shape[axis] for axis in axes)
    width = (CODES[out][1] - CODES[out][0]) / (CODES[x.type.dtype][1] - CODES[x.type.dtype][0])
    high = min(math.log2(width / count), 0.0)
    attributes: dict[str, Attribute] = {"axes": axes, "keepdim": data.draw(st.booleans())}
    make.apply("int_mean", [x, *make.multiplier(1, high - 2, high)], attributes, out)
    make.check()


@pytest.mark.parametrize("dtype", sorted(CODES))
@pytest.mark.parametrize("rounding", AVERAGE_ROUNDINGS)
def test_averages_of_any_element_type(dtype: DType, rounding: str) -> None:
    for seed in range(4):
        make = Maker(seed)
        x = make.input((3, 2, 5, 6), dtype)
        attributes: dict[str, Attribute] = {
            "kernel": (2, 3 - seed % 2),
            "stride": (1 + seed % 2, 2),
            "padding": (seed % 2, 1),
            "ceil_mode": seed > 1,
            "count_include_pad": seed == 1,
            "rounding": rounding,
        }
        make.requantized("int_avg_pool2d", [x], attributes, dtype, like=x)
        make.check()


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", sorted(CODES))
def test_quantizers(rounding: str, dtype: DType) -> None:
    """Ties, their neighbours, subnormals, infinities and NaN, on scales where x / s is exact and where it is not."""
    low, high = CODES[dtype]
    for seed, scale in enumerate((0.25, 0.1, 2.0**-60, 1e30)):
        make = Maker(seed)
        scale = float(torch.tensor(scale))
        ties = (torch.cat([torch.arange(-40, 41), torch.tensor([low, high])]) + 0.5).to(torch.float64) * scale
        ties = ties.to(torch.float32)
        inf = torch.tensor(math.inf)
        odd = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 3e38, -3e38, 1e-45, -1e-45, 1e-38, -1e-38])
        numbers = torch.randn(60, generator=make.generator) * scale * (high - low) / 2
        data = torch.cat([ties, torch.nextafter(ties, inf), torch.nextafter(ties, -inf), odd, numbers]).reshape(1, -1)
        make.inputs.append(data)
        x = make.graph.add_input("x", TensorType(DType.F32, tuple(data.shape)))
        node = make.requantized("quantize", [x], {"rounding": rounding}, dtype)
        quant = make.quant(dtype)
        node.output.type = TensorType(dtype, tuple(data.shape), QuantParams((scale,), quant.zero_point))
        make.graph.set_outputs([make.graph.append("dequantize", [node.output]).output])
        values = make.check()
        found = values[node.name].reshape(-1).tolist()
        if scale == 0.25 and dtype in (DType.I8, DType.I16):
            for other in ROUNDINGS:
                same = found == expected_by_loops(node, values, rounding=other)
                assert same == (other == rounding), "cases that do not distinguish the roundings"


@given(
    scale=st.floats(2.0**-126, 2.0**100, width=32),
    zero_point=st.integers(-(2**15), 2**15 - 1),
    codes=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=20),
)
@settings(max_examples=50)
def test_dequantizers(scale: float, zero_point: int, codes: list[int]) -> None:
    make = Maker(0)
    quant = QuantParams((scale,), (zero_point,))
    x = make.input((len(codes),), DType.I16, quant, torch.tensor(codes, dtype=torch.int16))
    make.graph.set_outputs([make.graph.append("dequantize", [x]).output])
    make.check()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tables_with_a_row_per_channel(axis: int) -> None:
    make = Maker(axis)
    x = make.input((3, 4, 5))
    table = make.leaf(torch.randint(-128, 128, ((3, 4, 5)[axis], 256), generator=make.generator).to(torch.int8))
    attributes: dict[str, Attribute] = {"offset": -128, "function": "prelu", "axis": axis, "qmin": -128, "qmax": 127}
    make.requantized("lookup", [x, table], attributes, DType.I8)
    make.check()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tables_with_rows_that_channels_share(axis: int) -> None:
    make = Maker(axis)
    shape = (3, 4, 5)
    table = make.leaf(torch.randint(-128, 128, (2, 256), generator=make.generator).to(torch.int8))
    rows = make.leaf(torch.randint(0, 2, (shape[axis],), generator=make.generator).to(torch.int32))
    attributes: dict[str, Attribute] = {"offset": -128, "function": "silu", "axis": axis, "qmin": -128, "qmax": 127}
    make.requantized("lookup", [make.input(shape), table, rows], attributes, DType.I8)
    make.check()


@pytest.mark.parametrize("mode", RequantMode)
@pytest.mark.parametrize("dtype", sorted(CODES))
@pytest.mark.parametrize(("shape", "dims"), [((2, 3, 5), 1), ((2, 4, 3), 2), ((3, 1), 1), ((1, 2, 2, 9), 1)])
def test_layer_normalization(mode: RequantMode, dtype: DType, shape: tuple[int, ...], dims: int) -> None:
    make = Maker(dims, mode)
    x = make.input(shape, dtype)
    inner = shape[-dims:]
    weight = torch.randint(-(2**15) + 1, 2**15, inner, generator=make.generator).to(torch.int16)
    bias = torch.randint(-(2**30), 2**30, inner, generator=make.generator).to(torch.int32)
    count = math.prod(inner)
    fraction = (30 - (count - 1).bit_length()) // 2
    operands = [x, make.leaf(weight, UNIT), make.leaf(bias, UNIT), *make.multiplier(1, -27, -20)]
    make.apply("int_layer_norm", operands, {"epsilon": make.random.choice([0, 1, 12345]), "fraction": fraction})
    make.check()


@pytest.mark.parametrize("dtype", sorted(CODES))
def test_tables_of_any_element_type(dtype: DType) -> None:
    for seed, out in enumerate(sorted(CODES)):
        make = Maker(seed)
        low, high = CODES[dtype]
        offset = low + make.random.randint(0, 3)
        codes = make.codes((2, 3, 4, 5), dtype).clamp(min=offset)
        x = make.input((2, 3, 4, 5), dtype, codes=codes)
        table = make.leaf(make.codes((high - offset + 1,), out), dtype=out)
        make.requantized("lookup", [x, table], {"offset": offset, "function": "tanh"}, out)
        make.check()


@given(data=st.data())
@settings(max_examples=80)
def test_movements_of_any_rank(data: st.DataObject) -> None:
    make = Maker(data.draw(st.integers(0, 9999)))
    dtype = data.draw(DTYPES)
    low, high = CODES[dtype]
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    rank = len(shape)
    x = make.input(shape, dtype)
    operands, attributes, op = [x], dict[str, Attribute](), data.draw(st.sampled_from(MOVEMENTS))
    axis = data.draw(st.integers(0, rank - 1))
    match op:
        case "reshape":
            attributes["shape"] = tuple(data.draw(st.sampled_from([(math.prod(shape),), shape[::-1], (1, *shape)])))
        case "permute":
            attributes["axes"] = tuple(data.draw(st.permutations(range(rank))))
        case "concat":
            attributes["axis"] = axis
            for _ in range(data.draw(st.integers(0, 2))):
                other = (*shape[:axis], data.draw(st.integers(1, 3)), *shape[axis + 1 :])
                operands.append(make.input(other, dtype, x.type.quant))
        case "slice":
            start = data.draw(st.integers(0, shape[axis] - 1))
            stop = data.draw(st.integers(start + 1, shape[axis]))
            attributes = {"axis": axis, "start": start, "stop": stop, "step": data.draw(st.integers(1, 3))}
        case "gather":
            indices = data.draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=6))
            attributes = {"axis": axis, "indices": tuple(indices)}
        case _:
            begins = [data.draw(st.integers(1 - size, 2)) for size in shape]
            ends = [data.draw(st.integers(1 - size - min(b, 0), 2)) for size, b in zip(shape, begins, strict=True)]
            attributes = {"pad": (*begins, *ends), "value": float(data.draw(st.integers(low, high)))}
    make.graph.set_outputs([make.graph.append(op, operands, attributes).output])
    make.check()


MOVEMENTS = ("reshape", "permute", "concat", "slice", "gather", "pad")


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 2**40))
@settings(max_examples=200)
def test_the_reference_of_float32_is_that_of_the_machine(value: float, divisor: int) -> None:
    """The quotient, correctly rounded, against a division in float64 that is exact enough not to round twice."""
    exact = Fraction(value) / 2 ** (divisor % 140)
    machine = float(torch.tensor(float(exact), dtype=torch.float64).to(torch.float32))
    assert float(reference_float32(exact)) == machine
    assert half_even(Fraction(divisor, 2)) == round(Fraction(divisor, 2))
