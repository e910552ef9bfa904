"""The structural verifier: invariants of every graph, whichever pass made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from qcompiler.errors import GraphError
from qcompiler.ir.dims import symbols_of
from qcompiler.ir.graph import Graph, Module, Node, Value
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.registry import Trait
from qcompiler.ir.types import TensorType


def verify_module(module: Module, after: str = "") -> None:
    """Check all graphs of `module`; see `verify`."""
    for graph in module.graphs.values():
        verify(graph, after)


def verify(graph: Graph, after: str = "") -> None:
    """Check one graph: names, order, use lists, legal ops, operand counts, types, tensors, outputs.

    Args:
        graph: The graph.
        after: Name of the pass that made the graph, for the message.

    Raises:
        GraphError: The first broken invariant, with the node that breaks it.
    """
    context = f" after {after}" if after else ""
    _check_names(graph, context)
    places = {name: place for place, name in enumerate(graph.module.graphs)}
    # One walk in order: legal ops, operands defined before, types, links of results.
    defined: set[Value] = set(graph.inputs)
    uses: dict[Value, dict[Node, int]] = {}
    count = 0
    for value in graph.inputs:
        _check_symbols(graph, value.type, f"%{value.name}")
    for node in graph.nodes:
        count += 1
        if node.graph is not graph:
            raise GraphError("the graph contains a node of another graph", where=node.where + context)
        if graph.stage not in node.definition.stages:
            legal = ", ".join(sorted(node.definition.stages))
            raise GraphError(
                f"{node.op} is not legal at stage {graph.stage}", where=node.where + context, expected=f"stage {legal}"
            )
        for value in node.inputs:
            if value not in defined:
                raise GraphError(f"%{value.name} is used before it is defined", where=node.where + context)
            found = uses.setdefault(value, {})
            found[node] = found.get(node, 0) + 1
        _check_types(node, context, places)
        for index, value in enumerate(node.outputs):
            if value.producer is not node or value.index != index:
                raise GraphError(
                    f"%{value.name} is not linked as result {index} of this node", where=node.where + context
                )
            defined.add(value)
    # The counts and use lists that the graph keeps must agree with the walk.
    if count != len(graph):
        raise GraphError(f"the graph counts {len(graph)} nodes but contains {count}", where=f"@{graph.name}{context}")
    for value in graph.values():
        if value.users != uses.get(value, {}):
            raise GraphError("the list of users is out of date", where=f"%{value.name}{context}")
    for value in graph.outputs:
        if value not in defined:
            raise GraphError(f"the output %{value.name} is not defined", where=f"@{graph.name}{context}")


def _check_names(graph: Graph, context: str) -> None:
    names: set[str] = set()
    for value in graph.values():
        if value.name in names:
            place = value.producer.where if value.producer is not None else f"@{graph.name}"
            raise GraphError(f"two values have the name %{value.name}", where=place + context)
        names.add(value.name)


def _check_types(node: Node, context: str, places: Mapping[str, int]) -> None:
    definition = node.definition
    if not definition.accepts(len(node.inputs)):
        raise GraphError(
            f"{node.op} has {len(node.inputs)} operands",
            where=node.where + context,
            expected=" ".join(definition.operands),
        )
    if node.op in LEAVES:
        _check_leaf(node, context)
    elif node.op == "call":
        _check_call(node, node.where + context, places)
    try:
        inferred = definition.infer([value.type for value in node.inputs], node.attributes)
    except GraphError as error:
        raise GraphError(error.found, where=node.where + context, expected=error.expected, fix=error.fix) from None
    if len(node.outputs) != len(inferred):
        raise GraphError(
            f"{node.op} has {len(node.outputs)} results", where=node.where + context, expected=str(len(inferred))
        )
    free = node.op in LEAVES or definition.has(Trait.REQUANTIZES)
    for value, expected in zip(node.outputs, inferred, strict=True):
        found = value.type
        if free and found.quant != expected.quant:
            expected = dataclasses.replace(expected, quant=found.quant)
        if found != expected:
            raise GraphError(f"{node.op} declares the type {found}", where=node.where + context, expected=str(expected))


def _check_leaf(node: Node, context: str) -> None:
    ref = str(node.attributes["ref"])
    tensor = node.graph.module.tensors.get(ref)
    if tensor is None:
        raise GraphError(
            f"{node.op} refers to the tensor {ref!r}, which is not in the module", where=node.where + context
        )
    declared = node.output.type
    if tuple(tensor.shape) != declared.shape or tensor.dtype != declared.dtype.torch:
        raise GraphError(
            f"the tensor {ref!r} is {tensor.dtype} {list(tensor.shape)}",
            where=node.where + context,
            expected=str(declared),
        )


def _check_call(node: Node, where: str, places: Mapping[str, int]) -> None:
    """Check a call; `places` are the positions of all graphs in the module."""
    graphs = node.graph.module.graphs
    name = str(node.attributes["graph"])
    called = graphs.get(name)
    if called is None:
        raise GraphError(f"the call refers to @{name}, which is not in the module", where=where)
    if places[name] <= places[node.graph.name]:
        raise GraphError(
            f"@{node.graph.name} calls @{name}", where=where, expected="a graph that comes later in the module"
        )
    for kind, own, other in (("takes", node.inputs, called.inputs), ("gives", node.outputs, called.outputs)):
        found, declared = [str(value.type) for value in own], [str(value.type) for value in other]
        if found != declared:
            raise GraphError(
                f"the call {kind} {', '.join(found)}", where=where, expected=f"{', '.join(declared)}, as @{name} does"
            )


def _check_symbols(graph: Graph, type: TensorType, where: str) -> None:
    for dim in type.shape:
        for symbol in symbols_of(dim):
            if str(symbol) not in graph.bounds:
                raise GraphError(f"the size {symbol} has no bounds", where=where, expected="an entry in graph.bounds")
