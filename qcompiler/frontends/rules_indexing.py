"""Functions that pick, repeat or reorder elements along an axis: indices, flips, rolls, tiles, borders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qcompiler.frontends.builder import Builder, Operand
from qcompiler.frontends.table import Ints, as_tuple, axis_of, rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.dims import Shape, as_dim
from qcompiler.ir.graph import Value

PAIRS = "a tensor is indexed with several vectors at once, which picks elements in pairs"
ONE_BY_ONE = "Index one axis after another: x[:, rows][:, :, columns]."


def _size(b: Builder, input: Operand, axis: int) -> int:
    """The fixed size of an axis."""
    size = input.type.shape[axis]
    if not isinstance(size, int):
        raise b.unsupported(f"{b.function} along axis {axis}, the batch", "Use an axis of fixed size.")
    return size


def picked(b: Builder, input: Operand, axis: int, indices: Sequence[int]) -> Operand:
    """The elements of `axis` at `indices`: a slice if they are ascending at equal distances."""
    if list(indices) == list(range(_size(b, input, axis))):
        return input
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if step > 0 and list(indices) == list(range(indices[0], indices[-1] + 1, step)):
        return b.node("slice", [input], axis=axis, start=indices[0], stop=indices[-1] + 1, step=step)
    return b.node("gather", [input], axis=axis, indices=tuple(indices))


def pick(b: Builder, input: Operand, axis: int, index: object) -> Operand:
    """The elements of `axis` at constants of the model.

    Args:
        b: Builder.
        input: Tensor.
        axis: Axis of fixed size.
        index: A list of integers, or a leaf of integers or booleans with one axis.
    """
    size = _size(b, input, axis)
    if not isinstance(index, list | range | Leaf):
        raise b.unsupported(
            f"{b.function} has indices that depend on the inputs", "Use indices that are constants of the model."
        )
    tensor: Tensor = index.tensor if isinstance(index, Leaf) else torch.as_tensor(list(index))
    if tensor.dtype.is_floating_point or tensor.dim() != 1 or not tensor.numel():
        raise b.unsupported(
            f"{b.function} has indices of {tensor.dtype} with the shape {list(tensor.shape)}",
            "Use a list or a vector of integers.",
        )
    if tensor.dtype == torch.bool:
        if tensor.numel() != size or not bool(tensor.any()):
            raise b.unsupported(
                f"{b.function} has a mask of {tensor.numel()} elements for an axis of size {size}",
                "Use a mask with one element for each index of the axis, at least one of them true.",
            )
        return picked(b, input, axis, [int(item) for item in tensor.nonzero().flatten()])
    found = [int(item) for item in tensor.tolist()]
    if not all(-size <= item < size for item in found):
        raise b.unsupported(
            f"{b.function} has the indices {found} for an axis of size {size}",
            f"Use indices from {-size} to {size - 1}.",
        )
    return picked(b, input, axis, [item % size for item in found])


@rule("index")
def _index(b: Builder, input: Operand, indices: Sequence[object]) -> Operand:
    """`x[:, indices]`, where indices for several axes are an outer product: `x[:, rows[:, None], columns]`."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    result = input
    together = _as_vector(input, given)
    if together is not None:
        result = b.node("reshape", [input], shape=together.shape)
        given = [(together.axis, Leaf("constant", "", together.index))]
    elif len(given) > 1 and not _is_outer_product(given):
        raise b.unsupported(PAIRS, ONE_BY_ONE)
    for axis, index in given:
        flat = Leaf("constant", "", index.tensor.reshape(-1)) if isinstance(index, Leaf) else index
        result = pick(b, result, axis, flat)
    return result if result.type.shape == b.shape else b.node("reshape", [result], shape=b.shape)


@dataclass(frozen=True)
class _Vector:
    """Indices of several axes as indices of one axis, in the shape in which these axes are one."""

    shape: Shape
    axis: int
    index: Tensor


