"""Lower operators that move codes unchanged."""

from __future__ import annotations

from qcompiler.errors import PassError
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.table import Table
from qcompiler.ops.borders import border
from qcompiler.ops.quantizers import border_code
from qcompiler.passes.lower_to_integer.lowering import Keep, Lower, Lowering, Output

lowers: Table[Lower] = Table()
keeps: Table[Keep] = Table()


@lowers(Trait.MOVEMENT)
def behind(lowering: Lowering, node: Node, out: Output) -> Value:
    """Refuse a quantizer behind a movement of real numbers."""
    raise PassError(f"the quantizer stands behind {node.op}", where=node.where, fix="Quantize in front of it.")


@keeps(Trait.MOVEMENT)
def movement(lowering: Lowering, node: Node) -> Value:
    """The codes of the operands in other places."""
    operands = [lowering.lowered[value] for value in node.inputs]
    attributes = dict(node.attributes)
    limits = [lowering.limits[value] for value in operands]
    if node.op == "pad":
        code = border_code(node, lowering.params(operands[0]), limits[0])
        attributes["value"] = float(code)
        if border(node) is not None:
            limits.append((code, code))
    moved = lowering.rewriter.insert(node.op, operands, attributes, before=node, like=node, name=f"{node.name}.int")
    lowering.limits[moved.output] = (min(low for low, _ in limits), max(high for _, high in limits))
    return moved.output
