"""Assignments to a part of a tensor: the parts around it and the new part, concatenated.

    o[:, 2:4] = y        ->  o = concat(o[:, :2], y, o[:, 4:])
    o[:, 2:4, 1:] = y    ->  o = concat(o[:, :2], concat(o[:, 2:4, :1], y), o[:, 4:])

A tensor of zeros for the whole batch is one sample, which becomes the padding of y: see `rules_movement`.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.builder import Builder, Operand
from qcompiler.frontends.rules_movement import joined
from qcompiler.frontends.trace import Leaf, Overlap
from qcompiler.ir.dims import Shape


def assigned(b: Builder, held: Operand, written: Operand, overlap: Overlap) -> Operand | None:
    """`held` with a box replaced by a box of `written`; None if the batch is not in the box as a whole.

    Args:
        b: Builder that appends the parts.
        held: A tensor, or one sample of a constant that is the same for the whole batch.
        written: The new value of a tensor that shares memory with `held`.
        overlap: The boxes.
    """
    mine, theirs = overlap.shapes
    first_sizes = [x.type.shape[0] for x in (held, written) if x.type.shape]
    has_batch = not all(isinstance(size, int) for size in first_sizes)
    if has_batch and (overlap.place[0] != (0, mine[0]) or overlap.source[0] != (0, theirs[0])):
        return None
    skipped = int(has_batch)
    try:
        part = written
        for axis, (start, stop) in enumerate(overlap.source[skipped:], skipped):
            part = _sliced(b, part, axis, start, stop)
        first = part.type.shape[:skipped]
        part = _reshaped(b, part, (*first, *(stop - start for start, stop in overlap.place[skipped:])))
        axes = [axis for axis, ends in enumerate(overlap.place) if axis >= skipped and ends != (0, mine[axis])]
        return _put(b, held, part, axes, overlap.place)
    except UnsupportedError:
        return None


def _put(b: Builder, base: Operand, part: Operand, axes: Sequence[int], place: Sequence[tuple[int, int]]) -> Operand:
    """`base` with `part` in the box that spans all axes but `axes`."""
    if not axes:
        return part
    (axis, *rest), (start, stop) = axes, place[axes[0]]
    size = base.type.size(axis)
    inner = _put(b, _sliced(b, base, axis, start, stop), part, rest, place)
    pieces = [_sliced(b, base, axis, 0, start)] if start else []
    pieces.append(inner)
    if stop < size:
        pieces.append(_sliced(b, base, axis, stop, size))
    return pieces[0] if len(pieces) == 1 else joined(b, pieces, axis)


def _sliced(b: Builder, input: Operand, axis: int, start: int, stop: int) -> Operand:
    if (start, stop) == (0, input.type.shape[axis]):
        return input
    if isinstance(input, Leaf) and not input.ref:
        return Leaf(input.kind, "", input.tensor.narrow(axis, start, stop - start))
    return b.node("slice", [input], axis=axis, start=start, stop=stop, step=1)


def _reshaped(b: Builder, input: Operand, shape: Shape) -> Operand:
    if input.type.shape == shape:
        return input
    if isinstance(input, Leaf) and not input.ref:
        return Leaf(input.kind, "", input.tensor.reshape([size for size in shape if isinstance(size, int)]))
    return b.node("reshape", [input], shape=shape)
