"""Finds the quantizers at the same place in each step of an unrolled loop."""

from __future__ import annotations

from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ops.quantizers import quantizer_of, quantizers_reading, quantizes_parameter

__all__ = ["loop_places"]


def loop_places(graph: Graph) -> list[list[Node]]:
    """The quantizers of each place, in the order of the graph; see `Location.place`.

    The grid of a place is that of the results of its nodes. A node that only moves elements, such as the part of a
    given initial state that belongs to a layer, has the grid of its operand, so that a state that a model takes and
    the state that it returns have one grid.

    Returns:
        Quantizers by place, for the places that have several.
    """
    found: dict[str, dict[Node, None]] = {}
    for node in graph.nodes:
        place = node.location.place
        if place and not node.definition.has(Trait.LEAF, Trait.QUANTIZER, Trait.BIAS_QUANTIZER):
            found.setdefault(place, {}).update(dict.fromkeys(_grids(node)))
    return [list(place) for place in found.values() if len(place) > 1]


def _grids(node: Node) -> list[Node]:
    """The quantizers that give the results of `node` their grid."""
    if node.definition.has(Trait.MOVEMENT):
        source = quantizer_of(node.inputs[0])
        return [] if source is None else [source]
    return [item for value in node.outputs for item in quantizers_reading(value) if not quantizes_parameter(item)]
