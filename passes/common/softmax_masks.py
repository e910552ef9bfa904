"""Masks of softmax: numbers far below all others become booleans, which stretch no range.

softmax(x + M), M a tensor of the model with numbers far below 0   ->  softmax(x + M', mask)   M' is 0 where M is far
softmax(x * K + M), K 0 where M is far and 1 elsewhere             ->  softmax(x, mask)
softmax(x + select(c, 0, far below 0))                         ->  softmax(x, c)   c is computed, see `two_valued`
softmax(select(c, x, far below 0))                             ->  softmax(x, c)
softmax(pad(x, far below 0))                                       ->  softmax(pad(x, 0), mask)

The exponential of a far number is 0 next to that of any other element of its row. A row without another element keeps
its numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.quantizers import is_leaf, leaf_tensor
from qcompiler.passes.base import only_user
from qcompiler.passes.common.two_valued import both, negated, two_valued

FAR = -64.0
"""Largest number that is far: exp(-64) is 2^-92, so that scores that are 40 apart do not matter."""

MASKED = Sentence("mask-found", "{count} of {total} numbers that are added are far below 0: a mask of booleans")
COMPUTED_MASK = Sentence("mask-computed", "the numbers that a computed mask adds are far below 0: a mask of booleans")
BORDER_MASKED = Sentence("border-masked", "a border of {value}: a mask of booleans")


def separate_mask(node: Node, rewriter: Rewriter) -> bool:
    """Give a softmax the mask that its operand adds or pads; False if there is none."""
    maker = node.inputs[0].producer
    if maker is None or only_user(maker) is not node:
        return False
    if maker.op in ("add", "select"):
        found = _computed(node, maker, rewriter)
        if found is not None:
            _mask(node, *found, rewriter)
            return True
    if len(node.inputs) > 1:
        return False
    if maker.op == "pad":
        return _border(node, maker, rewriter)
    return maker.op == "add" and _addend(node, maker, rewriter)


def _computed(node: Node, maker: Node, rewriter: Rewriter) -> tuple[Value, Value] | None:
    """The operand of a softmax without a computed mask, and the mask; None if there is none."""
    if maker.op == "add":
        for index, value in enumerate(maker.inputs):
            found, source = two_valued(value), maker.inputs[1 - index]
            if found is None or source.type.shape != node.output.type.shape:
                continue
            if found.yes == 0.0 and found.no <= FAR:
                return source, found.condition
            if found.no == 0.0 and found.yes <= FAR:
                return source, negated(found.condition, node, rewriter)
        return None
    condition, *parts = maker.inputs
    for index, part in enumerate(parts):
        source = parts[1 - index]
        far = is_leaf(part) and part.type.dtype.is_float and bool((leaf_tensor(part) <= FAR).all())
        if far and not is_leaf(source) and source.type.shape == node.output.type.shape:
            return source, condition if index == 1 else negated(condition, node, rewriter)
    return None


def _mask(node: Node, source: Value, mask: Value, rewriter: Rewriter) -> None:
    """Give a softmax a computed mask, in addition to the one that it has."""
    if len(node.inputs) > 1:
        mask = both(node.inputs[1], mask, node, rewriter)
    masked = rewriter.insert("softmax", [source, mask], {"axis": node.attributes["axis"]}, before=node, like=node)
    rewriter.replace(node, masked.output)
    rewriter.note(masked, COMPUTED_MASK())


def _addend(node: Node, add: Node, rewriter: Rewriter) -> bool:
    position = next((i for i, value in enumerate(add.inputs) if is_leaf(value) and value.type.dtype.is_float), None)
    if position is None:
        return False
    numbers, source = leaf_tensor(add.inputs[position]), add.inputs[1 - position]
    axis = node.integer("axis") - node.output.type.rank
    far = numbers <= FAR
    if not bool(far.any()) or numbers.dim() < -axis or bool(far.all(axis).any()):
        return False
    mask = rewriter.leaf("constant", ~far, ref=f"{node.name}.mask", before=node, like=node)
    rest = numbers.masked_fill(far, 0.0)
    if bool(rest.any()):
        values = rewriter.leaf("constant", rest, ref=f"{node.name}.bias", before=node, like=node)
        source = rewriter.insert("add", [source, values], before=node, like=add).output
    else:
        source = _unmultiplied(source, ~far)
    masked = _replace(node, source, mask, rewriter)
    rewriter.note(masked, MASKED(count=int(far.sum()), total=far.numel()))
    return True


def _unmultiplied(source: Value, kept: Tensor) -> Value:
    """x of x * K where K is 1 for every element that is kept."""
    product = source.made_by("mul")
    if product is None:
        return source
    for index, value in enumerate(product.inputs):
        if is_leaf(value) and torch.equal(leaf_tensor(value), kept.to(leaf_tensor(value).dtype)):
            return product.inputs[1 - index]
    return source


def _border(node: Node, pad: Node, rewriter: Rewriter) -> bool:
    amounts, rank, axis = pad.integers("pad"), node.output.type.rank, node.integer("axis")
    begin, end = amounts[axis], amounts[rank + axis]
    value, size = pad.number("value"), node.output.type.shape[axis]
    others = [amount for index, amount in enumerate(amounts) if index % rank != axis]
    if value > FAR or any(others) or min(begin, end) < 0 or not isinstance(size, int) or begin + end >= size:
        return False
    kept = torch.zeros([size if index == axis else 1 for index in range(rank)], dtype=torch.bool)
    kept.movedim(axis, 0)[begin : size - end] = True
    mask = rewriter.leaf("constant", kept, ref=f"{node.name}.mask", before=node, like=node)
    inner = rewriter.insert("pad", [pad.inputs[0]], {"pad": amounts, "value": 0.0}, before=node, like=pad)
    rewriter.note(_replace(node, inner.output, mask, rewriter), BORDER_MASKED(value=value))
    return True


def _replace(node: Node, source: Value, mask: Value, rewriter: Rewriter) -> Node:
    masked = rewriter.insert("softmax", [source, mask], {"axis": node.attributes["axis"]}, before=node, like=node)
    rewriter.replace(node, masked.output)
    return masked
