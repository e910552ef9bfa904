"""Tensors that a forward assembles along an axis, element by element of the axis.

    slice(concat(a, b))       elements of a and b themselves
    gather(x, indices)        elements of x
    pad(x)                    elements of x between those of a constant

An assembled tensor is a concat of runs of its sources, or if it consists of many runs, a gather of a concat: an
assignment after another one starts from the sources again, so that nothing remains of what both have replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

from qcompiler.frontends.builder import Builder, Operand
from qcompiler.frontends.rules_movement import joined
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.graph import Node, Value

Element: TypeAlias = "tuple[Operand, int]"
"""A source, and an index along the axis."""

MOST_RUNS = 8
"""Number of runs up to which they are sliced and concatenated."""


def elements(b: Builder, input: Operand, axis: int) -> list[Element]:
    """The elements of `input` along an axis of fixed size, from the sources of movements along this axis."""
    own = [(input, index) for index in range(input.type.size(axis))]
    node = input.producer if isinstance(input, Value) else None
    if node is None:
        return own
    if node.op == "concat" and node.integer("axis") == axis:
        return [element for value in node.inputs for element in elements(b, value, axis)]
    if node.op == "slice" and node.integer("axis") == axis:
        start, stop, step = (node.integer(key) for key in ("start", "stop", "step"))
        return elements(b, node.inputs[0], axis)[start:stop:step]
    if node.op == "gather" and node.integer("axis") == axis:
        found = elements(b, node.inputs[0], axis)
        return [found[index] for index in node.integers("indices")]
    return _between_borders(b, node, axis) if node.op == "pad" else own


def _between_borders(b: Builder, pad: Node, axis: int) -> list[Element]:
    amounts, rank = pad.integers("pad"), pad.output.type.rank
    begin, end = amounts[axis], amounts[rank + axis]
    if min(begin, end) < 0 or sum(amounts) != begin + end or any(amount < 0 for amount in amounts):
        return [(pad.output, index) for index in range(pad.output.type.size(axis))]
    found: list[Element] = []
    for count in (begin, end):
        sizes = [1 if not isinstance(size, int) else size for size in pad.output.type.shape]
        sizes[axis] = count
        border = torch.full(sizes, pad.number("value"), dtype=pad.output.type.dtype.torch, device=b.device)
        leaf = Leaf("constant", "", border)
        found += [(leaf, index) for index in range(count)]
    return [*found[:begin], *elements(b, pad.inputs[0], axis), *found[begin:]]


def assembled(b: Builder, found: Sequence[Element], axis: int) -> Operand:
    """The tensor with these elements along an axis."""
    runs = _runs(found)
    sources = list({id(source): source for source, *_ in runs}.values())
    if len(runs) <= max(MOST_RUNS, 2 * len(sources)):
        parts = [cut(b, source, axis, start, stop) for source, start, stop in runs]
        constants = [part.tensor for part in parts if isinstance(part, Leaf) and not part.ref]
        if len(constants) == len(parts):
            return Leaf("constant", "", torch.cat(constants, axis))
        return parts[0] if len(parts) == 1 else joined(b, parts, axis)
    offsets, total = {}, 0
    for source in sources:
        offsets[id(source)] = total
        total += source.type.size(axis)
    whole = b.value(sources[0]) if len(sources) == 1 else joined(b, sources, axis)
    indices = tuple(offsets[id(source)] + index for source, index in found)
    return b.node("gather", [whole], axis=axis, indices=indices)


def _runs(found: Sequence[Element]) -> list[tuple[Operand, int, int]]:
    """Adjacent elements of one source: the source, and the first and last index, the last excluded."""
    runs: list[tuple[Operand, int, int]] = []
    for source, index in found:
        if runs and runs[-1][0] is source and runs[-1][2] == index:
            runs[-1] = (source, runs[-1][1], index + 1)
        else:
            runs.append((source, index, index + 1))
    return runs


def cut(b: Builder, input: Operand, axis: int, start: int, stop: int, step: int = 1) -> Operand:
    """A slice; of a constant of the forward, another constant."""
    if (start, stop, step) == (0, input.type.shape[axis], 1):
        return input
    if isinstance(input, Leaf) and not input.ref:
        index = torch.arange(start, stop, step, device=input.tensor.device)
        return Leaf(input.kind, "", input.tensor.index_select(axis, index))
    return b.node("slice", [input], axis=axis, start=start, stop=stop, step=step)
