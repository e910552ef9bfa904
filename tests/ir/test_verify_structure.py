"""Each fault that the structural verifier finds, one at a time, in a graph that is otherwise right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from qcompiler.errors import GraphError
from qcompiler.ir.dims import symbol
from qcompiler.ir.graph import Graph, Location, Module
from qcompiler.ir.types import DType, QuantParams, Stage, TensorType
from qcompiler.ir.verify import verify, verify_module
from tests.ir.samples import ANYTHING, conv_net, node_of, small


def _wrong_stage(graph: Graph) -> None:
    graph.stage = Stage.INTEGER


def _wrong_order(graph: Graph) -> None:
    relu = node_of(graph, "relu")
    graph._unlink(relu)
    graph._link(relu, next(graph.nodes))


def _foreign_node(graph: Graph) -> None:
    node_of(graph, "relu").graph = small().main


def _wrong_count(graph: Graph) -> None:
    graph._count += 1


def _stale_users(graph: Graph) -> None:
    graph.inputs[0].users.clear()


def _miscounted_users(graph: Graph) -> None:
    graph.value("a").users[node_of(graph, "relu")] = 2


def _user_that_is_none(graph: Graph) -> None:
    graph.value("c").users[node_of(graph, "relu")] = 1


def _wrong_type(graph: Graph) -> None:
    graph.value("b").type = TensorType(DType.F32, (1, 4))


def _grid_on_a_float(graph: Graph) -> None:
    value = graph.value("b")
    value.type = dataclasses.replace(value.type, quant=QuantParams((0.5,), (0,)))


def _no_such_op(graph: Graph) -> None:
    node_of(graph, "relu").op = "rleu"


def _too_many_operands(graph: Graph) -> None:
    relu = node_of(graph, "relu")
    relu.inputs.append(graph.inputs[0])
    graph.inputs[0].users[relu] = 1


def _operands_that_do_not_fit(graph: Graph) -> None:
    linear, w = node_of(graph, "linear"), graph.value("w")
    linear.inputs[0] = w
    del graph.inputs[0].users[linear]
    w.users[linear] = 2
    w.type = TensorType(DType.F32, (4, 3))
    node_of(graph, "parameter").attributes["shape"] = (4, 3)
    graph.module.tensors["w"] = torch.zeros(4, 3)
    linear.inputs[1] = graph.inputs[0]
    w.users[linear] = 1
    graph.inputs[0].users[linear] = 1


def _twice_the_name(graph: Graph) -> None:
    graph.value("b").name = "a"


def _twice_the_name_of_an_input(graph: Graph) -> None:
    graph.add_input("y", TensorType(DType.F32, (1,))).name = "x"


def _confused_result(graph: Graph) -> None:
    graph.value("b").index = 1


def _borrowed_result(graph: Graph) -> None:
    graph.value("b").producer = node_of(graph, "add")


def _lost_result(graph: Graph) -> None:
    graph.append(ANYTHING, [graph.inputs[0]], {"second": 0, "results": 2}).outputs.pop()


def _lost_tensor(graph: Graph) -> None:
    del graph.module.tensors["w"]


def _tensor_of_another_shape(graph: Graph) -> None:
    graph.module.tensors["w"] = torch.zeros(3, 4)


def _tensor_of_another_type(graph: Graph) -> None:
    graph.module.tensors["w"] = torch.eye(4, dtype=torch.float16)


def _foreign_output(graph: Graph) -> None:
    graph.set_outputs([small().main.inputs[0]])


def _no_bounds(graph: Graph) -> None:
    graph.bounds.clear()


def _no_bounds_of_a_compound(graph: Graph) -> None:
    graph.add_input("y", TensorType(DType.F32, (2 * symbol("N") + symbol("H"),)))


FAULTS: dict[Callable[[Graph], None], str] = {
    _wrong_stage: r"%a.*after some-pass.*|linear is not legal at stage integer",
    _wrong_order: "%a is used before it is defined .at %b",
    _foreign_node: "a node of another graph",
    _wrong_count: "counts 5 nodes but contains 4",
    _stale_users: "list of users is out of date .at %x",
    _miscounted_users: "list of users is out of date .at %a",
    _user_that_is_none: "list of users is out of date .at %c",
    _wrong_type: r"relu declares the type f32\[1, 4\].*expected f32\[N, 4\]",
    _grid_on_a_float: r"relu declares the type f32\[N, 4\] q\(0.5:0\)",
    _no_such_op: "no operator 'rleu'.*Did you mean relu",
    _too_many_operands: "relu has 2 operands .at %b",
    _operands_that_do_not_fit: "at %a .fc, net:forward:9. after some-pass",
    _twice_the_name: "two values have the name %a .at %a after",
    _twice_the_name_of_an_input: "two values have the name %x .at @main after",
    _confused_result: "%b is not linked as result 0",
    _borrowed_result: "%b is not linked as result 0",
    _lost_result: f"{ANYTHING} has 1 results.*expected 2",
    _lost_tensor: "the tensor 'w', which is not in the module",
    _tensor_of_another_shape: r"the tensor 'w' is torch.float32 \[3, 4\]",
    _tensor_of_another_type: r"the tensor 'w' is torch.float16 \[4, 4\]",
    _foreign_output: "the output %x is not defined .at @main after some-pass",
    _no_bounds: "the size N has no bounds .at %x",
    _no_bounds_of_a_compound: "the size H has no bounds .at %y",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_broken_graphs_are_found(fault: Callable[[Graph], None]) -> None:
    broken = small()
    node_of(broken.main, "linear").location = Location("fc", "net:forward:9")
    verify_module(broken)
    fault(broken.main)
    with pytest.raises(GraphError, match=FAULTS[fault]):
        verify_module(broken, after="some-pass")


def test_every_graph_of_a_module_is_verified() -> None:
    module = small()
    other = module.add(Graph("other"))
    other.set_outputs([module.main.inputs[0]])
    verify(module.main)
    with pytest.raises(GraphError, match="at @other"):
        verify_module(module)


def test_a_leaf_may_have_a_grid_and_a_requantized_result_has_one_of_its_own() -> None:
    module = conv_net(Stage.INTEGER).clone()
    verify_module(module)
    node = next(node for node in module.main.nodes if node.op == "int_conv2d")
    value = node.output
    value.type = dataclasses.replace(value.type, quant=QuantParams((0.25,), (3,)))
    verify_module(module)
    value.type = dataclasses.replace(value.type, dtype=DType.I32)
    with pytest.raises(GraphError, match="int_conv2d declares the type i32"):
        verify_module(module)


@pytest.mark.parametrize("stage", [Stage.FLOAT, Stage.QUANTIZED, Stage.INTEGER])
def test_networks_are_right_at_every_stage(stage: Stage) -> None:
    verify_module(conv_net(stage))


def test_an_empty_graph_is_right() -> None:
    module = Module()
    module.add(Graph())
    verify_module(module)
