"""Moves nodes of a graph into a graph of their own, which is called in their place: a float island."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.ir.analysis import reachable
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.quantizers import is_leaf
from qcompiler.ops.work import elements, multiply_accumulates
from qcompiler.passes.base import PassContext

FLOAT_ISLAND = Sentence("float-island", "float island @{name}: {why}")
"""An island; further facts are its shares `macs` and `elements`."""


def work(graph: Graph) -> tuple[int, int]:
    """Multiply-accumulates and elements of a graph without its quantizers, at least 1."""
    nodes = [node for node in graph.nodes if not node.definition.has(Trait.QUANTIZER, Trait.BIAS_QUANTIZER)]
    return max(1, sum(map(multiply_accumulates, nodes))), max(1, sum(map(elements, nodes)))


def put_in_island(
    graph: Graph, members: Sequence[Node], why: str, total: tuple[int, int], context: PassContext
) -> None:
    """Move nodes into a float island, and record it.

    Args:
        graph: The graph.
        members: Nodes that form a convex part, in order.
        why: Reason, a sentence without a full stop.
        total: The work of the graph; see `work`.
        context: The context, for the record.
    """
    found = {
        "macs": sum(map(multiply_accumulates, members)) / total[0],
        "elements": sum(map(elements, members)) / total[1],
    }
    rewriter = context.rewriter(graph)
    call = _outline(graph, members, rewriter)
    name = call.text("graph")
    rewriter.note(call, FLOAT_ISLAND(name=name, why=why, **found))
    context.record.metrics.update({f"{name}.{key}": share for key, share in found.items()})


def _outline(graph: Graph, members: Sequence[Node], rewriter: Rewriter) -> Node:
    """Move `members` into a new graph of the module and replace them by a call."""
    inside = set(members)
    # Operands from outside, without leaves, become inputs; results that are read outside become outputs.
    takes = list(
        dict.fromkeys(
            value for node in members for value in node.inputs if value.producer not in inside and not is_leaf(value)
        )
    )
    gives = [
        value
        for node in members
        for value in node.outputs
        if graph.is_output(value) or any(user not in inside for user in value.users)
    ]
    island = graph.module.add(Graph(_unused(graph, members), Stage.CANONICAL))
    island.bounds = dict(graph.bounds)
    twins = {value: island.add_input(value.name, value.type) for value in takes}
    for node in members:
        for value in node.inputs:
            if value not in twins:
                _copy(island, value.producer, twins)
        _copy(island, node, twins)
    island.set_outputs([twins[value] for value in gives], ("list", list(range(len(gives)))))
    island.input_tree = ("tuple", list(range(len(takes))))
    # Replace the members by one call after the last of them.
    _clear_the_way(graph, members, rewriter)
    call = rewriter.insert(
        "call",
        takes,
        {"graph": island.name, "results": tuple(str(value.type) for value in gives)},
        before=members[-1].following,
        like=[node for node in members if not node.definition.has(Trait.MOVEMENT)] or members,
        name=island.name,
    )
    names = [value.name for value in gives]
    for old, new in zip(gives, call.outputs, strict=True):
        rewriter.replace_uses(old, new)
    # Remove the members, and leaves that only they read.
    for node in reversed(members):
        leaves = [value.producer for value in node.inputs if is_leaf(value)]
        rewriter.erase(node)
        for leaf in dict.fromkeys(leaves):
            if leaf is not None and not leaf.output.users and not graph.is_output(leaf.output):
                rewriter.erase(leaf)
    graph.name_results(call, names)
    return call


def _unused(graph: Graph, members: Sequence[Node]) -> str:
    first = next((node for node in members if not node.definition.has(Trait.MOVEMENT)), members[0])
    name, count = first.name, 0
    while name in graph.module.graphs:
        count += 1
        name = f"{first.name}_{count}"
    return name


def _copy(island: Graph, node: Node | None, twins: dict[Value, Value]) -> None:
    if node is None:
        return
    twin = island.append(
        node.op, [twins[value] for value in node.inputs], node.attributes, name=node.name, location=node.location
    )
    island.name_results(twin, [value.name for value in node.outputs])
    twin.origins = node.origins
    twins.update(zip(node.outputs, twin.outputs, strict=True))


def _clear_the_way(graph: Graph, members: Sequence[Node], rewriter: Rewriter) -> None:
    """Move users of the island that are between its parts after the last part."""
    inside, last = set(members), members[-1]
    after = set(reachable(members)) - inside
    between: list[Node] = []
    node: Node | None = members[0]
    while node is not None and node is not last:
        if node in after:
            between.append(node)
        node = node.following
    following = last.following
    for item in between:
        rewriter.move(item, before=following)
