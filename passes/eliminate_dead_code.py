"""Remove nodes without readers, graphs without callers, and tensors without references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.graph import Graph
from qcompiler.ir.hashing import TENSOR_ATTRIBUTES
from qcompiler.ir.types import Stage
from qcompiler.passes.base import Pass, PassContext


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Sweep backward once: a node is dead if no live node and no output reads it."""

    name: ClassVar[str] = "eliminate-dead-code"
    stages: ClassVar[frozenset[Stage]] = frozenset(Stage)

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the class."""
        rewriter = context.rewriter(graph)
        for node in graph.reversed_nodes:
            if not any(value.users or graph.is_output(value) for value in node.outputs):
                rewriter.erase(node)
        module = graph.module
        called = {node.callee.name for g in module.graphs.values() for node in g.nodes if node.callee is not None}
        for name in [name for name in module.graphs if name != graph.name and name not in called]:
            del module.graphs[name]
        used = {
            str(node.attributes[key])
            for g in module.graphs.values()
            for node in g.nodes
            for key in TENSOR_ATTRIBUTES
            if key in node.attributes
        }
        for name in [name for name in module.tensors if name not in used]:
            del module.tensors[name]
