"""Functions that move elements without changing them: shapes, axes, slices, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qcompiler.frontends.builder import Builder, Observed, Operand
from qcompiler.frontends.rules_indexing import ONE_BY_ONE, PAIRS, pick
from qcompiler.frontends.table import Ints, as_tuple, axis_of, rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.dims import Dim, Shape, as_dim
from qcompiler.ir.graph import Value


def _reshaped(b: Builder, input: Operand, shape: Shape) -> Value:
    return b.node("reshape", [input], shape=tuple(as_dim(dim) for dim in shape))


@rule(
    "reshape", "view", "unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel"
)
def _reshape(b: Builder, input: Operand, *arguments: object, **keywords: object) -> Value:
    if isinstance(b.observed, Observed) and b.observed.dtype != input.type.dtype.torch:
        raise b.unsupported("a view as another element type", "Convert the elements: to(dtype).")
    return _reshaped(b, input, b.shape)


@rule("permute")
def _permute(b: Builder, input: Operand, *dims: Any) -> Value:
    axes = dims[0] if len(dims) == 1 and isinstance(dims[0], Sequence) else dims
    return b.node("permute", [input], axes=tuple(axis_of(input, axis) for axis in axes))


@rule("transpose")
def _transpose(b: Builder, input: Operand, dim0: int, dim1: int) -> Value:
    axes = list(range(input.type.rank))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return b.node("permute", [input], axes=tuple(axes))


@rule("movedim")
def _movedim(b: Builder, input: Operand, source: Ints, destination: Ints) -> Value:
    moved = [axis_of(input, dim) for dim in as_tuple(source, 1)]
    places = [axis_of(input, dim) for dim in as_tuple(destination, 1)]
    found = dict(zip(places, moved, strict=True))
    others = iter([axis for axis in range(input.type.rank) if axis not in moved])
    axes = tuple(found[place] if place in found else next(others) for place in range(input.type.rank))
    return b.node("permute", [input], axes=axes)


@rule("t", "T", "numpy_T")
def _reversed(b: Builder, input: Operand) -> Value:
    return b.node("permute", [input], axes=tuple(reversed(range(input.type.rank))))


@rule("mT")
def _matrix_transposed(b: Builder, input: Operand) -> object:
    return _transpose(b, input, -2, -1)


@rule("cat")
def _cat(b: Builder, tensors: Sequence[Operand], dim: int = 0) -> Value:
    # torch leaves out vectors without elements, with which caches of keys and values begin.
    tensors = [x for x in tensors if x.type.shape != (0,)] or tensors
    axis = axis_of(tensors[0], dim)
    if len(tensors) == 1:
        return b.value(tensors[0])
    if any(not isinstance(x.type.shape[axis], int) for x in tensors):
        raise b.unsupported(
            f"tensors are concatenated along axis {axis}, the batch", "Concatenate along an axis of fixed size."
        )
    return joined(b, tensors, axis)


def joined(b: Builder, parts: Sequence[Operand], axis: int) -> Value:
    """A concat, also one in which some parts are one sample for the whole batch, such as class tokens.

    The others are padded with zeros in these places, and the samples are added, padded likewise. A part of one number
    is the padding itself.
    """
    if not axis or len({x.type.shape[0] for x in parts}) == 1:
        return b.node("concat", list(parts), axis=axis)
    batch = next(x.type.shape[0] for x in parts if not isinstance(x.type.shape[0], int))
    fixed = [x.type.shape[0] != batch for x in parts]
    numbers = [_only_number(x) if alone else None for x, alone in zip(parts, fixed, strict=True)]
    rest: list[Operand] = []  # the parts of the batch with their borders
    waiting: list[tuple[int, float]] = []  # sizes and values of borders before the first of them
    for part, alone, number in zip(parts, fixed, numbers, strict=True):
        if not alone:
            for size, value in reversed(waiting):
                part = _bordered(b, part, axis, size, 0, value)
            waiting = []
            rest.append(part)
        elif rest:
            rest[-1] = _bordered(b, rest[-1], axis, 0, part.type.size(axis), number or 0.0)
        else:
            waiting.append((part.type.size(axis), number or 0.0))
    padded = b.value(rest[0]) if len(rest) == 1 else b.node("concat", rest, axis=axis)
    if all(number is not None for number, alone in zip(numbers, fixed, strict=True) if alone):
        return padded
    samples = [
        x if alone and number is None else _zeros(b, x) for x, alone, number in zip(parts, fixed, numbers, strict=True)
    ]
    return b.node("add", [padded, b.node("concat", samples, axis=axis)])


def _only_number(part: Operand) -> float | None:
    """The number of which a constant consists."""
    if not isinstance(part, Leaf) or part.kind != "constant" or not part.tensor.is_floating_point():
        return None
    first = part.tensor.flatten()[0]
    same = part.tensor.isnan() if bool(first.isnan()) else part.tensor == first
    return float(first) if bool(same.all()) else None


def _bordered(b: Builder, part: Operand, axis: int, begin: int, end: int, value: float) -> Value:
    amounts = [0] * (2 * part.type.rank)
    amounts[axis], amounts[part.type.rank + axis] = begin, end
    return b.node("pad", [part], pad=tuple(amounts), value=value)


def _zeros(b: Builder, like: Operand) -> Leaf:
    """One sample of zeros."""
    sizes = [size for size in like.type.shape[1:] if isinstance(size, int)]
    return Leaf("constant", "", torch.zeros(1, *sizes, dtype=like.type.dtype.torch, device=b.device))


@rule("zeros")
def _zeros_of(b: Builder, *size: object, **keywords: object) -> Operand:
    """Zeros of a size that depends on the batch, such as the first state of a recurrent layer."""
    sizes = [part if isinstance(part, int) else 1 for part in b.shape]
    assert isinstance(b.observed, Observed)
    return b.expanded(Leaf("constant", "", torch.zeros(sizes, dtype=b.observed.dtype, device=b.device)), b.shape)


@rule("hstack")
def _hstack(b: Builder, tensors: Sequence[Operand]) -> Value:
    return _cat(b, tensors, 1 if tensors[0].type.rank > 1 else 0)


@rule("stack")
def _stack(b: Builder, tensors: Sequence[Operand], dim: int = 0) -> Value:
    axis = dim % (tensors[0].type.rank + 1)
    parts = [_reshaped(b, x, (*x.type.shape[:axis], 1, *x.type.shape[axis:])) for x in tensors]
    return b.node("concat", parts, axis=axis)


@rule("chunk", "split", "tensor_split")
def _split(b: Builder, input: Operand, size: object, dim: int = 0) -> list[Operand]:
    axis = axis_of(input, dim)
    parts: list[Operand] = []
    start = 0
    for part in b.parts():
        length = part.shape[axis]
        if not isinstance(length, int):
            raise b.unsupported("the batch is split", "Split along an axis of fixed size.")
        parts.append(_sliced(b, input, axis, slice(start, start + length)))
        start += length
    return parts


@rule("unbind")
def _unbind(b: Builder, input: Operand, dim: int = 0) -> list[Operand]:
    return [_select(b, input, dim, index) for index in range(len(b.parts()))]


def _sliced(b: Builder, input: Operand, axis: int, part: slice) -> Operand:
    size = input.type.shape[axis]
    if (
        part.start in (None, 0)
        and part.step in (None, 1)
        and (part.stop is None or part.stop == size or _is_end(part.stop))
    ):
        return input
    if not isinstance(size, int):
        raise b.unsupported(f"the axis {axis} of symbolic size {size} is sliced", "Slice an axis of fixed size.")
    start, stop, step = part.indices(size)
    return b.node("slice", [input], axis=axis, start=start, stop=stop, step=step)


def _is_end(stop: object) -> bool:
    """Whether `stop` is torch.export's number for an open end."""
    return isinstance(stop, int) and stop >= 2**31 - 1


