"""Runs of a graph with the tensors of its own module, for tests that look at outputs alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import interpret


def outputs_of(
    graph: Graph,
    inputs: Sequence[Tensor],
    observe: Callable[[Value, Tensor], None] | None = None,
    replace: Callable[[Value, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """The flat outputs of `graph`; hooks as in `interpret`."""
    return interpret(graph, inputs, graph.module.tensors, observe=observe, replace=replace)[0]
