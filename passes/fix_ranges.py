"""Assign hardware-fixed scales and zero points to their quantizers.

A sigmoid lies between 0 and 1 for every input; many integer cores produce it with one fixed scale and zero point. Fixed
values take precedence over calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph
from qcompiler.ir.types import Stage
from qcompiler.ops.quantizers import is_quantizer
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.fixed_grids import fixed_grid, is_dictated
from qcompiler.validation.contracts import THRESHOLDS, Contract

FIXED = Sentence("grid-fixed", "a grid fixed by {target}: scale {scale}, zero point {zero_point}")
OTHER_WIDTH = Sentence("fixed-grid-has-other-width", "the grid fixed by {target} is for {fixed} bits, not {bits}")


@dataclass(frozen=True)
class FixRanges(Pass):
    """Scales and zero points that the target's descriptor fixes (`out_fixed`)."""

    name: ClassVar[str] = "fix-ranges"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"quantizers"})
    establishes: ClassVar[frozenset[str]] = frozenset({"fixed-ranges"})

    @property
    def contract(self) -> Contract:
        """Values are rounded to the fixed grid."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        target = context.require_target(self.name)
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            fixed = fixed_grid(node, target) if is_quantizer(node) else None
            if fixed is None:
                continue
            if not is_dictated(node, target):
                bits = node.spec.bits
                rewriter.refuse(node, OTHER_WIDTH(target=target.name, fixed=fixed.bits, bits=bits))
                continue
            rewriter.write_tensor(node.inputs[1], torch.tensor(fixed.scale))
            rewriter.write_tensor(node.inputs[2], torch.tensor(fixed.zero_point, dtype=torch.int32))
            rewriter.note(node, FIXED(target=target.name, scale=fixed.scale, zero_point=fixed.zero_point))
