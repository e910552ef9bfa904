"""Lower operators that move codes unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcompiler.errors import PassError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.table import Table
from qcompiler.ops.borders import border
from qcompiler.ops.quantizers import border_code
from qcompiler.passes.lower_to_integer.lowering import Keep, Lower, Lowering, Output

lowers: Table[Lower] = Table()
keeps: Table[Keep] = Table()


@lowers(Trait.MOVEMENT)
def refused(lowering: Lowering, node: Node, out: Output) -> Value:
    """Refuse a quantizer after a movement of real numbers."""
    raise PassError(f"the quantizer is after {node.op}", where=node.where, fix="Quantize before it.")


@keeps(Trait.GUIDED)
def guided(lowering: Lowering, node: Node) -> Value:
    """Codes of the first operand; the others are exact, or give sizes."""
    x = lowering.lowered[node.inputs[0]]
    low, high = lowering.limits[x]
    if node.op == "masked":
        zero_point = int(lowering.params(x).zero_point)
        low, high = min(low, zero_point), max(high, zero_point)
    others = [lowering.lowered.get(value, value) for value in node.inputs[1:]]
    return _moved(lowering, node, [x, *others], node.attributes, (low, high))


@keeps(Trait.MOVEMENT)
def movement(lowering: Lowering, node: Node) -> Value:
    """Codes of the operands, none of which changes."""
    operands = [lowering.lowered[value] for value in node.inputs]
    lows, highs = zip(*(lowering.limits[value] for value in operands), strict=True)
    return _moved(lowering, node, operands, node.attributes, (min(lows), max(highs)))


@keeps("pad")
def pad(lowering: Lowering, node: Node) -> Value:
    """A border of one code."""
    x = lowering.lowered[node.inputs[0]]
    low, high = lowering.limits[x]
    code = border_code(node, lowering.params(x), (low, high))
    if border(node) is not None:
        low, high = min(low, code), max(high, code)
    return _moved(lowering, node, [x], {**node.attributes, "value": float(code), "inside": None}, (low, high))


def _moved(
    lowering: Lowering,
    node: Node,
    operands: Sequence[Value],
    attributes: Mapping[str, Attribute],
    limits: tuple[int, int],
) -> Value:
    moved = lowering.rewriter.insert(node.op, operands, attributes, before=node, like=node, name=f"{node.name}.int")
    lowering.limits[moved.output] = limits
    return moved.output
