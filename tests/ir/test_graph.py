"""Building graphs: names, order, use lists, what is refused, and clones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import GraphError
from qcompiler.ir.graph import Graph, Location, Module
from qcompiler.ir.registry import op
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.text import print_graph, print_module
from qcompiler.ir.types import DType, Stage, TensorType
from qcompiler.ir.verify import verify
from tests.ir.samples import ANYTHING, conv_net, node_of, small

F32 = TensorType(DType.F32, (2,))


def test_names_stay_unique() -> None:
    graph = small().main
    x = graph.inputs[0]
    assert [graph.append("relu", [x], name="b").name for _ in range(3)] == ["b_1", "b_2", "b_3"]
    graph.release_name("b_2")
    assert graph.append("relu", [x], name="b_2").name == "b_2"


@given(st.lists(st.sampled_from(["a", "a_1", "a_1_1", "b"]), max_size=12))
def test_no_two_values_share_a_name_whatever_is_wished(wishes: list[str]) -> None:
    graph = Module().add(Graph())
    x = graph.add_input("a", F32)
    for wish in wishes:
        node = graph.append("relu", [x], name=wish)
        assert node.name.startswith(wish)
    names = [value.name for value in graph.values()]
    assert len(set(names)) == len(names) == len(wishes) + 1


def test_results_may_swap_their_names() -> None:
    graph = Module().add(Graph())
    node = graph.append(ANYTHING, [graph.add_input("x", F32)], {"second": 0, "results": 3}, name="a")
    assert [value.name for value in node.outputs] == ["a", "a.1", "a.2"]
    graph.name_results(node, ["a", "a.2", "a.1"])
    assert [value.name for value in node.outputs] == ["a", "a.2", "a.1"]
    assert graph.unique_name("a.1") == "a.1_1", "the name is still taken"


def test_a_value_is_found_by_name() -> None:
    graph = small().main
    assert graph.value("b").producer is node_of(graph, "relu")
    with pytest.raises(GraphError, match="@main has no value %zz"):
        graph.value("zz")


def test_nodes_stand_where_they_are_put() -> None:
    graph = small().main
    x = graph.inputs[0]
    relu = node_of(graph, "relu")
    graph.append("sigmoid", [x], before=relu)
    graph.append("tanh", [x], before=next(graph.nodes))
    forward = [node.op for node in graph.nodes]
    assert forward == ["tanh", "parameter", "linear", "sigmoid", "relu", "add"]
    assert [node.op for node in graph.reversed_nodes] == forward[::-1]
    assert len(graph) == 6
    assert relu.following is node_of(graph, "add")
    assert node_of(graph, "add").following is None


def test_users_are_counted_by_operand() -> None:
    graph = small().main
    a = graph.value("a")
    twice = graph.append("mul", [a, a])
    assert {node.op: count for node, count in a.users.items()} == {"relu": 1, "add": 1, "mul": 2}
    with pytest.raises(GraphError, match="has 2 results, but one is expected"):
        _ = graph.append(ANYTHING, [twice.output], {"second": 0, "results": 2}).output


def test_an_output_may_stand_twice() -> None:
    graph = small().main
    a, b = graph.value("a"), graph.value("b")
    graph.set_outputs([a, a], ("list", [0, 1]))
    assert graph.is_output(a)
    assert not graph.is_output(b)
    graph.set_outputs([b, b])
    assert not graph.is_output(a)
    assert graph.output_tree == ("list", [0, 1]), "the tree stays if none is given"


@pytest.mark.parametrize(
    ("name", "count", "attributes", "message"),
    [
        ("relu", 2, {}, "2 operands"),
        ("relux", 1, {}, "no operator 'relux'.*Did you mean relu"),
        ("clamp", 1, {"mim": 0.0}, "no attribute 'mim'.*one of min, max"),
        ("reshape", 1, {}, "lacks the attribute 'shape'"),
        ("clamp", 1, {"min": {1: 2}}, r"clamp has the attribute min = \{1: 2\}"),
    ],
)
def test_nodes_that_make_no_sense_are_refused(
    name: str, count: int, attributes: dict[str, float], message: str
) -> None:
    graph = small().main
    before = print_graph(graph)
    with pytest.raises(GraphError, match=message):
        graph.append(name, [graph.inputs[0]] * count, attributes)
    assert print_graph(graph) == before
    assert graph.unique_name(name) == name, "no name is lost"


def test_a_refusal_says_where() -> None:
    graph = small().main
    with pytest.raises(GraphError, match=r"at %sum \(block\.0, net:forward:3\)"):
        graph.append("add", [graph.inputs[0]], name="sum", location=Location("block.0", "net:forward:3"))


def test_as_many_types_as_results() -> None:
    graph = small().main
    for types in ([], [F32, F32]):
        with pytest.raises(GraphError, match=f"relu was given {len(types)} types.*expected 1"):
            graph.append("relu", [graph.inputs[0]], types=types)


def test_graphs_of_a_module_have_names_of_their_own() -> None:
    module = small()
    module.add(Graph("other", Stage.CANONICAL))
    with pytest.raises(GraphError, match="already has a graph @other"):
        module.add(Graph("other"))
    assert module.unique_tensor_name("w") == "w_1"
    assert module.unique_tensor_name("v") == "v"


def test_a_clone_is_edited_alone() -> None:
    original = small()
    text = print_graph(original.main)
    copy = original.clone()
    rewriter = Rewriter(copy.main)
    relu = node_of(copy.main, "relu")
    rewriter.replace(relu, relu.inputs[0])
    rewriter.write_tensor(copy.main.value("w"), torch.zeros(4, 4))
    copy.main.bounds["N"] = (1, 2)
    assert print_graph(original.main) == text
    assert torch.equal(original.tensors["w"], torch.eye(4))


def test_a_clone_may_hold_other_tensors_but_no_module_gets_another_store() -> None:
    original = small()
    tensors = {name: tensor * 2 for name, tensor in original.tensors.items()}
    copy = original.clone(tensors)
    assert copy.tensors == tensors
    assert copy.tensors is not tensors
    assert not any(copy.tensors[name] is tensor for name, tensor in original.tensors.items())
    with pytest.raises(AttributeError):
        original.tensors = tensors  # type: ignore[misc]  # shown to fail


def test_a_clone_keeps_the_name_of_every_result() -> None:
    module = Module()
    graph = module.add(Graph())
    x = graph.add_input("x", F32)
    node = graph.append(ANYTHING, [x], {"second": 0, "results": 2}, name="a")
    graph.name_results(node, ["a", "z"])
    graph.append("relu", [x], name="a.1")  # the name that a second result takes by itself
    assert print_module(module.clone()) == print_module(module)


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.QUANTIZED, Stage.INTEGER])
def test_a_clone_of_a_network_is_the_same(stage: Stage) -> None:
    module = conv_net(stage)
    copy = module.clone()
    verify(copy.main)
    assert print_module(copy) == print_module(module)


def test_an_unknown_op_names_its_neighbours() -> None:
    with pytest.raises(GraphError, match="Did you mean conv2d"):
        op("conv2")


def test_a_value_names_its_producer_by_operator() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.F32, (2, 3)))
    relu = graph.append("relu", [x])
    assert relu.output.made_by("relu") is relu
    assert relu.output.made_by("clamp") is None
    assert x.made_by("relu") is None


def test_the_callee_of_a_call_is_a_graph_of_the_module() -> None:
    module = Module()
    island = module.add(Graph("island"))
    graph = module.add(Graph())
    x = graph.add_input("x", TensorType(DType.F32, (2, 3)))
    call = graph.append("call", [x], {"graph": "island", "results": ("f32[2, 3]",)})
    assert call.callee is island
    assert graph.append("relu", [x]).callee is None
