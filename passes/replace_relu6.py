"""Replace clamps from 0 to a cap by ReLUs.

    clamp(x, 0, 6)  ->  relu(x)

A clamp with two ends does not commute with a factor per channel, so equalization stops there; a ReLU commutes. Values
above the cap are then no longer clipped by the activation, but at the end of the calibrated range. This changes the
results of the model; the change is measured and reported. A target with limits per channel does not need this pass:
equalization divides the cap by the factor, and nothing changes.

Source: Nagel et al. 2019, arXiv:1906.04721, section 5.1.1 (ReLU6 replaced by ReLU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph
from qcompiler.ir.registry import Trait
from qcompiler.ir.types import Stage
from qcompiler.ops.quantizers import activation_bounds
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.channel_limits import keeps_caps
from qcompiler.validation.contracts import THRESHOLDS, Contract

CAP_REMOVED = Sentence("cap-removed", "is not limited above {high:g}")
CAP_KEPT = Sentence("cap-kept", "equalization keeps the cap of {high:g}, because the target has limits per channel")
NO_LAYER = Sentence("no-layer-before-cap", "no layer directly before it")
OTHER_LIMIT = Sentence("clamp-with-other-limit", "it clamps from {low:g}")


@dataclass(frozen=True)
class ReplaceRelu6(Pass):
    """Turn clamps from 0 to a finite cap right after a layer into ReLUs.

    Refuses: clamps that do not start at 0, clamps not right after a layer, and all clamps if the target has limits
    per channel.
    """

    name: ClassVar[str] = "replace-relu6"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    requires: ClassVar[frozenset[str]] = frozenset({"canonical", "batch-norm-folded"})

    @property
    def contract(self) -> Contract:
        """Activations above the cap are no longer clipped."""
        return THRESHOLDS[self.name]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the class."""
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if node.op != "clamp":
                continue
            low, high = activation_bounds(node)
            source = node.inputs[0].producer
            if low != 0.0 or high == math.inf:
                rewriter.refuse(node, OTHER_LIMIT(low=low))
                continue
            if source is None or not source.definition.has(Trait.MAC):
                rewriter.refuse(node, NO_LAYER())
                continue
            if keeps_caps(context):
                rewriter.refuse(node, CAP_KEPT(high=high))
                continue
            relu = rewriter.insert("relu", node.inputs, before=node, like=node)
            rewriter.note(relu, CAP_REMOVED(high=high))
            rewriter.replace(node, relu.output)
