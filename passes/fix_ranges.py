"""Give the quantizers whose grid the hardware dictates that grid.

A sigmoid lies between 0 and 1 whatever its input; many integer cores produce it on one fixed grid. Such a grid beats
calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.types import Stage
from qcompiler.ops.custom import function_name
from qcompiler.passes.base import Pass, PassContext
from qcompiler.quant.spec import QuantSpec
from qcompiler.validation.contracts import THRESHOLDS, Contract


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
            op = _computed_by(node.inputs[0]) if node.op == "fake_quantize" else ""
            rule = target.op_rule(op) if op else None
            if rule is None or rule.out_fixed is None:
                continue
            bits = cast("QuantSpec", node.attributes["spec"]).bits
            if bits != rule.out_fixed.bits:
                rewriter.refuse(node, f"the grid fixed by {target.name} is for {rule.out_fixed.bits} bits, not {bits}")
                continue
            scale, zero_point = rule.out_fixed.scale, rule.out_fixed.zero_point
            rewriter.write_tensor(node.inputs[1], torch.tensor(scale))
            rewriter.write_tensor(node.inputs[2], torch.tensor(zero_point, dtype=torch.int32))
            rewriter.note(node, f"a grid fixed by {target.name}: scale {scale}, zero {zero_point}")


def _computed_by(value: Value) -> str:
    """The op, or the function of torch without one, that gives `value`: the last in a float island."""
    node = value.producer
    if node is not None and node.op == "call":
        island = node.graph.module.graphs[str(node.attributes["graph"])]
        node = island.outputs[node.outputs.index(value)].producer
    if node is None:
        return ""
    return function_name(node) if node.op == "custom" else node.op
