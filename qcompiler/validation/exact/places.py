"""Exact evaluation of places of the largest and smallest elements."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.validation.exact.values import Exact, Rule, codes_of

exact: Table[Rule] = Table()


@exact("top_places")
def top_places(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """The places of codes, which are in the order of the real numbers."""
    return node.definition.evaluate(node, [codes_of(node, operands[0]).codes])[0]
