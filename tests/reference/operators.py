"""Every integer operator as plain loops over Python integers, from its definition; shares nothing with what it tests.

A tensor is its sizes, its elements in row-major order, and its grid: real = scale * (code - zero_point).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tests.reference.requant import (
    ROUNDINGS,
    SHIFT_MODES,
    half_away,
    half_even,
    reference_float32,
    reference_mbqm,
    reference_requantize_float32,
)

Attributes = Mapping[str, Any]
Index = tuple[int, ...]


@dataclass
class Grid:
    """A tensor of integers, or of real numbers where the scale is 0."""

    shape: tuple[int, ...]
    data: list[Any]
    scale: float = 0.0
    zero_points: tuple[int, ...] = (0,)
    axis: int = 0

    @property
    def zero_point(self) -> int:
        """The only zero point."""
        (zero_point,) = self.zero_points
        return zero_point

    def at(self, index: Sequence[int]) -> Any:
        """The element at `index`."""
        position = 0
        for size, i in zip(self.shape, index, strict=True):
            assert 0 <= i < size
            position = position * size + i
        return self.data[position]

    def step(self, index: Sequence[int]) -> int:
        """The element without its zero point: the only one, or that of its place on the axis."""
        position = index[self.axis] if len(self.zero_points) > 1 else 0
        return int(self.at(index)) - self.zero_points[position]


def indices(shape: Sequence[int]) -> Iterator[Index]:
    """All indices in row-major order."""
    return itertools.product(*map(range, shape))


def fill(out: Grid, element: Callable[[Index], Any]) -> list[Any]:
    """The elements of the result."""
    return [element(index) for index in indices(out.shape)]


def clip(value: int, attributes: Attributes) -> int:
    """To the code limits, which every emitted operator carries."""
    return int(min(max(value, attributes["qmin"]), attributes["qmax"]))


def limits(attributes: Attributes, index: int) -> tuple[int, int]:
    """Lowest and highest code of channel `index`: each is one number for all, or one per channel."""
    low, high = (end[index] if isinstance(end, tuple) else end for end in (attributes["qmin"], attributes["qmax"]))
    return int(low), int(high)


def requantize(acc: int, multiplier: Any, exponent: Any, out: Grid, attributes: Attributes, index: int = 0) -> int:
    """An accumulator of channel `index` to a code."""
    low, high = limits(attributes, index)
    if attributes["mode"] == "f32_rne":
        return reference_requantize_float32(acc, float(multiplier), out.zero_point, low, high)
    if attributes["mode"] in SHIFT_MODES and exponent is None:
        multiplier, exponent = 0, multiplier  # the only operand
    scaled = reference_mbqm(acc, int(multiplier), int(exponent), attributes["mode"])
    return int(min(max(scaled + out.zero_point, low), high))


def channel(operands: Sequence[Grid], position: int, index: int) -> Any:
    """Entry `index` of a list that has one per channel, or one for all; None where the operand is absent."""
    if position >= len(operands):
        return None
    data = operands[position].data
    return data[index] if len(data) > 1 else data[0]


def int_conv(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """sum of (x - z_x) * (w - z_w) + b over channels and taps; what lies in the padding counts zero."""
    x, weight, bias = operands[:3]
    size = x.shape[2:]
    out_channels, per_group, *kernel = weight.shape
    begins = attributes["padding"][: len(size)]
    assert x.shape[1] == per_group * attributes["groups"]

    def element(index: Index) -> int:
        n, o, *position = index
        first = (o // (out_channels // attributes["groups"])) * per_group
        acc = int(bias.data[o])
        for c in range(per_group):
            for tap in indices(kernel):
                place = [
                    p * step - begin + t * apart
                    for p, step, begin, t, apart in zip(
                        position, attributes["stride"], begins, tap, attributes["dilation"], strict=True
                    )
                ]
                if all(0 <= at < length for at, length in zip(place, size, strict=True)):
                    acc += x.step((n, first + c, *place)) * weight.step((o, c, *tap))
        return requantize(acc, channel(operands, 3, o), channel(operands, 4, o), out, attributes, o)

    return fill(out, element)


def int_conv_transpose(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Each input pixel adds its weights to the output pixels at stride * position - padding + dilation * tap."""
    x, weight, bias = operands[:3]
    in_channels, per_group, *kernel = weight.shape
    sums = {index: int(bias.data[index[1]]) for index in indices(out.shape)}
    for n, c, *position in indices(x.shape):
        group = c // (in_channels // attributes["groups"])
        for o in range(per_group):
            for tap in indices(kernel):
                place = (
                    step * p - pad + apart * t
                    for step, p, pad, apart, t in zip(
                        attributes["stride"], position, attributes["padding"], attributes["dilation"], tap, strict=True
                    )
                )
                target = (n, group * per_group + o, *place)
                if target in sums:
                    sums[target] += x.step((n, c, *position)) * weight.step((c, o, *tap))

    def element(index: Index) -> int:
        o = index[1]
        return requantize(sums[index], channel(operands, 3, o), channel(operands, 4, o), out, attributes, o)

    return fill(out, element)