@rule("slice")
def _slice(
    b: Builder, input: Operand, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Operand:
    return _sliced(b, input, axis_of(input, dim), slice(start, end, step))


@rule("narrow")
def _narrow(b: Builder, input: Operand, dim: int, start: int, length: int) -> Operand:
    return _sliced(b, input, axis_of(input, dim), slice(start, start + length))


@rule("select")
def _select(b: Builder, input: Operand, dim: int, index: int) -> Operand:
    axis, shape = axis_of(input, dim), input.type.shape
    size = shape[axis]
    if not isinstance(size, int):
        raise b.unsupported("one sample of the batch is selected", "Select along an axis of fixed size.")
    start = index + size if index < 0 else index
    part = _sliced(b, input, axis, slice(start, start + 1))
    return _reshaped(b, part, (*shape[:axis], *shape[axis + 1 :]))


@rule("getitem")
def _getitem(b: Builder, input: Operand, index: object) -> Operand:
    indices = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [item for item in indices if not isinstance(item, Value | Leaf)]:
        position = next(i for i, item in enumerate(indices) if item is Ellipsis)
        taken = sum(item is not None and item is not Ellipsis for item in indices)
        indices[position : position + 1] = [slice(None)] * (input.type.rank - taken)
    axis, vectors = 0, 0
    for item in indices:
        if isinstance(item, slice):
            input, axis = _sliced(b, input, axis, item), axis + 1
        elif item is None:
            shape = input.type.shape
            input, axis = _reshaped(b, input, (*shape[:axis], 1, *shape[axis:])), axis + 1
        elif isinstance(item, int) and not isinstance(item, bool):
            input = _select(b, input, axis, item)
        elif isinstance(item, list | range | Leaf):
            input, axis = pick(b, input, axis, item), axis + 1
            vectors += 1
        else:
            raise b.unsupported(
                f"a tensor is indexed with a {type(item).__name__}",
                "Index with numbers, slices, and lists or vectors of integers.",
            )
        if vectors > 1:
            raise b.unsupported(PAIRS, ONE_BY_ONE)
    return input


@rule("pixel_shuffle")
def _pixel_shuffle(b: Builder, input: Operand, upscale_factor: int) -> Value:
    n, c, h, w = input.type.shape
    r = upscale_factor
    if not isinstance(c, int):
        raise b.unsupported("pixel_shuffle over a symbolic number of channels", "Use a fixed number of channels.")
    split = _reshaped(b, input, (n, c // (r * r), r, r, h, w))
    moved = b.node("permute", [split], axes=(0, 1, 4, 2, 5, 3))
    return _reshaped(b, moved, (n, c // (r * r), _times(h, r), _times(w, r)))


@rule("pixel_unshuffle")
def _pixel_unshuffle(b: Builder, input: Operand, downscale_factor: int) -> Value:
    n, c = input.type.shape[:2]
    r, (rows, columns) = downscale_factor, b.shape[2:]
    split = _reshaped(b, input, (n, c, rows, r, columns, r))
    moved = b.node("permute", [split], axes=(0, 1, 3, 5, 2, 4))
    return _reshaped(b, moved, (n, _times(c, r * r), rows, columns))


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(b: Builder, input: Operand, groups: int) -> Value:
    n, c, *rest = input.type.shape
    if not isinstance(c, int) or c % groups:
        raise b.unsupported(f"{b.function} of {c} channels in {groups} groups", "Use groups that divide the channels.")
    split = _reshaped(b, input, (n, groups, c // groups, *rest))
    moved = b.node("permute", [split], axes=(0, 2, 1, *range(3, 3 + len(rest))))
    return _reshaped(b, moved, input.type.shape)


def _times(dim: Dim, factor: int) -> Dim:
    return as_dim(factor * dim)
