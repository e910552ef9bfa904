"""Start one of several quantizations of a graph, of which `weigh-candidates` keeps the best.

    start-candidate, A, start-candidate, B, weigh-candidates        A or B
    ..., C, weigh-candidates                                        the kept one, or C applied to it

The first run saves the tensors of the model. Each later run stores the current tensors as a candidate and restores the
saved ones: parameters before rounding and bias correction, and quantizers without ranges. Passes in between may write
tensors but not change the nodes of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.graph import Graph
from qcompiler.ir.types import Stage
from qcompiler.passes.base import Pass, PassContext


@dataclass(frozen=True)
class StartCandidate(Pass):
    """Store the current tensors as a candidate, and restore the tensors of the first run."""

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
        """Do nothing: `prepare` did the work before the contract compares the graphs."""
        context.record.metrics.update(candidate=len(context.candidates))