def _as_vector(input: Operand, given: Sequence[tuple[int, object]]) -> _Vector | None:
    """Elements in pairs, `x[:, rows, columns]`, and a mask over several axes; None for anything else."""
    leaves = [(axis, index.tensor) for axis, index in given if isinstance(index, Leaf)]
    if not leaves or len(leaves) < len(given) or any(tensor.dtype.is_floating_point for _, tensor in leaves):
        return None
    first, tensor = leaves[0]
    if len(leaves) == 1 and tensor.dtype == torch.bool and tensor.dim() > 1:
        leaves = [(first + axis, places) for axis, places in enumerate(tensor.nonzero(as_tuple=True))]
    elif len(leaves) == 1 or _is_outer_product(given) or any(x.dtype == torch.bool for _, x in leaves):
        return None
    sizes = [input.type.shape[axis] for axis, _ in leaves]
    fixed = [size for size in sizes if isinstance(size, int)]
    if [axis for axis, _ in leaves] != list(range(first, first + len(leaves))) or len(fixed) < len(sizes):
        return None  # torch moves the axis of pairs to the front if another axis is in between
    index = torch.zeros((), dtype=torch.int64)
    for size, (_, places) in zip(fixed, leaves, strict=True):
        index = index * size + places.cpu() % size
    shape = (*input.type.shape[:first], math.prod(fixed), *input.type.shape[first + len(leaves) :])
    return _Vector(shape, first, index)


def _is_outer_product(given: Sequence[tuple[int, object]]) -> bool:
    """Whether vectors for adjacent axes vary along axes of their own, in the order of these axes."""
    first, varying = given[0][0], []
    for position, (axis, index) in enumerate(given):
        if axis != first + position or not isinstance(index, Leaf) or index.tensor.dtype == torch.bool:
            return False
        own = [place - index.tensor.dim() for place, size in enumerate(index.tensor.shape) if size > 1]
        if len(own) > 1:
            return False
        varying += own
    return varying == sorted(set(varying))


@rule("index_select")
def _index_select(b: Builder, input: Operand, dim: int, index: object) -> Operand:
    axis = axis_of(input, dim)
    return pick(b, input, axis, index)


@rule("flip")
def _flip(b: Builder, input: Operand, *dims: Any) -> Operand:
    axes = dims[0] if len(dims) == 1 and isinstance(dims[0], Sequence) else dims
    result = input
    for axis in (axis_of(input, dim) for dim in axes):
        result = picked(b, result, axis, list(reversed(range(_size(b, input, axis)))))
    return result


@rule("fliplr")
def _fliplr(b: Builder, input: Operand) -> object:
    return _flip(b, input, 1)


@rule("rot90")
def _rot90(b: Builder, input: Operand, k: int = 1, dims: Sequence[int] = (0, 1)) -> Operand:
    first, second = (axis_of(input, dim) for dim in dims)
    turns = k % 4
    result = input
    if turns in (1, 2):
        result = picked(b, result, second, list(reversed(range(_size(b, input, second)))))
    if turns in (2, 3):
        result = picked(b, result, first, list(reversed(range(_size(b, input, first)))))
    if turns in (1, 3):
        axes = list(range(input.type.rank))
        axes[first], axes[second] = axes[second], axes[first]
        result = b.node("permute", [result], axes=tuple(axes))
    return result


@rule("roll")
def _roll(b: Builder, input: Operand, shifts: Ints, dims: Ints | None = None) -> Operand:
    if dims is None or dims == []:
        raise b.unsupported(
            "a roll over all elements in row-major order", "Name the axes: torch.roll(x, shifts, dims)."
        )
    axes = [axis_of(input, dim) for dim in as_tuple(dims, 1)]
    result = input
    for axis, shift in zip(axes, as_tuple(shifts, 1), strict=True):
        size = _size(b, input, axis)
        result = picked(b, result, axis, [(index - shift) % size for index in range(size)])
    return result


def _repeated(b: Builder, input: Operand, counts: Sequence[Any]) -> Operand:
    shape = input.type.shape
    lead = len(counts) - len(shape)
    result = input
    if lead:
        result = b.node("reshape", [input], shape=(*(1,) * lead, *shape))
    for axis, count in enumerate(counts):
        if isinstance(count, int):
            continue
        own = result.type.shape
        if own[axis] != 1:
            raise b.unsupported(
                f"{b.function} by a number that depends on the batch", "Repeat axes of one element by it."
            )
        result, counts = (
            b.expanded(result, (*own[:axis], as_dim(count), *own[axis + 1 :])),
            [1 if place == axis else item for place, item in enumerate(counts)],
        )
    for axis, count in enumerate(counts):
        if count != 1:
            result = picked(b, result, axis, list(range(_size(b, result, axis))) * count)
    return result


