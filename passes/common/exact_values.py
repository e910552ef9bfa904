"""Finds nodes that compute indices and masks, which must be exact even when floats hold them in between.

    m ─► cumsum ─► * ─► - 1 ─► long ─► embedding        positions: half a step off reads another row
    ids ─► != ─► float ─► (1 - m) * -1e4 ─► add         a mask: its grid would be too coarse for the other operand
    t ─► float ─► * frequencies ─► sin                  an angle: half a step off may be a whole turn

A value is integer-exact when it is an integer or a boolean, or a float

    on the way to one        some node turns it into an integer or a boolean, or into a whole number. The way is
                             followed backwards to a weighted layer, or to what other nodes read as data
    computed from such       by arithmetic, from integers, booleans and constants alone. A table that is looked up
                             holds data: its results are not exact values
    far out                  a constant with elements of `FAR` and more, which is added to shut others out, or what
                             such a constant makes of values that no weighted layer has a part in

No such value is quantized: all nodes that compute them, and sums and products that read them, belong to float islands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ops.custom import function_name, is_custom
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantizers import is_leaf, leaf_tensor

TO_WHOLE_NUMBERS = frozenset(
    {"floor", "ceil", "round", "trunc", "fix", "sign", "floor_divide", "floordiv", "remainder", "mod", "fmod", "frac"}
)
"""Functions of torch whose results jump."""
FAR = 1e3
"""Magnitude of the numbers that masks add: the step of a grid of 8 bits that reaches as far is 4 and more."""
ON_THE_WAY, READS, COMPUTES = (
    "an index or a mask depends on it",
    "it reads an index or a mask",
    "it computes an index or a mask",
)


def integer_exact(graph: Graph) -> dict[Node, str]:
    """The nodes of a CANONICAL graph that must not be computed on a grid, and why."""
    found = _ways(graph)
    exact = _computed_from_integers(graph)
    for node in graph.nodes:
        if node.definition.has(Trait.LEAF):
            continue
        if any(value in exact for value in node.outputs if value.type.dtype.is_float):
            found.setdefault(node, COMPUTES)
        elif _reads(node, exact) or (node.op == "softmax" and node.inputs[0].producer in found):
            found.setdefault(node, READS)
    return found


def _reads(node: Node, exact: Collection[Value]) -> bool:
    """Whether a function of two operands combines data with a mask or an index."""
    return node.definition.has(Trait.ELEMENTWISE) and any(v in exact or _shuts_out(node, v) for v in node.inputs)


def _ways(graph: Graph) -> dict[Node, str]:
    """Nodes whose results become integers or booleans."""
    free = _free_of_weights(graph)
    found: dict[Node, str] = {}
    for node in graph.reversed_nodes:
        if node.definition.has(Trait.LEAF, Trait.MAC):
            continue
        for value in node.outputs:
            ends = [user for user in value.users if _makes_whole_numbers(user) or user in found]
            alone = len(ends) == len(value.users) and not graph.is_output(value)
            if ends and value.type.dtype.is_float and (value in free or alone):
                found[node] = ON_THE_WAY
    return found


def _makes_whole_numbers(node: Node) -> bool:
    if is_custom(node) and function_name(node) in TO_WHOLE_NUMBERS:
        return True
    if node.op == "top_places":  # the place of data is as good as the data
        return False
    return any(not value.type.dtype.is_float for value in node.outputs)


def _free_of_weights(graph: Graph) -> set[Value]:
    """Values that no weighted layer has a part in since they were inputs, integers or booleans."""
    free = set(graph.inputs)
    for node in graph.nodes:
        blocked = node.definition.has(Trait.MAC) or any(_is_table(node, value) for value in node.inputs)
        sources = [value for value in node.inputs if value.type.dtype.is_float]
        for value in node.outputs:
            if not value.type.dtype.is_float or (not blocked and free.issuperset(sources)):
                free.add(value)
    return free


def _computed_from_integers(graph: Graph) -> set[Value]:
    """Values that are, or that arithmetic makes of, integers and booleans and constants alone; no constants."""
    found = {value for value in graph.inputs if not value.type.dtype.is_float}
    free = _free_of_weights(graph)
    for node in graph.nodes:
        if node.definition.has(Trait.LEAF):
            continue
        found.update(value for value in node.outputs if not value.type.dtype.is_float)
        weighted = is_weighted(node) and Layer(node).terms > 1  # a product with one number each is an outer product
        sources = list(_sources(node))
        far_out = node.op == "mul" and any(map(_is_far, node.inputs)) and free.issuperset(sources)
        if sources and not weighted and (far_out or all(value in found for value in sources)):
            found.update(node.outputs)
    return found


def _sources(node: Node) -> Iterator[Value]:
    """The operands of a node without constants; a lookup table counts as an operand."""
    return (value for value in node.inputs if not is_leaf(value) or _is_table(node, value))


def _is_table(node: Node, value: Value) -> bool:
    """Whether `value` is a matrix of the model that a torch function reads: rows to look up, or weights."""
    reads = is_custom(node) or node.op == "embedding"
    return reads and is_leaf(value) and value.type.dtype.is_float and value.type.rank > 1


def _shuts_out(node: Node, value: Value) -> bool:
    """Whether `value` is a mask of the model that is added."""
    return node.op != "mul" and _is_far(value)


def _is_far(value: Value) -> bool:
    return is_leaf(value) and value.type.dtype.is_float and bool((leaf_tensor(value).abs() >= FAR).any())
