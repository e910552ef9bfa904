"""Assignments to a part of a tensor: the parts around it and the new part, concatenated.

    o[:, 2:4] = y        ->  o = concat(o[:, :2], y, o[:, 4:])
    o[:, 2:4, 1:] = y    ->  o = concat(o[:, :2], concat(o[:, 2:4, :1], y), o[:, 4:])
    o[:, ::2] = y        ->  o = concat(y[:, :1], o[:, 1:2], y[:, 1:2], ...), or a gather of concat(o, y)

Parts that were assigned before are taken as they were given: see `assembly`. A tensor of zeros for the whole batch is
one sample, which becomes the padding of y: see `rules_movement`.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.assembly import assembled, cut, elements
from qcompiler.frontends.builder import Builder, Operand
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
    sizes = [(x.type.shape[0], own[0]) for x, own in ((held, mine), (written, theirs)) if x.type.shape]
    # One sample stands for the whole batch.
    has_batch = any(not isinstance(size, int) or size != seen for size, seen in sizes)
    if has_batch and (overlap.place[0] != range(mine[0]) or overlap.source[0] != range(theirs[0])):
        return None
    skipped = int(has_batch)
    try:
        part = written
        for axis, place in enumerate(overlap.source[skipped:], skipped):
            part = cut(b, part, axis, place.start, place.stop, place.step)
        first = part.type.shape[:skipped]
        part = _reshaped(b, part, (*first, *(len(place) for place in overlap.place[skipped:])))
        axes = [axis for axis, place in enumerate(overlap.place) if axis >= skipped and place != range(mine[axis])]
        return _put(b, held, part, axes, overlap.place)
    except UnsupportedError:
        return None


def _put(b: Builder, base: Operand, part: Operand, axes: Sequence[int], place: Sequence[range]) -> Operand:
    """`base` with `part` in the box that spans all axes but `axes`."""
    if not axes:
        return part
    axis, *rest = axes
    found = elements(b, base, axis)
    if rest:
        part = _put(b, assembled(b, [found[index] for index in place[axis]], axis), part, rest, place)
    inner = elements(b, part, axis)
    for position, index in enumerate(place[axis]):
        found[index] = inner[position]
    return assembled(b, found, axis)


def _reshaped(b: Builder, input: Operand, shape: Shape) -> Operand:
    if input.type.shape == shape:
        return input
    if isinstance(input, Leaf) and not input.ref:
        return Leaf(input.kind, "", input.tensor.reshape([size for size in shape if isinstance(size, int)]))
    return b.node("reshape", [input], shape=shape)
