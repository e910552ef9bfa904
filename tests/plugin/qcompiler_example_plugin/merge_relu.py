"""A pass of another distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.graph import Graph
from qcompiler.passes import Pass, PassContext


@dataclass(frozen=True)
class MergeRelu(Pass):
    """relu(relu(x))  ->  relu(x)."""

    name: ClassVar[str] = "merge-relu"

    def run(self, graph: Graph, context: PassContext) -> None:
        """Remove the second of two in a row."""
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            source = node.inputs[0].producer if node.inputs else None
            if node.op == "relu" and source is not None and source.op == "relu":
                rewriter.note(node, "merged into the one before")
                rewriter.replace(node, node.inputs[0])
