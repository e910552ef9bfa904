"""Which quantizers have a grid that the hardware dictates."""

from __future__ import annotations

from typing import cast

from qcompiler.ir.graph import Node
from qcompiler.quant.spec import QuantSpec
from qcompiler.targets import Target
from qcompiler.targets.schema import FixedGrid


def fixed_grid(quantizer: Node, target: Target) -> FixedGrid | None:
    """The grid that `target` fixes for what `quantizer` reads, of whatever width; None where calibration finds one."""
    source = quantizer.inputs[0].producer
    rule = None if source is None else target.op_rule(source.op)
    return None if rule is None else rule.out_fixed


def is_dictated(quantizer: Node, target: Target) -> bool:
    """Whether `target` fixes the grid of `quantizer`: there is such a grid, and it has the width of the quantizer."""
    grid = fixed_grid(quantizer, target)
    return grid is not None and grid.bits == cast("QuantSpec", quantizer.attributes["spec"]).bits
