"""Graph-theory queries, on temporary networkx digraphs.

The digraph is built anew for each query and never edited; `Graph` does not inherit from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from qcompiler.ir.graph import Graph, Node, Value

if TYPE_CHECKING:
    import networkx as nx


def to_networkx(graph: Graph) -> nx.DiGraph[Node]:
    """Nodes in order, with an edge from each to those that read its results."""
    import networkx as nx  # its import takes longer than most compiles

    digraph: nx.DiGraph[Node] = nx.DiGraph()
    digraph.add_nodes_from(graph.nodes)
    digraph.add_edges_from((node, user) for node in graph.nodes for value in node.outputs for user in value.users)
    return digraph


def reachable(start: Iterable[Node]) -> list[Node]:
    """The nodes that depend, directly or through others, on the nodes of `start`; `start` itself excluded.

    Breadth first, in the order of the use lists.
    """
    waiting = deque(start)
    seen = dict.fromkeys(waiting)
    found: list[Node] = []
    while waiting:
        for value in waiting.popleft().outputs:
            for user in value.users:
                if user not in seen:
                    seen[user] = None
                    waiting.append(user)
                    found.append(user)
    return found


def path_between(source: Node, target: Node) -> list[Node] | None:
    """A shortest path of nodes from `source` to `target`, both included; None without a path."""
    before: dict[Node, Node | None] = {source: None}
    waiting = deque([source])
    while waiting and target not in before:
        node = waiting.popleft()
        for value in node.outputs:
            for user in value.users:
                if user not in before:
                    before[user] = node
                    waiting.append(user)
    if target not in before:
        return None
    path: list[Node] = []
    at: Node | None = target
    while at is not None:
        path.append(at)
        at = before[at]
    return path[::-1]


def lifetimes(graph: Graph) -> dict[Value, tuple[int, int]]:
    """Position of the node that defines each value and of its last reader.

    Graph inputs are defined at -1. Outputs live to the end, the position after the last node.
    """
    end = len(graph)
    result = dict.fromkeys(graph.inputs, (-1, -1))
    for position, node in enumerate(graph.nodes):
        for value in node.inputs:
            result[value] = (result[value][0], position)
        for value in node.outputs:
            result[value] = (position, position)
    for value in graph.outputs:
        result[value] = (result[value][0], end)
    return result


def connected_groups(graph: Graph, ties: Iterable[Iterable[Node]]) -> list[list[Node]]:
    """Connected groups of nodes under `ties`.

    Args:
        graph: Graph that defines the order.
        ties: Sets of nodes that belong together.

    Returns:
        The groups, each in the order of the graph, ordered by their first node.
    """
    import networkx as nx

    joined: nx.Graph[Node] = nx.Graph()
    for tie in ties:
        nx.add_path(joined, tie)
    position = {node: index for index, node in enumerate(graph.nodes)}
    groups = [sorted(group, key=position.__getitem__) for group in nx.connected_components(joined)]
    return sorted(groups, key=lambda group: position[group[0]])


def convex_partitions(graph: Graph, belongs: Callable[[Node], bool]) -> list[list[Node]]:
    """Split the nodes for which `belongs` holds into few groups that can each run as one step.

    A group is convex: no path leaves it and comes back, so the nodes between its inputs and outputs are the group
    itself. Groups grow greedily in the order of the graph; the result is maximal: no two adjacent groups can be joined.

    Returns:
        The groups, each in the order of the graph, ordered by their first node.
    """
    import networkx as nx

    # The quotient graph of the groups so far. It stays acyclic, which is equivalent to convexity of all groups.
    quotient: nx.DiGraph[int] = nx.DiGraph()
    home: dict[Node, int] = {}
    members: dict[int, list[Node]] = {}
    for index, node in enumerate(graph.nodes):
        home[node], members[index] = index, [node]
        quotient.add_node(index)
        producers = [value.producer for value in node.inputs if value.producer is not None]
        quotient.add_edges_from((home[p], index) for p in producers)
        if not belongs(node):
            continue
        for producer in producers:
            group, own = home[producer], home[node]
            if group == own or not belongs(producer) or _has_detour(quotient, group, own):
                continue
            for member in members[own]:
                home[member] = group
            members[group] += members.pop(own)
            nx.contracted_nodes(quotient, group, own, self_loops=False, copy=False)
    position = {node: index for index, node in enumerate(graph.nodes)}
    groups = [sorted(group, key=position.__getitem__) for group in members.values() if belongs(group[0])]
    return sorted(groups, key=lambda group: position[group[0]])


def _has_detour(quotient: nx.DiGraph[int], start: int, end: int) -> bool:
    """Whether a path of more than one edge leads from `start`, a predecessor of `end`, to `end`."""
    if quotient.in_degree(end) == 1:
        return False
    seen: set[int] = set()
    waiting = [follower for follower in quotient.successors(start) if follower != end]
    while waiting:
        at = waiting.pop()
        if at == end:
            return True
        if at not in seen:
            seen.add(at)
            waiting += quotient.successors(at)
    return False
