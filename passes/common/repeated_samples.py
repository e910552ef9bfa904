"""One sample that is repeated for the whole batch: nodes that broadcast read the sample itself.

add(x, expand(s))                  ->  add(x, s)                     where x has all samples
f(expand(s))                       ->  expand(f(s))                  f works on each sample alone
embedding(rows, expand(ids))       ->  expand(embedding(rows, ids))
softmax(x, expand(mask))           ->  softmax(x, mask)
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.dims import Shape
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.common import broadcast
from qcompiler.ops.layers import is_weighted

__all__ = ["read_sample"]

BROADCASTS = Sentence("sample-broadcasts", "reads one sample, which broadcasts")
LATER = Sentence("repeated-later", "is computed for one sample and repeated afterwards")

_BROADCASTING = ("add", "sub", "mul", "div", "maximum", "minimum", "exact", "compare", "matmul")


def read_sample(node: Node, rewriter: Rewriter) -> bool:
    """Let a node read the sample behind a repetition along the first axis, or repeat its result in place of it."""
    places = [index for index, value in enumerate(node.inputs) if _repeated(value) is not None]
    if not places or node.op in ("call", "custom"):
        return False
    return _broadcasts(node, places, rewriter) or _sink(node, places, rewriter)


def _repeated(value: Value) -> Node | None:
    """The node that repeats a value along its first axis alone."""
    node = value.made_by("expand")
    if node is None or node.location.place or node.inputs[0].type.shape[1:] != value.type.shape[1:]:
        return None  # the first state of a loop is computed with like those after it
    return node


def _sample(value: Value) -> Value:
    node = _repeated(value)
    return value if node is None else node.inputs[0]


def _broadcasts(node: Node, places: Sequence[int], rewriter: Rewriter) -> bool:
    changed = False
    for index in places:
        value = node.inputs[index]
        if not (node.op in _BROADCASTING or (node.op in ("softmax", "masked", "select") and index != _data(node))):
            continue
        others = [other.type.shape for other in node.inputs if other is not value]
        if node.op == "matmul":
            others = [(*shape[:-2], 1, 1) for shape in others if len(shape) == node.output.type.rank]
        if len(others) < len(node.inputs) - 1 or not _covers(others, value.type.shape):
            continue
        rewriter.replace_input(node, index, _sample(value))
        rewriter.note(node, BROADCASTS())
        changed = True
        break
    return changed


def _data(node: Node) -> int:
    """Position of the operand that has the shape of the result; `select` broadcasts all of them."""
    return -1 if node.op == "select" else 0


def _covers(others: Sequence[Shape], shape: Shape) -> bool:
    """Whether the result has all samples without a repetition, and no other axis changes."""
    try:
        common: Shape = ()
        for other in others:
            common = broadcast(common, other)
    except GraphError:
        return False
    return len(common) == len(shape) and common[0] == shape[0]


def _sink(node: Node, places: Sequence[int], rewriter: Rewriter) -> bool:
    """Compute one sample, and repeat the result."""
    if len(node.outputs) != 1 or not _works_on_samples(node, places):
        return False
    expand = _repeated(node.inputs[places[0]])
    assert expand is not None
    operands = [_sample(value) if index in places else value for index, value in enumerate(node.inputs)]
    attributes: dict[str, Attribute] = dict(node.attributes)
    shape = node.output.type.shape
    if node.op == "reshape":
        attributes["shape"] = (1, *shape[1:])
    try:
        one = rewriter.insert(node.op, operands, attributes, before=node, like=node)
    except GraphError:
        return False
    back = rewriter.insert("expand", [one.output, expand.inputs[1]], {"shape": shape}, before=node, like=expand)
    rewriter.note(one, LATER())
    rewriter.replace(node, back.output)
    return True


def _works_on_samples(node: Node, places: Sequence[int]) -> bool:
    """Whether each sample of the result depends on the same sample of the repeated operands alone."""
    shapes = [node.inputs[index].type.shape[:1] for index in places]
    if node.output.type.shape[:1] != shapes[0] or any(shape != shapes[0] for shape in shapes):
        return False
    others = [index for index in range(len(node.inputs)) if index not in places]
    if node.op == "embedding":
        return places == [1]
    if node.op in ("reshape", "cast", "not"):
        return True
    if node.op == "permute":
        return node.integers("axes")[0] == 0
    if node.op in ("slice", "gather", "softmax", "cumsum"):
        return node.integer("axis") != 0 and not others
    if is_weighted(node):
        return places == [0] and node.inputs[0].type.rank > 1
    if node.op in ("exact", "compare", "add", "sub", "mul"):
        return all(len(node.inputs[index].type.shape) < node.output.type.rank for index in others)
    return not others and node.definition.has(Trait.UNARY, Trait.CLAMP) and len(places) == 1
