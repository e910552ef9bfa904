"""Operators of ONNX that move elements: shapes, parts, places."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.frontends.onnx.bounded import check_sizes
from qcompiler.frontends.onnx.reading import dtype_of
from qcompiler.frontends.onnx.symbolic import Operand, Size, Traced, Whole, apply, parts
from qcompiler.frontends.onnx.table import At, Held, sizes_of, translates

ENDLESS = 10**6
"""End of a slice that means the end of the axis: exporters write 2^31 - 1, 2^63 - 1 or 10^9."""


def check_count(at: At, shape: list[int]) -> None:
    """Refuse a tensor of absurd size before it takes memory.

    Raises:
        TooLargeError: It has too many elements.
        UnsupportedError: It has a negative size.
    """
    if any(size < 0 for size in shape):
        raise at.refusal(f"{at.op} makes a tensor of the shape {shape}", "Use sizes of at least 0.")
    check_sizes(shape, "a result", str(at.location))


@translates("Constant")
def _constant(at: At) -> Held:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if name in at.attributes:
            held = at.attributes[name]
            if isinstance(held, Tensor):
                return held
            return torch.tensor(held, dtype=torch.float32 if "float" in name else torch.int64)
    raise at.refusal("a Constant of texts, or without a value", "Remove it.")


@translates("ConstantOfShape")
def _constant_of_shape(at: At) -> Operand:
    value = at.attribute("value", torch.zeros(1))
    number = value.reshape(-1)[0].item()
    shape = at.sizes(0)
    if all(isinstance(size, int) for size in shape):
        known = [at.fixed(size) for size in shape]
        check_count(at, known)
        return torch.full(known, number, dtype=value.dtype)
    return apply(torch.full, shape, number, dtype=value.dtype)


@translates("Shape")
def _shape(at: At) -> Held:
    shape = list(at.tensor(0).shape)
    begin, end = at.attribute("start", 0), at.attribute("end", len(shape))
    return sizes_of(shape[begin:end])


@translates("Size")
def _size(at: At) -> Held:
    total: Whole = 1
    for size in at.tensor(0).shape:
        total = size * total
    return sizes_of([total], scalar=True)


@translates("Reshape")
def _reshape(at: At) -> Operand:
    x = at.tensor(0)
    wanted = at.sizes(1) if at.has(1) else list(at.attribute("shape"))
    keeps_zero = at.attribute("allowzero", 0)
    shape = [x.shape[index] if _is(size, 0) and not keeps_zero else size for index, size in enumerate(wanted)]
    return apply(torch.reshape, x, shape)


def _is(size: Whole, number: int) -> bool:
    return isinstance(size, int) and size == number


@translates("Flatten")
def _flatten(at: At) -> Operand:
    x, axis = at.tensor(0), at.attribute("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1:
        return apply(torch.flatten, x, 1) if x.dim() > 1 else apply(torch.reshape, x, [x.shape[0], 1])
    rows: Whole = 1
    for size in x.shape[:axis]:
        rows = size * rows
    columns: Whole = 1
    for size in x.shape[axis:]:
        columns = size * columns
    return apply(torch.reshape, x, [rows, columns])


@translates("Transpose")
def _transpose(at: At) -> Operand:
    x = at.tensor(0)
    order = list(at.attribute("perm", range(x.dim() - 1, -1, -1)))
    if isinstance(x, Tensor):
        return x.permute(order).contiguous()
    return apply(torch.permute, x, order)


@translates("Squeeze")
def _squeeze(at: At) -> Operand:
    x, axes = at.tensor(0), at.axes(1)
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if _is(size, 1)]
    found = x
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        found = apply(torch.squeeze, found, axis)
    return found


@translates("Unsqueeze")
def _unsqueeze(at: At) -> Operand:
    x, axes = at.tensor(0), at.axes(1) or []
    rank = x.dim() + len(axes)
    found = x
    for axis in sorted(axis % rank for axis in axes):
        found = apply(torch.unsqueeze, found, axis)
    return found


@translates("Concat")
def _concat(at: At) -> Operand:
    return apply(torch.cat, at.tensors(), at.attribute("axis"))


@translates("Split")
def _split(at: At) -> Any:
    x, axis = at.tensor(0), at.attribute("axis", 0)
    lengths = at.axes(1, "split")
    size = x.shape[axis]
    if lengths is None:
        if not isinstance(size, int):
            raise at.refusal("Split along an axis whose size depends on the batch size")
        each = math.ceil(size / at.results)
        lengths = [min(each, max(0, size - index * each)) for index in range(at.results)]
    return parts(torch.split, x, lengths, axis)


@translates("Slice")
def _slice(at: At) -> Operand:
    x = at.tensor(0)
    if "starts" in at.attributes:  # before opset 10
        starts, ends, axes = list(at.attribute("starts")), list(at.attribute("ends")), at.attribute("axes")
    else:
        starts, ends, axes = at.sizes(1), at.sizes(2), at.axes(3)
    axes = list(range(len(starts))) if axes is None else list(axes)
    steps = at.ints(4) if at.has(4) else [1] * len(starts)
    found = x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        found = _sliced(at, found, axis % x.dim(), start, end, step)
    return found


def _sliced(at: At, x: Operand, axis: int, start: Whole, end: Whole, step: int) -> Operand:
    size = x.shape[axis]
    if isinstance(start, int) and isinstance(end, int) and isinstance(size, int):
        places = range(size)[slice(start, end if end >= -size or step > 0 else None, step)]
        if step < 0 or step > 1:
            if not len(places):
                return apply(torch.narrow, x, axis, 0, 0)
            if step < 0:
                return apply(torch.index_select, x, axis, torch.tensor(list(places)))
        if places == range(size):
            return x
        index = tuple(
            slice(None) if other != axis else slice(places.start, places.stop, step) for other in range(x.dim())
        )
        return apply(operator.getitem, x, index)
    if step != 1:
        raise at.refusal("Slice with steps along an axis whose size depends on the batch size")
    if _is(start, 0) and (end == size or (isinstance(end, int) and end >= ENDLESS)):
        return x
    return apply(operator.getitem, x, _index(x, axis, slice(start, end)))


def _index(x: Operand, axis: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if other == axis else slice(None) for other in range(x.dim()))


@translates("Expand")
def _expand(at: At) -> Operand:
    x, wanted = at.tensor(0), at.sizes(1)
    have: list[Whole] = [*([1] * (len(wanted) - x.dim())), *x.shape]
    goals: list[Whole] = [*([1] * (len(have) - len(wanted))), *wanted]
    shape = [size if _is(goal, 1) else goal for size, goal in zip(have, goals, strict=True)]
    known = [size for size in shape if isinstance(size, int)]
    check_count(at, known)
    return apply(torch.broadcast_to, x, shape)


@translates("Tile")
def _tile(at: At) -> Operand:
    return apply(torch.tile, at.tensor(0), tuple(at.sizes(1)))


PADS = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@translates("Pad")
def _pad(at: At) -> Operand:
    x, mode = at.tensor(0), at.attribute("mode", "constant")
    amounts = at.ints(1) if at.has(1) else list(at.attribute("pads"))
    axes = at.ints(3) if at.has(3) else list(range(x.dim()))
    value: Any = at.attribute("value", 0.0)
    if at.has(2):
        value = at.known(2).reshape(-1)[0].item()
    begin, end = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(axes):
        begin[axis], end[axis] = amounts[place], amounts[place + len(axes)]
    first = next((axis for axis in range(x.dim()) if begin[axis] or end[axis]), None)
    if first is None:
        return x
    sizes = [size if isinstance(size, int) else 1 for size in x.shape]
    check_count(at, [size + max(0, a) + max(0, b) for size, a, b in zip(sizes, begin, end, strict=True)])
    if mode == "constant":
        axes_padded = range(x.dim() - 1, first - 1, -1)
        return apply(F.pad, x, [amount for axis in axes_padded for amount in (begin[axis], end[axis])], value=value)
    return _bordered(at, x, begin, end, PADS[mode])


def _bordered(at: At, x: Operand, begin: list[int], end: list[int], mode: str) -> Operand:
    """A border of copies: torch pads up to three last axes, other axes by indices."""
    found = x
    for axis in range(x.dim()):
        if not begin[axis] and not end[axis]:
            continue
        size = x.shape[axis]
        if not isinstance(size, int):
            raise at.refusal("Pad of copies along an axis whose size depends on the batch size")
        places = torch.arange(-begin[axis], size + end[axis])
        if mode == "replicate":
            places = places.clamp(0, size - 1)
        elif mode == "circular":
            places = places % size
        else:
            period = max(1, 2 * (size - 1))
            places = places % period
            places = torch.where(places < size, places, period - places)
        found = apply(torch.index_select, found, axis, places)
    return found


@translates("Gather")
def _gather(at: At) -> Any:
    x, axis = at.tensor(0), at.attribute("axis", 0)
    axis %= x.dim()
    indices = at.tensor(1)
    if isinstance(indices, Tensor):
        if isinstance(x, Traced):
            size = x.shape[axis]
            if indices.dim() == 0 and (isinstance(size, int) or int(indices) >= 0):
                place = int(indices)
                return apply(torch.select, x, axis, place + size if place < 0 and isinstance(size, int) else place)
            if bool((indices < 0).any()):
                indices = torch.where(indices < 0, indices + at.fixed(size), indices)
            flat = apply(torch.index_select, x, axis, indices.reshape(-1).to(torch.int64))
            if indices.dim() == 1:
                return flat
            return apply(torch.reshape, flat, [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])
        index: tuple[Any, ...] = (*([slice(None)] * axis), indices.to(torch.int64))
        return x[index]
    if axis == 0 and x.dim() == 2 and isinstance(x, Tensor) and x.is_floating_point():
        return apply(F.embedding, _as_places(indices), x)
    moved = x if axis == 0 else apply(torch.movedim, x, axis, 0)
    return _moved_back(apply(operator.getitem, moved, _as_places(indices)), axis, indices.dim())


def _as_places(indices: Operand) -> Operand:
    """Indices in the type that torch takes."""
    return indices if indices.dtype == torch.int64 else apply(torch.Tensor.to, indices, torch.int64)


def _moved_back(x: Operand, axis: int, count: int) -> Operand:
    """The axes of the indices, which are first, after `axis` others."""
    if axis == 0:
        return x
    order = [*range(count, count + axis), *range(count), *range(count + axis, x.dim())]
    return apply(torch.permute, x, order)


@translates("GatherElements")
def _gather_elements(at: At) -> Operand:
    x, indices = at.tensor(0), at.tensor(1)
    axis = at.attribute("axis", 0) % x.dim()
    return apply(torch.gather, x, axis, _positive(at, indices, x.shape[axis]))


def _positive(at: At, indices: Operand, size: Whole) -> Operand:
    """Indices that count from the beginning."""
    indices = apply(torch.Tensor.to, indices, torch.int64) if indices.dtype != torch.int64 else indices
    if isinstance(indices, Tensor) and not bool((indices < 0).any()):
        return indices
    if isinstance(size, Size):
        raise at.refusal(f"{at.op} along an axis whose size depends on the batch size")
    return apply(torch.remainder, indices, size)


@translates("GatherND")
def _gather_nd(at: At) -> Operand:
    x, indices, shared = at.tensor(0), at.tensor(1), at.attribute("batch_dims", 0)
    depth = at.fixed(indices.shape[-1])
    leading = [at.fixed(size) for size in indices.shape[:shared]]
    places: list[Any] = []
    for axis, size in enumerate(leading):
        shape = [1] * (indices.dim() - 1)
        shape[axis] = size
        places.append(torch.arange(size).reshape(shape))
    for axis in range(depth):
        part = apply(torch.select, indices, -1, axis)
        places.append(_positive(at, part, x.shape[shared + axis]))
    return apply(operator.getitem, x, tuple(places))


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@translates("ScatterElements", "Scatter")
def _scatter(at: At) -> Operand:
    x, indices, updates = at.tensor(0), at.tensor(1), at.tensor(2)
    axis, reduction = at.attribute("axis", 0) % x.dim(), at.attribute("reduction", "none")
    places = _positive(at, indices, x.shape[axis])
    if reduction == "none":
        return apply(torch.scatter, x, axis, places, updates)
    return apply(torch.scatter_reduce, x, axis, places, updates, REDUCTIONS[reduction], include_self=True)


@translates("ScatterND")
def _scatter_nd(at: At) -> Operand:
    x, indices, updates = at.tensor(0), at.tensor(1), at.tensor(2)
    reduction, depth = at.attribute("reduction", "none"), at.fixed(indices.shape[-1])
    sizes = [at.fixed(size) for size in x.shape[:depth]]
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(depth)]
    row: Any = 0
    for axis in range(depth):
        row = apply(
            torch.add,
            apply(torch.mul, _positive(at, apply(torch.select, indices, -1, axis), sizes[axis]), strides[axis]),
            row,
        )
    rest = list(x.shape[depth:])
    flat = apply(torch.reshape, x, [math.prod(sizes), -1])
    rows = apply(torch.reshape, row, [-1])
    parts = apply(torch.reshape, updates, [rows.shape[0], -1])
    if reduction == "none":
        result = apply(torch.index_copy, flat, 0, rows, parts)
    elif reduction == "add":
        result = apply(torch.index_add, flat, 0, rows, parts)
    else:
        result = apply(torch.index_reduce, flat, 0, rows, parts, REDUCTIONS[reduction])
    return apply(torch.reshape, result, [*sizes, *rest])


@translates("DepthToSpace")
def _depth_to_space(at: At) -> Operand:
    x, block = at.tensor(0), at.attribute("blocksize")
    if at.attribute("mode", "DCR") == "CRD":
        return apply(F.pixel_shuffle, x, block)
    n, channels, height, width = x.shape
    inner = at.fixed(channels) // block**2
    split = apply(torch.reshape, x, [n, block, block, inner, height, width])
    moved = apply(torch.permute, split, [0, 3, 4, 1, 5, 2])
    return apply(torch.reshape, moved, [n, inner, height * block, width * block])


@translates("SpaceToDepth")
def _space_to_depth(at: At) -> Operand:
    x, block = at.tensor(0), at.attribute("blocksize")
    n, channels, height, width = x.shape
    rows, columns = height // block, width // block
    split = apply(torch.reshape, x, [n, channels, rows, block, columns, block])
    order = [0, 1, 3, 5, 2, 4] if at.attribute("mode", "DCR") == "CRD" else [0, 3, 5, 1, 2, 4]
    moved = apply(torch.permute, split, order)
    return apply(torch.reshape, moved, [n, channels * block**2, rows, columns])


@translates("Range")
def _range(at: At) -> Operand:
    numbers = [at.sizes_or_number(index) for index in range(3)]
    known = [item for item in numbers if not isinstance(item, Size)]
    if len(known) < len(numbers):
        return apply(torch.arange, *numbers)
    start, limit, delta = known
    count = max(0, math.ceil((limit - start) / delta))
    check_count(at, [count])
    return (torch.arange(count) * delta + start).to(at.known(0).dtype)


@translates("OneHot")
def _one_hot(at: At) -> Operand:
    indices, depth, values = at.tensor(0), at.ints(1)[0], at.known(2)
    check_count(at, [depth])
    axis = at.attribute("axis", -1)
    axis = axis % (indices.dim() + 1)
    places = torch.arange(depth).reshape([depth] + [1] * (indices.dim() - axis))
    wanted = apply(torch.remainder, apply(torch.Tensor.to, indices, torch.int64), depth)
    inside = apply(torch.logical_and, apply(torch.ge, indices, -depth), apply(torch.lt, indices, depth))
    same = apply(torch.eq, apply(torch.unsqueeze, wanted, axis), places)
    hit = apply(torch.logical_and, same, apply(torch.unsqueeze, inside, axis))
    return apply(torch.where, hit, values[1], values[0])


@translates("Trilu")
def _trilu(at: At) -> Operand:
    function = torch.triu if at.attribute("upper", 1) else torch.tril
    return apply(function, at.tensor(0), at.ints(1)[0] if at.has(1) else 0)


@translates("EyeLike")
def _eye_like(at: At) -> Operand:
    x, shift = at.tensor(0), at.attribute("k", 0)
    dtype = x.dtype
    if "dtype" in at.attributes:
        dtype = dtype_of(at.attribute("dtype"), "the result of EyeLike", str(at.location))
    rows, columns = (at.fixed(size) for size in x.shape)
    check_count(at, [rows, columns])
    places = torch.arange(columns) - torch.arange(rows).reshape(-1, 1)
    found: Tensor = (places == shift).to(dtype)
    return found


@translates("ReverseSequence")
def _reverse_sequence(at: At) -> Operand:
    x, lengths = at.tensor(0), at.known(1)
    batch, time = at.attribute("batch_axis", 1), at.attribute("time_axis", 0)
    size = at.fixed(x.shape[time])
    steps = torch.arange(size).reshape(1, -1)
    ends = lengths.reshape(-1, 1)
    places = torch.where(steps < ends, ends - 1 - steps, steps)  # [batch, time]
    places = places if batch < time else places.t()
    shape = [1] * x.dim()
    shape[batch], shape[time] = len(lengths), size
    places = places.reshape(shape).expand([at.fixed(item) for item in x.shape])
    return apply(torch.gather, x, time, places.contiguous())


@translates("Compress")
def _compress(at: At) -> Operand:
    x, condition = at.tensor(0), at.known(1)
    places = condition.reshape(-1).nonzero().reshape(-1)
    if "axis" not in at.attributes:
        return apply(torch.index_select, apply(torch.flatten, x), 0, places)
    return apply(torch.index_select, x, at.attributes["axis"], places)
