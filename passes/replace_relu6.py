"""Let activations that are clamped from 0 to a cap run free.

    clamp(x, 0, 6)  ->  relu(x)

A clamp with two ends does not commute with a factor per channel, so that equalization stops at it; a ReLU does. What
lies above the cap is then no longer cut off by the activation, but where calibration ends the range. It changes what
the model computes: how much is measured, and reported. A target that clamps each channel between limits of its own has
no need of it: there equalization divides the cap by the factor, and nothing changes.

Source: Nagel et al. 2019, arXiv:1906.04721, section 5.1.1 (ReLU6 replaced by ReLU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

from qcompiler.ir.graph import Graph
from qcompiler.ir.registry import Trait
from qcompiler.ir.types import Stage
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.channel_limits import keeps_caps
from qcompiler.validation.contracts import THRESHOLDS, Contract


@dataclass(frozen=True)
class ReplaceRelu6(Pass):
    """Turn clamps from 0 to a finite cap that stand right behind a layer into ReLUs.

    Refuses: clamps that do not start at 0, those behind something else, and all of them where the target has limits
    per channel.
    """

    name: ClassVar[str] = "replace-relu6"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    requires: ClassVar[frozenset[str]] = frozenset({"canonical", "batch-norm-folded"})

    @property
    def contract(self) -> Contract:
        """Activations above the cap come through."""
        return THRESHOLDS[self.name]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the class."""
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if node.op != "clamp":
                continue
            low, high = cast("float", node.attributes["min"]), cast("float", node.attributes["max"])
            source = node.inputs[0].producer
            if low != 0.0 or high == math.inf:
                rewriter.refuse(node, f"it clamps from {low:g}")
                continue
            if source is None or not source.definition.has(Trait.MAC):
                rewriter.refuse(node, "no layer stands right in front of it")
                continue
            if keeps_caps(context):
                rewriter.refuse(node, f"equalization keeps the cap of {high:g}: the target has one per channel")
                continue
            relu = rewriter.insert("relu", node.inputs, before=node, like=node)
            rewriter.note(relu, f"runs free above {high:g}")
            rewriter.replace(node, relu.output)
