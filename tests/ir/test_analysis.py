"""Lifetimes, groups and convex partitions, against definitions that are checked by brute force."""

from __future__ import annotations

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.ir.analysis import connected_groups, convex_partitions, lifetimes, to_networkx
from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.types import DType, TensorType


def chain_with_detour() -> Graph:
    """a -> b -> d and a -> c -> d: with c alone outside, {a, b, d} is not convex."""
    graph = Module().add(Graph())
    x = graph.add_input("x", TensorType(DType.F32, (2,)))
    a = graph.append("relu", [x], name="a").output
    b = graph.append("relu", [a], name="b").output
    c = graph.append("sigmoid", [a], name="c").output
    graph.set_outputs([graph.append("add", [b, c], name="d").output])
    return graph


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    graph = Module().add(Graph())
    values = [graph.add_input("x", TensorType(DType.F32, (2,)))]
    for _ in range(draw(st.integers(1, 14))):
        if draw(st.booleans()):
            node = graph.append(draw(st.sampled_from(["relu", "sigmoid"])), [draw(st.sampled_from(values))])
        else:
            node = graph.append("add", [draw(st.sampled_from(values)), draw(st.sampled_from(values))])
        values.append(node.output)
    graph.set_outputs([values[-1]])
    return graph


def belongs(node: Node) -> bool:
    return node.op != "sigmoid"


@given(graphs())
def test_partitions_are_convex_and_cover(graph: Graph) -> None:
    groups = convex_partitions(graph, belongs)
    assert sorted(node.name for group in groups for node in group) == sorted(n.name for n in graph.nodes if belongs(n))
    digraph = to_networkx(graph)
    for group in groups:
        inside = set(group)
        for outside in set(digraph) - inside:
            enters = any(nx.has_path(digraph, node, outside) for node in inside)
            returns = any(nx.has_path(digraph, outside, node) for node in inside)
            assert not (enters and returns), "a path leaves the group and comes back"
    homes = {node: index for index, group in enumerate(groups) for node in group}
    quotient = nx.DiGraph(
        (homes.get(a, a), homes.get(b, b)) for a, b in digraph.edges if homes.get(a, a) != homes.get(b, b)
    )
    assert nx.is_directed_acyclic_graph(quotient), "the groups can run one after the other"


def test_a_detour_splits_a_group() -> None:
    names = [[node.name for node in group] for group in convex_partitions(chain_with_detour(), belongs)]
    assert names == [["a", "b"], ["d"]]


def test_lifetimes_end_with_the_last_reader() -> None:
    graph = chain_with_detour()
    spans = {value.name: span for value, span in lifetimes(graph).items()}
    assert spans == {"x": (-1, 0), "a": (0, 2), "b": (1, 3), "c": (2, 3), "d": (3, 4)}


def test_connected_groups_join_what_hangs_together() -> None:
    graph = chain_with_detour()
    a, b, c, d = graph.nodes
    assert connected_groups(graph, [[c, d], [b, d], [a]]) == [[a], [b, c, d]]
