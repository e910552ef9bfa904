"""Finds quantizers with a scale and zero point that the hardware fixes."""

from __future__ import annotations

from qcompiler.ir.graph import Node, Value
from qcompiler.ops.custom import function_name
from qcompiler.targets import Target
from qcompiler.targets.schema import FixedGrid


def fixed_grid(quantizer: Node, target: Target) -> FixedGrid | None:
    """The grid of any width that `target` fixes for the operand of `quantizer`; None if calibration finds the grid."""
    op = _computed_by(quantizer.inputs[0])
    rule = target.op_rule(op) if op else None
    return None if rule is None else rule.out_fixed


def is_dictated(quantizer: Node, target: Target) -> bool:
    """Whether `target` fixes the grid of `quantizer`, with the same width."""
    grid = fixed_grid(quantizer, target)
    return grid is not None and grid.bits == quantizer.spec.bits


def _computed_by(value: Value) -> str:
    """The op, or the torch function without an op, that computes `value`; for a float island, its last op."""
    node = value.producer
    if node is not None and node.callee is not None:
        node = node.callee.outputs[node.outputs.index(value)].producer
    return "" if node is None else function_name(node)
