"""Functions that reduce axes: means, sums, and the largest or smallest element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from qcompiler.frontends.builder import Builder, Observed, Operand
from qcompiler.frontends.rules_places import place_of_extreme
from qcompiler.frontends.table import Ints, as_tuple, axis_of, rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.graph import Value


def _axes(input: Operand, dim: Ints | None) -> tuple[int, ...]:
    """The axes of an argument, ascending: all of them for None and for no axis."""
    given = [] if dim is None else [axis_of(input, item) for item in as_tuple(dim, 1)]
    return tuple(sorted(given)) or tuple(range(input.type.rank))


@rule("mean")
def _mean(b: Builder, input: Operand, dim: Ints | None = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    return b.node("mean", [input], axes=_axes(input, dim), keepdim=bool(keepdim))


@rule("sum")
def _sum(b: Builder, input: Operand, dim: Ints | None = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    """A sum as the mean times the number of elements.

    The calibrated range of the product is that of the mean times the number, so its codes are those of the mean.
    """
    axes = _axes(input, dim)
    if not input.type.dtype.is_float:
        raise b.unsupported(f"a sum of {input.type.dtype}", "Convert to float first.")
    mean = b.node("mean", [input], axes=axes, keepdim=bool(keepdim))
    count = math.prod(_sizes(b, input, axes))
    return mean if count == 1 else b.node("mul", [mean, float(count)])


@rule("var", "std")
def _variance(
    b: Builder,
    input: Operand,
    dim: object = None,
    unbiased: object = None,
    keepdim: bool = False,
    *,
    correction: object = None,
) -> Value:
    """The mean of the squared distances from the mean, times n / (n - correction); its root for `std`."""
    if isinstance(dim, bool):  # torch.var(x, unbiased)
        dim, unbiased = None, dim
    axes = _axes(input, cast("Ints | None", dim))
    count = math.prod(_sizes(b, input, axes))
    less = (0 if unbiased is False else 1) if correction is None else cast("float", correction)
    if count <= less:
        raise b.unsupported(f"{b.function} of {count} elements", "Use more elements than the correction.")
    distance = b.node("sub", [input, b.node("mean", [input], axes=axes, keepdim=True)])
    square = b.node("mul", [distance, distance])
    variance = b.node("mean", [square], axes=axes, keepdim=bool(keepdim))
    scaled = variance if not less else b.node("mul", [variance, count / (count - less)])
    return b.node("sqrt", [scaled]) if b.function == "std" else scaled


@rule("norm", "linalg_norm", "linalg_vector_norm")
def _length(
    b: Builder,
    input: Operand,
    p: object = 2,
    dim: Ints | None = None,
    keepdim: bool = False,
    out: object = None,
    dtype: object = None,
    *,
    ord: object = None,
) -> Value:
    """The root of the sum of squares: sqrt(n) times the root of their mean."""
    order = p if ord is None else ord
    one_axis = input.type.rank == 1 or (dim is not None and len(as_tuple(dim, 1)) == 1)
    if order not in (2, 2.0, None, "fro") or (b.function == "linalg_norm" and not one_axis and order is not None):
        raise b.unsupported(f"{b.function} with p={order!r}", "Use the root of the sum of squares, p=2.")
    axes = _axes(input, dim)
    count = math.prod(_sizes(b, input, axes))
    square = b.node("mul", [input, input])
    mean = b.node("mean", [square], axes=axes, keepdim=bool(keepdim))
    return b.node("mul", [b.node("sqrt", [mean]), math.sqrt(count)])


def _sizes(b: Builder, input: Operand, axes: Sequence[int]) -> list[int]:
    sizes = [input.type.shape[axis] for axis in axes]
    fixed = [size for size in sizes if isinstance(size, int)]
    if len(fixed) < len(sizes):
        raise b.unsupported(f"{b.function} over the batch", f"Name axes of fixed size: {b.function}(dim=1).")
    return fixed


def _extreme_along(b: Builder, op: str, input: Operand, axes: Sequence[int], keepdim: bool) -> Value:
    """The largest or smallest element along axes of fixed size.

    Halves of each axis are compared with each other until one element is left, so that the codes stay as they are.
    The largest element of whole images is that of a pooling.
    """
    sizes = _sizes(b, input, axes)
    result = b.value(input)
    if op == "maximum" and tuple(axes) == (2, 3) and input.type.rank == 4:
        result = b.node("max_pool2d", [result], kernel=tuple(sizes), stride=tuple(sizes))
    else:
        for axis, size in zip(axes, sizes, strict=True):
            result = _halved(b, op, result, axis, size)
    if keepdim:
        return result
    shape = [size for axis, size in enumerate(result.type.shape) if axis not in axes]
    return b.node("reshape", [result], shape=tuple(shape))


def _halved(b: Builder, op: str, input: Value, axis: int, size: int) -> Value:
    while size > 1:
        half = -(-size // 2)
        first = b.node("slice", [input], axis=axis, start=0, stop=half, step=1)
        # The middle element of an odd number is in both halves.
        second = b.node("slice", [input], axis=axis, start=size - half, stop=size, step=1)
        input, size = b.node(op, [first, second]), half
    return input


@rule("amax")
def _amax(b: Builder, input: Operand, dim: Ints | None = None, keepdim: bool = False) -> Value:
    return _extreme_along(b, "maximum", input, _axes(input, dim), bool(keepdim))


@rule("amin")
def _amin(b: Builder, input: Operand, dim: Ints | None = None, keepdim: bool = False) -> Value:
    return _extreme_along(b, "minimum", input, _axes(input, dim), bool(keepdim))


@rule("aminmax")
def _aminmax(b: Builder, input: Operand, *, dim: int | None = None, keepdim: bool = False) -> list[Value]:
    return [_extreme_along(b, op, input, _axes(input, dim), bool(keepdim)) for op in ("minimum", "maximum")]


def extreme_of_one(b: Builder, op: str, input: Operand, dim: object, keepdim: bool) -> object:
    """`torch.max(x)`, or `torch.max(x, dim)` with the places of the first largest elements."""
    if isinstance(b.observed, Observed):
        return _extreme_along(b, op, input, _axes(input, None), False)
    if not isinstance(dim, int) or isinstance(input, Leaf):
        raise b.unsupported(f"{b.function} along {dim!r}", "Name one axis.")
    axis = axis_of(input, dim)
    largest = _extreme_along(b, op, input, (axis,), keepdim)
    return [largest, place_of_extreme(b, input, axis, largest=op == "maximum", keepdim=keepdim)]
