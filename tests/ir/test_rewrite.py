"""Editing graphs: use lists, outputs, names, origins and tensors stay right, and what was done is written down."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import GraphError
from qcompiler.ir.events import Event, Message, Record, Sentence
from qcompiler.ir.graph import Location
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.text import parse_module
from qcompiler.ir.types import DType, QuantParams, Stage, TensorType
from qcompiler.ir.verify import verify
from tests.ir.samples import conv_net, node_of, small


def test_nodes_may_be_edited_while_iterating() -> None:
    graph = small().main
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op == "relu":
            rewriter.insert("identity", [node.inputs[0]], before=node, like=node)
            rewriter.replace(node, node.inputs[0])
    assert [node.op for node in graph.nodes] == ["parameter", "linear", "identity", "add"]
    verify(graph)


def test_the_next_node_may_be_erased_while_iterating() -> None:
    graph = small().main
    x = graph.inputs[0]
    for _ in range(3):
        graph.append("relu", [x], name="unused")
    rewriter = Rewriter(graph)
    seen: list[str] = []
    for node in graph.nodes:
        seen.append(node.name)
        if node.name == "unused":
            for other in ("unused", "unused_1"):  # itself and the next
                rewriter.erase(graph.value(other).producer)  # type: ignore[arg-type]
    assert seen == ["w", "a", "b", "c", "unused", "unused_2"]
    verify(graph)


def test_what_is_inserted_stands_for_what_it_replaces() -> None:
    graph = small().main
    relu, add = node_of(graph, "relu"), node_of(graph, "add")
    relu.location, relu.origins = Location("act"), ("act", "shared")
    add.location, add.origins = Location("sum"), ("shared", "sum")
    node = Rewriter(graph).insert("relu", [add.output], before=None, like=[relu, add])
    assert node.location == Location("act")
    assert node.origins == ("act", "shared", "sum")
    assert node.name == "b_1"


def test_uses_are_replaced_everywhere_or_where_asked() -> None:
    graph = small().main
    a, b, c = (graph.value(name) for name in "abc")
    rewriter = Rewriter(graph)
    graph.set_outputs([c, a, c])
    twin = rewriter.insert("identity", [a], before=node_of(graph, "relu"), like=node_of(graph, "linear")).output
    rewriter.replace_uses(a, twin, only=[node_of(graph, "add")])
    assert [list(map(repr, node.inputs)) for node in (b.producer, c.producer) if node] == [["%a"], ["%a_1", "%b"]]
    assert graph.outputs == [c, a, c], "an output is not one of the given users"
    rewriter.replace_uses(a, twin)
    assert list(a.users) == [twin.producer], "the new value still reads the old value"
    assert graph.outputs == [c, twin, c]
    verify(graph)


def test_operands_are_replaced_one_at_a_time() -> None:
    graph = small().main
    a, b = graph.value("a"), graph.value("b")
    node = graph.append("mul", [a, a])
    rewriter = Rewriter(graph)
    rewriter.replace_input(node, 1, b)
    assert (a.users[node], b.users[node]) == (1, 1)
    rewriter.replace_input(node, 0, b)
    assert node not in a.users
    assert b.users[node] == 2
    verify(graph)


def test_optional_operands_are_added() -> None:
    graph = small().main
    linear = node_of(graph, "linear")
    rewriter = Rewriter(graph)
    rewriter.add_input(linear, rewriter.leaf("constant", torch.zeros(4), ref="bias", before=linear, like=linear))
    verify(graph)
    assert [value.name for value in linear.inputs] == ["x", "w", "bias"]
    assert node_of(graph, "constant").origins == linear.origins


def test_what_is_still_used_is_not_erased() -> None:
    graph = small().main
    for name in ("relu", "add"):  # read by a node, and by the caller
        with pytest.raises(GraphError, match="still used"):
            Rewriter(graph).erase(node_of(graph, name))


def test_names_of_the_erased_are_free_again() -> None:
    graph = small().main
    rewriter = Rewriter(graph)
    relu = node_of(graph, "relu")
    rewriter.replace(relu, relu.inputs[0])
    rewriter.rename(graph.value("a"), "b")
    assert [value.name for value in graph.values()] == ["x", "w", "b", "c"]
    rewriter.rename(graph.value("c"), "b")
    assert graph.outputs[0].name == "b_1"


def test_attributes_are_changed_and_checked() -> None:
    graph = small().main
    rewriter = Rewriter(graph)
    linear = node_of(graph, "linear")
    node = rewriter.insert("clamp", [linear.output], {"min": 0.0, "max": 6.0}, before=None, like=linear)
    rewriter.set_attributes(node, max=4.0)
    assert node.attributes == {"min": 0.0, "max": 4.0}
    with pytest.raises(GraphError, match="no attribute 'mux'"):
        rewriter.set_attributes(node, mux=1.0)


def test_types_follow_attributes_and_operands() -> None:
    graph = small().main
    add = node_of(graph, "add")
    rewriter = Rewriter(graph)
    shaped = rewriter.insert("permute", [add.output], {"axes": (0, 1)}, before=None, like=add)
    rewriter.set_attributes(shaped, axes=(1, 0))
    rewriter.refresh_types(shaped)
    assert str(shaped.output.type) == "f32[4, N]"
    verify(graph)


def test_a_grid_of_its_own_survives_new_types() -> None:
    module = conv_net(Stage.INTEGER).clone()
    rewriter = Rewriter(module.main)
    before = {value.name: value.type for value in module.main.values()}
    assert any(type.quant is not None for type in before.values()), "otherwise the test shows nothing"
    for node in module.main.nodes:
        rewriter.refresh_types(node)
    assert {value.name: value.type for value in module.main.values()} == before
    verify(module.main)


def test_a_leaf_may_have_a_type_that_its_tensor_does_not_tell() -> None:
    graph = small().main
    quant = TensorType(DType.I4, (2,), QuantParams((0.5,), (0,)))
    tensor = torch.tensor([-8, 7], dtype=torch.int8)
    value = Rewriter(graph).leaf("constant", tensor, ref="w", before=None, type=quant)
    assert value.type == quant
    assert value.name == "w_1"
    assert graph.module.tensors["w_1"] is tensor
    verify(graph)


def test_a_tensor_used_once_is_replaced_under_its_name() -> None:
    graph = small().main
    linear = node_of(graph, "linear")
    value = Rewriter(graph).set_tensor(linear.inputs[1], torch.zeros(4, 4), before=linear)
    assert value is linear.inputs[1]
    assert torch.equal(graph.module.tensors["w"], torch.zeros(4, 4))


def test_a_shared_tensor_stays_for_its_other_users() -> None:
    graph = small().main
    linear = node_of(graph, "linear")
    graph.append("relu", [linear.inputs[1]])
    value = Rewriter(graph).set_tensor(linear.inputs[1], torch.zeros(4, 4), before=linear)
    assert value is not linear.inputs[1]
    assert torch.equal(graph.module.tensors["w"], torch.eye(4))


def test_a_tensor_keeps_its_type_and_only_leaves_have_one() -> None:
    graph = small().main
    rewriter = Rewriter(graph)
    with pytest.raises(GraphError, match=r"float64 \[4, 4\] was written to 'w'"):
        rewriter.write_tensor(graph.value("w"), torch.eye(4, dtype=torch.float64))
    for value in (graph.value("a"), graph.inputs[0]):
        with pytest.raises(GraphError, match="is not a tensor of the module"):
            rewriter.write_tensor(value, torch.eye(4))
        with pytest.raises(GraphError, match="is not a tensor of the module"):
            rewriter.set_tensor(value, torch.eye(4), before=node_of(graph, "relu"))


def test_what_was_done_and_refused_is_written_down() -> None:
    graph = small().main
    record = Record("some-pass")
    rewriter = Rewriter(graph, record)
    relu = node_of(graph, "relu")
    relu.location, relu.origins = Location("act", "net:forward:4"), ("act",)
    used = Sentence("used", "it has {count} users")
    rewriter.note(relu, "done")
    rewriter.refuse(relu, used(count=2))
    assert record.events == [
        Event("rewrite", "b", ("act",), "act, net:forward:4", Message.of("done")),
        Event("refusal", "b", ("act",), "act, net:forward:4", used(count=2)),
    ]


@given(st.lists(st.tuples(st.sampled_from("iredo"), st.integers(0, 99), st.integers(0, 99)), max_size=30))
def test_any_edits_leave_a_graph_that_verifies(edits: list[tuple[str, int, int]]) -> None:
    """Inserted, rerouted, erased, doubled and returned at random: order, use lists and names hold."""
    graph = parse_module(
        "graph @main stage=float {\n  input %x : f32[2]\n  %a = relu(%x) : f32[2]\n  return %a\n}"
    ).main
    rewriter = Rewriter(graph)
    for kind, one, other in edits:
        nodes, values = list(graph.nodes), list(graph.values())
        node = nodes[one % len(nodes)]
        position = nodes.index(node) + 1  # values that `node` may read; the input is the first
        earlier = values[other % position]
        if kind == "i":
            rewriter.insert("relu", [earlier], before=node, like=node)
        elif kind == "d":
            rewriter.insert("add", [earlier, earlier], before=node, like=node)
        elif kind == "r":
            rewriter.replace_input(node, 0, earlier)
        elif kind == "o":
            graph.set_outputs([values[other % len(values)]])
        elif len(nodes) > 1:
            rewriter.replace(node, earlier)
        verify(graph)
        assert list(graph.reversed_nodes) == list(graph.nodes)[::-1]