@rule("repeat", "tile")
def _repeat(b: Builder, input: Operand, *repeats: Any) -> Operand:
    counts = list(repeats[0]) if len(repeats) == 1 and isinstance(repeats[0], Sequence) else list(repeats)
    if b.function == "tile":
        counts = [1] * (input.type.rank - len(counts)) + counts
    return _repeated(b, input, counts)


@rule("repeat_interleave")
def _repeat_interleave(
    b: Builder, input: Operand, repeats: object, dim: int | None = None, *, output_size: int | None = None
) -> Operand:
    if dim is None:
        raise b.unsupported("repeat_interleave over all elements", "Name the axis: repeat_interleave(repeats, dim=1).")
    axis = axis_of(input, dim)
    size = _size(b, input, axis)
    counts = [repeats] * size if isinstance(repeats, int) else None
    if isinstance(repeats, Leaf):
        counts = [int(item) for item in repeats.tensor.expand(size)]
    if counts is None:
        raise b.unsupported("repeat_interleave by numbers that depend on the inputs", "Use constants of the model.")
    return picked(b, input, axis, [index for index, count in enumerate(counts) for _ in range(count)])


@rule("expand", "expand_as", "broadcast_to")
def _expand(b: Builder, input: Operand, *arguments: object, **keywords: object) -> Operand:
    """The operand repeated to the shape of the call's result."""
    shape, own = b.shape, input.type.shape
    result = input
    if len(own) < len(shape):
        result = b.node("reshape", [input], shape=(*(1,) * (len(shape) - len(own)), *own))
    for axis, (new, old) in enumerate(zip(shape, result.type.shape, strict=True)):
        if new == old:
            continue
        if not isinstance(new, int):
            return b.expanded(result, shape)
        result = picked(b, result, axis, [0] * new)
    return result


def _mirror(index: int, size: int) -> int:
    index = abs(index)
    return index if index < size else 2 * (size - 1) - index


_BORDERS: Mapping[str, Callable[[int, int], int]] = {
    "reflect": _mirror,
    "replicate": lambda index, size: min(max(index, 0), size - 1),
    "circular": lambda index, size: index % size,
}
"""Element of an axis that a border repeats: by mode, from a position before the first or after the last element."""


def _padded(b: Builder, input: Operand, pad: Sequence[int], value: float) -> Value:
    rank = input.type.rank
    begins, ends = [0] * rank, [0] * rank
    for index in range(len(pad) // 2):
        axis = rank - 1 - index
        begins[axis], ends[axis] = int(pad[2 * index]), int(pad[2 * index + 1])
        if (begins[axis] or ends[axis]) and not isinstance(input.type.shape[axis], int):
            raise b.unsupported(f"{b.function} adds samples to the batch", "Pad axes of fixed size.")
    return b.node("pad", [input], pad=(*begins, *ends), value=value)


@rule("pad")
def _pad(
    b: Builder, input: Operand, pad: Sequence[int], mode: object = "constant", value: float | None = None
) -> Operand:
    if isinstance(mode, int | float):  # aten.constant_pad_nd has the value in this place
        mode, value = "constant", float(mode)
    if mode == "constant":
        return _padded(b, input, pad, float(value or 0.0))
    if mode not in _BORDERS:
        raise b.unsupported(f"padding of mode {mode!r}", f"Use constant, {', '.join(_BORDERS)}.")
    result, rank = input, input.type.rank
    for position in range(len(pad) // 2):
        axis, begin, end = rank - 1 - position, int(pad[2 * position]), int(pad[2 * position + 1])
        size = _size(b, input, axis)
        border = _BORDERS[str(mode)]
        result = picked(b, result, axis, [border(index, size) for index in range(-begin, size + end)])
    return result


def _pad_of(mode: str) -> Callable[[Builder, Operand, Sequence[int]], Operand]:
    """The rule of an operator that pads in one mode."""
    return lambda b, input, padding: _pad(b, input, padding, mode)


rule("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")(_pad_of("reflect"))
rule("replication_pad1d", "replication_pad2d", "replication_pad3d")(_pad_of("replicate"))
rule("pad_circular")(_pad_of("circular"))
