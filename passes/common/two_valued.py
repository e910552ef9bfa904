"""Real numbers that are made of masks: each has one number where a condition is true, another where it is false.

convert(c)                                    ->  select(c, 1, 0)
convert(i), i an integer that ends in a mask  ->  select(i != 0, 1, 0)            if it is 0 or 1 in all samples
f(select(c, a, b), constants)                 ->  select(c, f(a), f(b))            f: elementwise
move(select(c, a, b))                         ->  select(move(c), a, b)            move: reshape, permute, expand, ...
convert(select(c, a, b)), to booleans         ->  c, not c, or a constant
compare(select(c, a, b), constant)            ->  the same
select(not c, x, y)                           ->  select(c, y, x)
select(d, select(c, a, b), constant)          ->  select(c and d, ...), if two numbers remain
mul(x, select(c, 1, 0))                       ->  masked(x, c)
select(c, x, 0)                               ->  masked(x, c)

What is left of them before a softmax becomes its mask, see `common.softmax_masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import interpret
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import DType
from qcompiler.ops.exact import WHOLE, computes_exactly
from qcompiler.ops.quantizers import is_leaf, leaf_tensor

__all__ = ["TwoValued", "both", "negated", "rules", "two_valued", "zeros_and_ones"]

Rule: TypeAlias = Callable[[Node, Rewriter], bool]

TAKEN_AS_MASK = Sentence("integers-as-mask", "integers that end in a mask: every number but 0 counts as 1")
OF_A_MASK = Sentence("numbers-of-mask", "{op} of numbers that a mask chooses")
ZEROED = Sentence("zeroed-by-mask", "elements are 0 where a mask is false")

FAR = -1e4
"""Numbers from here down are alike: all of them exclude an element from a softmax."""
LOWEST = float(torch.finfo(torch.float32).min)


@dataclass(frozen=True)
class TwoValued:
    """A value with one number where a condition is true and another where it is false.

    Args:
        condition: Booleans, a leaf or computed.
        yes: The number where it is true.
        no: The number where it is false.
    """

    condition: Value
    yes: float
    no: float


def two_valued(value: Value) -> TwoValued | None:
    """`value` if it has two numbers that a computed condition chooses."""
    node = value.made_by("select")
    if node is None:
        return None
    yes, no = (_number(operand) for operand in node.inputs[1:])
    return None if yes is None or no is None else TwoValued(node.inputs[0], yes, no)


def _number(value: Value) -> float | None:
    if not is_leaf(value) or not value.type.dtype.is_float:
        return None
    tensor = leaf_tensor(value)
    return float(tensor) if tensor.numel() == 1 else None


def negated(condition: Value, node: Node, rewriter: Rewriter) -> Value:
    """The condition that is true where another is false."""
    inverse = condition.made_by("not")
    return rewriter.insert("not", [condition], before=node, like=node).output if inverse is None else inverse.inputs[0]


def both(a: Value, b: Value, node: Node, rewriter: Rewriter) -> Value:
    """The condition that is true where two are."""
    return rewriter.insert("exact", [a, b], {"compute": "and"}, before=node, like=node).output


def _either(a: Value, b: Value, node: Node, rewriter: Rewriter) -> Value:
    return rewriter.insert("exact", [a, b], {"compute": "or"}, before=node, like=node).output


def _select(node: Node, condition: Value, yes: float, no: float, rewriter: Rewriter) -> bool:
    """Replace a node by a choice between two numbers."""
    dtype = node.output.type.dtype.torch
    leaves = [
        rewriter.leaf("constant", torch.tensor(number, dtype=dtype), ref=f"{node.name}.{name}", before=node, like=node)
        for name, number in (("yes", yes), ("no", no))
    ]
    chosen = rewriter.insert("select", [condition, *leaves], before=node, like=node)
    return _replaced(node, chosen.output, rewriter)


def _replaced(node: Node, value: Value, rewriter: Rewriter) -> bool:
    if value.type.shape != node.output.type.shape:
        return False
    if value.producer is not None:
        rewriter.note(value.producer, OF_A_MASK(op=node.op))
    rewriter.replace(node, value)
    return True


def _boolean(node: Node, condition: Value, yes: bool, no: bool, rewriter: Rewriter) -> bool:
    """Replace a node by a condition, its negation, or a constant."""
    if yes == no:
        sizes = condition.type.shape
        if not all(isinstance(size, int) for size in sizes):
            return False
        constant = torch.full(condition.type.sizes, yes)
        leaf = rewriter.leaf("constant", constant, ref=f"{node.name}.value", before=node, like=node)
        return _replaced(node, leaf, rewriter)
    return _replaced(node, condition if yes else negated(condition, node, rewriter), rewriter)


def zeros_and_ones(graph: Graph, samples: Iterable[Sequence[Tensor]]) -> frozenset[str]:
    """Names of the conversions of integers that are 0 or 1 in all samples."""
    read = {node.inputs[0] for node in graph.nodes if node.op == "convert" and node.inputs[0].type.dtype in WHOLE}
    others: set[Value] = set()

    def observe(value: Value, tensor: Tensor) -> None:
        if value in read and bool(((tensor != 0) & (tensor != 1)).any()):
            others.add(value)

    if read:
        with torch.no_grad():
            for sample in samples:
                interpret(graph, sample, graph.module.tensors, observe=observe)
                for value, tensor in zip(graph.inputs, sample, strict=True):
                    observe(value, tensor)
    found = read - others
    return frozenset(node.name for node in graph.nodes if node.op == "convert" and node.inputs[0] in found)


def _convert(node: Node, rewriter: Rewriter, masks: Collection[str]) -> bool:
    x, result = node.inputs[0], node.output.type.dtype
    if result.is_float:
        if x.type.dtype is DType.BOOL:
            return _select(node, x, 1.0, 0.0, rewriter)
        if node.name not in masks or not _ends_in_masks(node):
            return False
        zero = torch.zeros((), dtype=x.type.dtype.torch)
        leaf = rewriter.leaf("constant", zero, ref=f"{node.name}.zero", before=node, like=node)
        condition = rewriter.insert("exact", [x, leaf], {"compute": "not_equal"}, before=node, like=node)
        rewriter.note(condition, TAKEN_AS_MASK())
        return _select(node, condition.output, 1.0, 0.0, rewriter)
    found = two_valued(x)
    if found is None or result is not DType.BOOL:
        return False
    return _boolean(node, found.condition, bool(found.yes), bool(found.no), rewriter)


def _ends_in_masks(node: Node) -> bool:
    """Whether arithmetic with constants alone leads from `node` to booleans, to far numbers, or to factors of data."""
    waiting, seen, found = [node.output], {node}, False
    while waiting:
        value = waiting.pop()
        if node.graph.is_output(value):
            return False
        for user in value.users:
            others = [other for other in user.inputs if other is not value]
            if computes_exactly(user):
                found = True
                continue
            constant = all(map(is_leaf, others))
            if user.definition.has(Trait.ELEMENTWISE) or user.op in ("select", "div"):
                found = found or any(_is_far(other) for other in others) or (user.op == "mul" and not constant)
                if not constant and user.op in ("mul", "select"):
                    continue
                if not constant:
                    return found and user.op == "add"
            elif not (user.definition.has(Trait.UNARY, Trait.CLAMP, Trait.MOVEMENT) and len(others) < 2):
                return False
            if user not in seen:
                seen.add(user)
                waiting.append(user.output)
    return found


def _is_far(value: Value) -> bool:
    return is_leaf(value) and value.type.dtype.is_float and bool((leaf_tensor(value).abs() >= -FAR).any())


def _compare(node: Node, rewriter: Rewriter) -> bool:
    left, right = (_as_numbers(value) for value in node.inputs)
    conditions = [side.condition for side in (left, right) if isinstance(side, TwoValued)]
    if left is None or right is None or len(set(conditions)) != 1:
        return False
    yes, no = (
        bool(node.definition.evaluate(node, [torch.tensor(_of(side, which)) for side in (left, right)])[0])
        for which in (True, False)
    )
    return _boolean(node, conditions[0], yes, no, rewriter)


def _as_numbers(value: Value) -> TwoValued | float | None:
    found = two_valued(value)
    return _number(value) if found is None else found


def _of(side: TwoValued | float, which: bool) -> float:
    return (side.yes if which else side.no) if isinstance(side, TwoValued) else side


def _elementwise(node: Node, rewriter: Rewriter) -> bool:
    """A function of constants and of numbers that a condition chooses, or two conditions, if two numbers remain."""
    sides = [_as_numbers(value) for value in node.inputs]
    conditions = [side.condition for side in sides if isinstance(side, TwoValued)]
    if not conditions or any(side is None for side in sides):
        return node.op == "mul" and _product(node, rewriter)
    known = [side for side in sides if side is not None]

    def number(*which: bool) -> float:
        chosen = dict(zip(dict.fromkeys(conditions), which, strict=True))
        numbers = [_of(side, chosen[side.condition] if isinstance(side, TwoValued) else True) for side in known]
        return float(node.definition.evaluate(node, [torch.tensor(item) for item in numbers])[0])

    if len({*conditions}) == 1:
        return _select(node, conditions[0], number(True), number(False), rewriter)
    return _combined(node, conditions, number, rewriter)


def _combined(
    node: Node, conditions: Sequence[Value], number: Callable[[bool, bool], float], rewriter: Rewriter
) -> bool:
    """A function of two conditions that gives two numbers, far ones alike."""
    a, b = conditions
    cells = {(p, q): number(p, q) for p in (True, False) for q in (True, False)}
    cells = {key: LOWEST if value <= FAR else value for key, value in cells.items()}
    numbers = list(dict.fromkeys(cells.values()))
    if len(numbers) != 2:
        return False
    single = next((value for value in numbers if list(cells.values()).count(value) == 1), None)
    if single is None:
        return False
    other = next(value for value in numbers if value != single)
    (place,) = (key for key, value in cells.items() if value == single)
    literals = [x if wanted else negated(x, node, rewriter) for x, wanted in zip((a, b), place, strict=True)]
    return _select(node, both(literals[0], literals[1], node, rewriter), single, other, rewriter)


def _product(node: Node, rewriter: Rewriter) -> bool:
    """mul(x, select(c, 1, 0))  ->  masked(x, c)."""
    for index, value in enumerate(node.inputs):
        found = two_valued(value)
        x = node.inputs[1 - index]
        if found is None or 0.0 not in (found.yes, found.no) or x.type.shape != node.output.type.shape:
            continue
        kept = found.condition if found.no == 0.0 else negated(found.condition, node, rewriter)
        factor = found.yes if found.no == 0.0 else found.no
        if factor != 1.0:
            constant = torch.tensor(factor, dtype=x.type.dtype.torch)
            leaf = rewriter.leaf("constant", constant, ref=f"{node.name}.factor", before=node, like=node)
            x = rewriter.insert("mul", [x, leaf], before=node, like=node).output
        return _zeroed(node, x, kept, rewriter)
    return False


def _zeroed(node: Node, x: Value, kept: Value, rewriter: Rewriter) -> bool:
    masked = rewriter.insert("masked", [x, kept], before=node, like=node)
    rewriter.note(masked, ZEROED())
    rewriter.replace(node, masked.output)
    return True


def _moved(node: Node, rewriter: Rewriter) -> bool:
    """A movement of numbers that a condition chooses moves the condition."""
    found = two_valued(node.inputs[0])
    if found is None or node.inputs[0].type.shape != found.condition.type.shape:
        return False
    moved = rewriter.insert(node.op, [found.condition, *node.inputs[1:]], node.attributes, before=node, like=node)
    return _select(node, moved.output, found.yes, found.no, rewriter)


def _chosen(node: Node, rewriter: Rewriter) -> bool:
    """A choice whose parts are numbers, other choices, or 0."""
    condition, *parts = node.inputs
    inverse = condition.made_by("not")
    if inverse is not None:
        for index, value in enumerate((inverse.inputs[0], parts[1], parts[0])):
            rewriter.replace_input(node, index, value)
        return True
    sides = [_as_numbers(value) for value in parts]
    inner = [side for side in sides if isinstance(side, TwoValued)]
    if all(side is not None for side in sides) and inner:
        if len(inner) == 1 and inner[0].condition is not condition:
            first = sides[0] if isinstance(sides[0], TwoValued) else sides[1]
            assert isinstance(first, TwoValued)

            def number(outer: bool, of: bool) -> float:
                side = sides[0] if outer else sides[1]
                assert side is not None
                return _of(side, of)

            return _combined(node, [condition, first.condition], number, rewriter)
        if all(item.condition is condition for item in inner):
            assert sides[0] is not None and sides[1] is not None
            return _select(node, condition, _of(sides[0], True), _of(sides[1], False), rewriter)
        return False
    if not any(is_leaf(part) or two_valued(part) for part in parts):
        return _of_data(node, rewriter)
    for index, side in enumerate(sides):
        x = parts[1 - index]
        if side == 0.0 and not is_leaf(x) and x.type.shape == node.output.type.shape:
            return _zeroed(node, x, negated(condition, node, rewriter) if index == 0 else condition, rewriter)
        constant = _constant_mask(parts[index], x, node, rewriter) if is_leaf(parts[index]) else None
        if constant is not None:
            kept = negated(condition, node, rewriter) if index == 1 else condition
            return _select(node, both(kept, constant, node, rewriter), 0.0, LOWEST, rewriter)
    return False


def _of_data(node: Node, rewriter: Rewriter) -> bool:
    """select(c, x, y)  ->  masked(x, c) + masked(y, not c)."""
    condition, *parts = node.inputs
    if any(part.type.shape != node.output.type.shape for part in parts):
        return False
    sides = [
        rewriter.insert("masked", [part, kept], before=node, like=node).output
        for part, kept in zip(parts, (condition, negated(condition, node, rewriter)), strict=True)
    ]
    joined = rewriter.insert("add", sides, before=node, like=node)
    rewriter.note(joined, ZEROED())
    rewriter.replace(node, joined.output)
    return True


def _constant_mask(part: Value, other: Value, node: Node, rewriter: Rewriter) -> Value | None:
    """The booleans of a constant mask of zeros and far numbers next to a far number."""
    number, tensor = _number(other), leaf_tensor(part)
    if number is None or number > FAR or not part.type.dtype.is_float or tensor.numel() < 2:
        return None
    far = tensor <= FAR
    if bool((tensor[~far] != 0).any()):
        return None
    return rewriter.leaf("constant", ~far, ref=f"{node.name}.kept", before=node, like=node)


def rules(masks: Collection[str]) -> Mapping[str, Rule]:
    """The rules by operator, in canonical graphs.

    Args:
        masks: Names of the conversions of integers that are 0 or 1; see `zeros_and_ones`.
    """
    return {"convert": lambda node, rewriter: _convert(node, rewriter, masks), **_RULES}


_RULES: Mapping[str, Rule] = {
    "compare": _compare,
    "select": _chosen,
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), _elementwise),
    **dict.fromkeys(("relu", "clamp", "abs", "exp", "log", "sqrt"), _elementwise),
    **dict.fromkeys(("reshape", "permute", "slice", "gather", "expand"), _moved),
}
