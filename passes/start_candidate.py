"""Begin one of several ways to quantize a graph, of which `weigh-candidates` keeps the best.

    start-candidate, A, start-candidate, B, weigh-candidates        A or B
    ..., C, weigh-candidates                                        what was kept, or C on top of it

The first time, the tensors of the model are remembered. Each time after that, the graph as it is now is set aside and
the remembered tensors are back: parameters without what rounding and bias correction did, quantizers without ranges.
Passes in between may write tensors, and leave the nodes of the graph alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.graph import Graph
from qcompiler.ir.types import Stage
from qcompiler.passes.base import Pass, PassContext


@dataclass(frozen=True)
class StartCandidate(Pass):
    """Set the graph aside and start again from the tensors that the first such pass found."""

    name: ClassVar[str] = "start-candidate"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"quantizers"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges", "biases-fit"})

    def prepare(self, graph: Graph, context: PassContext) -> bool:
        """Restore the tensors, so that the contract compares two graphs without ranges."""
        tensors = graph.module.tensors
        if context.start is None:
            context.start = dict(tensors)
            return False
        context.candidates.append(dict(tensors))
        tensors.update(context.start)
        return True

    def run(self, graph: Graph, context: PassContext) -> None:
        """All is done before the contract looks."""
        context.record.metrics.update(candidate=len(context.candidates))