def int_linear(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """sum of (x - z_x) * (w - z_w) + b over the last axis."""
    x, weight, bias = operands[:3]

    def element(index: Index) -> int:
        *batch, o = index
        acc = int(bias.data[o])
        for k in range(weight.shape[1]):
            acc += x.step((*batch, k)) * weight.step((o, k))
        return requantize(acc, channel(operands, 3, o), channel(operands, 4, o), out, attributes, o)

    return fill(out, element)


def int_matmul(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """sum of (a - z_a) * (b - z_b) over the last axis of a and the last but one of b; the outer axes broadcast."""
    a, b = operands[:2]

    def element(index: Index) -> int:
        *outer, row, column = index
        left, right = (
            tuple(
                0 if size == 1 else i
                for size, i in zip(g.shape[:-2], outer[len(outer) - len(g.shape) + 2 :], strict=True)
            )
            for g in (a, b)
        )
        acc = sum(a.step((*left, row, k)) * b.step((*right, k, column)) for k in range(a.shape[-1]))
        return requantize(acc, channel(operands, 2, 0), channel(operands, 3, 0), out, attributes)

    return fill(out, element)


def int_softmax(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """table[max - x] over the sum of a row, for the elements of the mask; the formulas of each mode, number by number."""
    x, table, *masks = operands
    axis = attributes["axis"]

    def row_of(index: Index) -> list[Index]:
        return [(*index[:axis], j, *index[axis + 1 :]) for j in range(x.shape[axis])]

    def kept(index: Index) -> bool:
        return not masks or bool(masks[0].at(broadcast(masks[0], index)))

    def element(index: Index) -> int:
        if not kept(index):
            return clip(out.zero_point, attributes)
        row = [place for place in row_of(index) if kept(place)]
        largest = max(int(x.at(place)) for place in row)
        skipped = 513 if attributes["mode"] == "lut16" else 0
        entries = [table.data[skipped + min(largest - int(x.at(p)), len(table.data) - skipped - 1)] for p in row]
        steps = SOFTMAX[attributes["mode"]](entries[row.index(index)], entries, table.data, attributes)
        return clip(steps + out.zero_point, attributes)

    return fill(out, element)


def int_log_softmax(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """The distance from the largest code of a row and the logarithm of its sum, in steps, rounded once."""
    x, table, logarithms = operands
    axis, shift = attributes["axis"], attributes["shift"]

    def level(total: int) -> int:
        places = total.bit_length() - 31
        whole, part = divmod((total >> places) - 2**30, 2**22)
        first, second = logarithms.data[whole : whole + 2]
        rise = math.floor(Fraction((second - first) * part, 2**22))
        return int(places * logarithms.data[256] + first) + rise

    def element(index: Index) -> int:
        row = [int(x.at((*index[:axis], j, *index[axis + 1 :]))) for j in range(x.shape[axis])]
        total = sum(table.data[min(max(row) - code, len(table.data) - 1)] for code in row)
        steps = Fraction(
            -attributes["multiplier"] * (max(row) - row[index[axis]]) - (level(total) << attributes["rise"]), 2**shift
        )
        return clip(math.floor(steps + Fraction(1, 2)) + out.zero_point, attributes)

    return fill(out, element)


def softmax_by_division(entry: Any, row: Sequence[Any], table: Sequence[Any], attributes: Attributes) -> int:
    """entry / sum / scale, halves up."""
    return math.floor(Fraction(entry * attributes["numerator"], sum(row) << attributes["shift"]) + Fraction(1, 2))


def softmax_in_float32(entry: Any, row: Sequence[Any], table: Sequence[Any], attributes: Attributes) -> int:
    """Sums from the first to the last element, each rounded to float32."""
    total = Fraction(0)
    for item in row:
        total = float32(total + Fraction(item))
    return half_even(float32(float32(Fraction(entry) * attributes["numerator"]) / total))


def high_product(a: int, b: int) -> int:
    """a * b / 2^31, halves up."""
    return (a * b + 2**30) >> 31


def softmax_by_newton(entry: Any, row: Sequence[Any], table: Sequence[Any], attributes: Attributes) -> int:
    """The reciprocal of a sum in Q12.19 by three Newton steps."""
    total = sum(half_away(Fraction(item, 2**12)) for item in row)
    headroom = 32 - total.bit_length()
    half = (total << headroom) >> 1
    found = 1515870810 + high_product(half, -1010580540)
    for _ in range(3):
        found += 4 * high_product(found, 2**29 - high_product(half, found))
    product = high_product(min(2 * found, 2**31 - 1), entry)
    return half_away(Fraction(product, 2 ** (35 - headroom)))


def softmax_by_interpolation(entry: Any, row: Sequence[Any], table: Sequence[Any], attributes: Attributes) -> int:
    """The reciprocal of a sum in Q16.15 between two of 513 entries."""
    total = sum(row)
    headroom = 32 - total.bit_length()
    position = (((total << (headroom - 1)) + 2**13) >> 14) - 2**15 - 2**16
    whole, part = divmod(min(position, 2**15 - 1) + 2**15, 128)
    inverse = table[whole] + (((table[whole + 1] - table[whole]) * part + 64) >> 7)
    return min(math.floor(Fraction(entry * inverse, 2 ** (31 - headroom)) + Fraction(1, 2)), 2**15 - 1)


SOFTMAX: Mapping[str, Callable[[Any, Sequence[Any], Sequence[Any], Attributes], int]] = {
    "table": softmax_by_division,
    "f32": softmax_in_float32,
    "gemmlowp": softmax_by_newton,
    "lut16": softmax_by_interpolation,
}


def broadcast(operand: Grid, index: Index) -> Index:
    """The place of `operand` that stands for `index` of the result."""
    tail = index[len(index) - len(operand.shape) :]
    return tuple(0 if size == 1 else i for size, i in zip(operand.shape, tail, strict=True))


def float32(value: float | Fraction) -> Fraction:
    """Rounded to float32, as an exact number."""
    return reference_float32(Fraction(value))


def in_float32(
    operands: Sequence[Grid], attributes: Attributes, out: Grid, compute: Callable[[Fraction, Fraction], Fraction]
) -> list[Any]:
    """The real numbers of both operands, computed and divided by the scale of the result, each step rounded."""

    def element(index: Index) -> int:
        x, y = (float32(g.step(broadcast(g, index)) * Fraction(g.scale)) for g in operands)
        return clip(half_even(float32(float32(compute(x, y)) / Fraction(out.scale))) + out.zero_point, attributes)

    return fill(out, element)


def average(total: int | Fraction, count: int, rounding: str, zero_point: int) -> int:
    """The code of total / count, where `total` sums codes less their zero point; or that of the mean of raw codes."""
    mean = Fraction(total) / count
    if rounding == "rhaz_raw":
        return half_away(mean + zero_point)
    return ROUNDINGS[rounding](mean) + zero_point


def int_add(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Both operands on a common scale, added or subtracted, and requantized; or two fused multiply-adds in float32."""
    a, b = operands
    if attributes["mode"] == "f32":
        sign = -1 if attributes["subtract"] else 1
        return in_float32(operands, attributes, out, lambda x, y: x + sign * y)
    if attributes["mode"] != "f32_rne":

        def on_common_scale(operand: Grid, index: Index, side: str) -> int:
            step = operand.step(broadcast(operand, index)) << attributes["shift"]
            significand = attributes[f"{side}_multiplier"] or 0
            return reference_mbqm(step, significand, attributes[f"{side}_exponent"], attributes["mode"])

        def element(index: Index) -> int:
            left, right = on_common_scale(a, index, "left"), on_common_scale(b, index, "right")
            total = left - right if attributes["subtract"] else left + right
            significand = attributes["out_multiplier"] or 0
            return requantize(total, significand, attributes["out_exponent"], out, attributes)

        return fill(out, element)

    first, second = (a, attributes["left_multiplier"]), (b, attributes["right_multiplier"])
    offset = attributes["offset"]
    # A left operand that is spread along the innermost axis of more than one element changes places with the right.
    rank = len(out.shape)
    sizes = [(1,) * (rank - len(g.shape)) + g.shape for g in (a, b)]
    wide = [left for left, right in zip(*sizes, strict=True) if left > 1 or right > 1]
    if not wide or wide[-1] == 1:
        first, second, offset = second, first, attributes["scalar_left_offset"]

    def fused(index: Index) -> int:
        inner = float32(Fraction(second[0].at(broadcast(second[0], index))) * float32(second[1]) + float32(offset))
        outer = float32(Fraction(first[0].at(broadcast(first[0], index))) * float32(first[1]) + inner)
        return clip(half_even(outer), attributes)

    return fill(out, fused)


def int_mul(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """(a - z_a) * (b - z_b), requantized; in float32 the zero point is added before rounding."""
    a, b = operands
    if attributes["mode"] == "f32":
        return in_float32(operands, attributes, out, lambda x, y: x * y)

    def element(index: Index) -> int:
        product = a.step(broadcast(a, index)) * b.step(broadcast(b, index))
        if attributes["mode"] == "f32_rne":
            scaled = float32(float32(product) * float32(attributes["product_multiplier"]))
            return clip(half_even(float32(scaled + out.zero_point)), attributes)
        significand = attributes["product_multiplier"] or 0
        return requantize(product, significand, attributes["product_exponent"], out, attributes)

    return fill(out, element)


def int_mean(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """sum of (x - z_x) over whole axes; the division is in the multiplier, or separate for a power of two."""
    x = operands[0]
    axes = attributes["axes"]

    def element(index: Index) -> int:
        rest = iter(index)
        kept: list[range] = []
        for axis, size in enumerate(x.shape):
            if axis in axes:
                kept.append(range(size))
                if attributes["keepdim"]:
                    next(rest)
            else:
                i = next(rest)
                kept.append(range(i, i + 1))
        total = sum(x.step(place) for place in itertools.product(*kept))
        if attributes.get("divisor"):
            scaled = total * Fraction(2) ** channel(operands, 1, 0)
            return clip(average(scaled, attributes["divisor"], attributes["rounding"], out.zero_point), attributes)
        return requantize(total, channel(operands, 1, 0), channel(operands, 2, 0), out, attributes)

    return fill(out, element)


def int_avg_pool2d(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """The mean of each window as torch counts it, rounded as the target divides, on one grid."""
    (x,) = operands
    height, width = x.shape[2:]
    (kernel_h, kernel_w), (pad_h, pad_w) = attributes["kernel"], attributes["padding"]

    def element(index: Index) -> int:
        n, c, i, j = index
        begin_h, begin_w = i * attributes["stride"][0] - pad_h, j * attributes["stride"][1] - pad_w
        # A window that ceil_mode lets hang over is cut at the end of the padding.
        rows = range(begin_h, min(begin_h + kernel_h, height + pad_h))
        columns = range(begin_w, min(begin_w + kernel_w, width + pad_w))
        inside = [(r, s) for r in rows for s in columns if 0 <= r < height and 0 <= s < width]
        count = len(rows) * len(columns) if attributes["count_include_pad"] else len(inside)
        total = sum(x.step((n, c, r, s)) for r, s in inside)
        divisor = attributes.get("divisor_override") or count
        return clip(average(total, divisor, attributes["rounding"], x.zero_point), attributes)

    return fill(out, element)


def int_resample2d(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Weighted means along both axes."""
    x, rows, columns, divisor = operands
    height, width = x.shape[2:]

    def element(index: Index) -> int:
        n, c, i, j = index
        total = sum(
            int(rows.at((i, h))) * x.step((n, c, h, w)) * int(columns.at((j, w)))
            for h in range(height)
            for w in range(width)
        )
        return clip(average(total, int(divisor.at((i, j))), attributes["rounding"], x.zero_point), attributes)

    return fill(out, element)


def max_pool2d(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """The largest code of each window; what lies outside the image never wins."""
    (x,) = operands
    height, width = x.shape[2:]

    def element(index: Index) -> int:
        n, c, i, j = index
        found = []
        for u in range(attributes["kernel"][0]):
            for v in range(attributes["kernel"][1]):
                row = i * attributes["stride"][0] - attributes["padding"][0] + u * attributes["dilation"][0]
                column = j * attributes["stride"][1] - attributes["padding"][1] + v * attributes["dilation"][1]
                if 0 <= row < height and 0 <= column < width:
                    found.append(x.at((n, c, row, column)))
        return int(max(found))

    return fill(out, element)


def rescale(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """x - z_x, requantized."""
    x = operands[0]
    multiplier, exponent = channel(operands, 1, 0), channel(operands, 2, 0)
    return fill(out, lambda index: requantize(x.step(index), multiplier, exponent, out, attributes))


def int_layer_norm(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """(n s - sum) / sqrt(n sum of squares - sum^2 + epsilon), times w, plus b; the root has 30 bits, halves go up."""
    x, weight, bias = operands[:3]
    first = len(x.shape) - (attributes.get("dims") or len(weight.shape))
    outer, inside = x.shape[:first], x.shape[first:]
    count = math.prod(inside)
    result = []
    for place in indices(outer):
        places = [(*place, *inner) for inner in indices(inside)]
        steps = [x.step(index) for index in places]
        total = sum(steps) if attributes.get("centered", True) else 0
        radicand = max(count * sum(s * s for s in steps) - total**2 + attributes["epsilon"], 1)
        shift = 0
        while radicand < 2**58:
            radicand, shift = radicand * 4, shift + 1
        root = math.isqrt(radicand)
        for index, step in zip(places, steps, strict=True):
            exact = Fraction((count * step - total) * 2 ** (shift + attributes["fraction"] + 8), root)
            product = math.floor(exact + Fraction(1, 2)) * weight.at(broadcast(weight, index))
            acc = math.floor(Fraction(product, 256) + Fraction(1, 2)) + bias.at(broadcast(bias, index))
            result.append(requantize(acc, channel(operands, 3, 0), channel(operands, 4, 0), out, attributes))
    return result


def lookup(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """One entry of the table per code, of the row of its channel where there are rows, or of the row that is named."""
    x, table, *rows = operands
    axis = attributes.get("axis")
    if axis is None:
        return fill(out, lambda index: table.data[x.at(index) - attributes["offset"]])
    named = rows[0].data if rows else range(table.shape[0])
    return fill(out, lambda index: table.at((named[index[axis]], x.at(index) - attributes["offset"])))


def int_clamp(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Each code between the limits of its channel."""
    (x,) = operands

    def element(index: Index) -> int:
        low, high = limits(attributes, index[attributes["axis"]])
        return min(max(int(x.at(index)), low), high)

    return fill(out, element)


def quantize(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """A float32 division, rounded to an integer."""
    (x,) = operands

    def element(index: Index) -> int:
        value = float(x.at(index))
        if math.isnan(value):
            value = 0.0
        if math.isinf(value):
            return int(attributes["qmax"] if value > 0 else attributes["qmin"])
        quotient = float32(Fraction(value) / Fraction(out.scale))
        return clip(ROUNDINGS[attributes["rounding"]](quotient) + out.zero_point, attributes)

    return fill(out, element)


def dequantize(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """scale * (q - z) in float32."""
    (x,) = operands
    return fill(out, lambda index: float(float32(x.step(index) * Fraction(x.scale))))


def reshape(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """The same elements in the same order."""
    assert len(operands[0].data) == math.prod(out.shape)
    return list(operands[0].data)


def permute(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Axis i of the result is axis axes[i] of the operand."""

    def element(index: Index) -> Any:
        source = [0] * len(index)
        for position, axis in enumerate(attributes["axes"]):
            source[axis] = index[position]
        return operands[0].at(source)

    return fill(out, element)


def concat(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Operands joined along an axis."""
    axis = attributes["axis"]

    def element(index: Index) -> Any:
        place = list(index)
        for operand in operands:
            if place[axis] < operand.shape[axis]:
                return operand.at(place)
            place[axis] -= operand.shape[axis]
        raise AssertionError("the operands are too short")

    return fill(out, element)


def expand_blocks(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Codes times the factor of their block: [channels, blocks] of inputs, which lie along the other axis."""
    codes, factors = operands
    axis, block = attributes["axis"], attributes["block"]
    return fill(out, lambda i: codes.at(i) * factors.at((i[axis], i[1 - axis] // block)))


def slice_(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Every step-th element of an axis, from start on."""

    def element(index: Index) -> Any:
        place = list(index)
        place[attributes["axis"]] = attributes["start"] + place[attributes["axis"]] * attributes["step"]
        return operands[0].at(place)

    return fill(out, element)


def gather(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Elements of an axis at given indices."""

    def element(index: Index) -> Any:
        place = list(index)
        place[attributes["axis"]] = attributes["indices"][place[attributes["axis"]]]
        return operands[0].at(place)

    return fill(out, element)


def pad(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """A border of one code."""
    (x,) = operands

    def element(index: Index) -> Any:
        place = [i - begin for i, begin in zip(index, attributes["pad"], strict=False)]
        inside = all(0 <= i < size for i, size in zip(place, x.shape, strict=True))
        return x.at(place) if inside else int(attributes["value"])

    return fill(out, element)


def maximum(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """The larger code of two on one grid."""
    return _chosen(max, operands, out)


def minimum(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """The smaller code of two on one grid."""
    return _chosen(min, operands, out)


def _chosen(choose: Callable[[int, int], int], operands: Sequence[Grid], out: Grid) -> list[Any]:
    a, b = operands
    assert (a.scale, a.zero_points) == (b.scale, b.zero_points) == (out.scale, out.zero_points)
    return fill(out, lambda i: choose(a.at(broadcast(a, i)), b.at(broadcast(b, i))))


OPERATORS: dict[str, Callable[[Sequence[Grid], Attributes, Grid], list[Any]]] = {
    "int_conv1d": int_conv,
    "int_conv2d": int_conv,
    "int_conv3d": int_conv,
    "int_conv_transpose1d": int_conv_transpose,
    "int_conv_transpose2d": int_conv_transpose,
    "int_conv_transpose3d": int_conv_transpose,
    "int_linear": int_linear,
    "int_add": int_add,
    "int_mul": int_mul,
    "int_matmul": int_matmul,
    "int_softmax": int_softmax,
    "int_log_softmax": int_log_softmax,
    "maximum": maximum,
    "minimum": minimum,
    "int_mean": int_mean,
    "int_avg_pool2d": int_avg_pool2d,
    "int_resample2d": int_resample2d,
    "max_pool2d": max_pool2d,
    "rescale": rescale,
    "int_layer_norm": int_layer_norm,
    "lookup": lookup,
    "int_clamp": int_clamp,
    "quantize": quantize,
    "dequantize": dequantize,
    "reshape": reshape,
    "permute": permute,
    "concat": concat,
    "expand_blocks": expand_blocks,
    "slice": slice_,
    "gather": gather,
    "pad": pad,
}
