"""Building, editing, verifying and running graphs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qcompiler.errors import GraphError, InputError
from qcompiler.ir import tree
from qcompiler.ir.dims import parse_dim, symbol
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.interpret import interpret
from qcompiler.ir.registry import op
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.text import parse_module, print_graph
from qcompiler.ir.types import DType, QuantParams, Stage, TensorType
from qcompiler.ir.verify import verify, verify_module

TEXT = """graph @main stage=float {
  input %x : f32[N, 4]
  bound N 1 64
  %w = parameter() {ref = "w", dtype = "f32", shape = (4, 4)} : f32[4, 4]
  %a = linear(%x, %w) : f32[N, 4]
  %b = relu(%a) : f32[N, 4]
  %c = add(%a, %b) : f32[N, 4]
  return %c
}
"""


def module() -> Module:
    return parse_module(TEXT, {"w": torch.eye(4)})


def test_names_stay_unique() -> None:
    graph = module().main
    x = graph.inputs[0]
    assert [graph.append("relu", [x], name="b").name for _ in range(3)] == ["b_1", "b_2", "b_3"]
    graph.release_name("b_2")
    assert graph.append("relu", [x], name="b_2").name == "b_2"


def test_nodes_may_be_edited_while_iterating() -> None:
    graph = module().main
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        if node.op == "relu":
            rewriter.insert("identity", [node.inputs[0]], before=node, like=node)
            rewriter.replace(node, node.inputs[0])
    assert [node.op for node in graph.nodes] == ["parameter", "linear", "identity", "add"]
    verify(graph)


def test_a_clone_is_edited_alone() -> None:
    original = module()
    text = print_graph(original.main)
    copy = original.clone()
    rewriter = Rewriter(copy.main)
    relu = next(node for node in copy.main.nodes if node.op == "relu")
    rewriter.replace(relu, relu.inputs[0])
    rewriter.write_tensor(copy.main.value("w"), torch.zeros(4, 4))
    assert print_graph(original.main) == text
    assert torch.equal(original.tensors["w"], torch.eye(4))


def test_the_interpreter_frees_and_shows_values() -> None:
    seen: list[str] = []
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    (result,) = interpret(module().main, [x], lambda value, tensor: seen.append(value.name))
    assert seen == ["x", "w", "a", "b", "c"]
    assert torch.equal(result, x + x.relu())


def test_values_can_be_replaced_while_running() -> None:
    (result,) = interpret(
        module().main,
        [torch.ones(1, 4)],
        replace=lambda value, tensor: torch.full_like(tensor, 5.0) if value.name == "b" else tensor,
    )
    assert torch.equal(result, torch.full((1, 4), 6.0))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "0 inputs"),
        ([torch.zeros(2, 4, dtype=torch.float64)], "float64"),
        ([torch.zeros(2, 5)], "dimension 1 is 5, not 4"),
        ([torch.zeros(4)], "1 dimensions"),
        ([torch.zeros(65, 4)], "the size N is 65"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: list[torch.Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        interpret(module().main, inputs)


@pytest.mark.parametrize(
    ("name", "count", "attributes", "message"),
    [
        ("relu", 2, {}, "2 operands"),
        ("relux", 1, {}, "no operator"),
        ("clamp", 1, {"mim": 0.0}, "no attribute 'mim'"),
        ("reshape", 1, {}, "lacks the attribute 'shape'"),
    ],
)
def test_nodes_that_make_no_sense_are_refused(
    name: str, count: int, attributes: dict[str, float], message: str
) -> None:
    graph = module().main
    before = print_graph(graph)
    with pytest.raises(GraphError, match=message):
        graph.append(name, [graph.inputs[0]] * count, attributes)
    assert print_graph(graph) == before


def _wrong_stage(graph: Graph) -> None:
    graph.stage = Stage.INTEGER


def _wrong_order(graph: Graph) -> None:
    relu = next(node for node in graph.nodes if node.op == "relu")
    graph._unlink(relu)
    graph._link(relu, next(iter(graph.nodes)))


def _stale_users(graph: Graph) -> None:
    graph.inputs[0].users.clear()


def _wrong_type(graph: Graph) -> None:
    graph.value("b").type = TensorType(DType.F32, (1, 4))


def _twice_the_name(graph: Graph) -> None:
    graph.value("b").name = "a"


def _lost_tensor(graph: Graph) -> None:
    del graph.module.tensors["w"]


def _other_tensor(graph: Graph) -> None:
    graph.module.tensors["w"] = torch.zeros(3, 4)


def _foreign_output(graph: Graph) -> None:
    graph.set_outputs([module().main.inputs[0]])


def _no_bounds(graph: Graph) -> None:
    graph.bounds.clear()


FAULTS: dict[Callable[[Graph], None], str] = {
    _wrong_stage: "not legal at stage integer",
    _wrong_order: "%a is used before it is defined",
    _stale_users: "the list of users",
    _wrong_type: r"declares the type f32\[1, 4\]",
    _twice_the_name: "two values are called %a",
    _lost_tensor: "does not hold",
    _other_tensor: r"the tensor 'w' is torch.float32 \[3, 4\]",
    _foreign_output: "the output %x is not defined",
    _no_bounds: "the size N has no bounds",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_graphs_are_found(fault: Callable[[Graph], None]) -> None:
    broken = module()
    verify_module(broken)
    fault(broken.main)
    with pytest.raises(GraphError, match=FAULTS[fault]):
        verify_module(broken, after="some-pass")


def test_what_is_still_used_is_not_erased() -> None:
    graph = module().main
    with pytest.raises(GraphError, match="still used"):
        Rewriter(graph).erase(next(node for node in graph.nodes if node.op == "relu"))


def test_a_tensor_used_once_is_replaced_under_its_name() -> None:
    graph = module().main
    linear = next(node for node in graph.nodes if node.op == "linear")
    value = Rewriter(graph).set_tensor(linear.inputs[1], torch.zeros(4, 4), before=linear)
    assert value is linear.inputs[1]
    assert torch.equal(graph.module.tensors["w"], torch.zeros(4, 4))


def test_a_shared_tensor_stays_for_its_other_users() -> None:
    graph = module().main
    linear = next(node for node in graph.nodes if node.op == "linear")
    graph.append("relu", [linear.inputs[1]])
    value = Rewriter(graph).set_tensor(linear.inputs[1], torch.zeros(4, 4), before=linear)
    assert value is not linear.inputs[1]
    assert torch.equal(graph.module.tensors["w"], torch.eye(4))


def test_dimensions_are_read_as_written() -> None:
    n = symbol("N")
    for dim in (7, n, 4 * n, n // 2 + 1, n * symbol("H"), -n + 3, n**2):
        assert parse_dim(str(dim)) == dim


def test_trees_nest_and_match() -> None:
    value = {"a": torch.zeros(1), "b": [torch.ones(1), (torch.ones(2), None)]}
    leaves, shape = tree.flatten(value)
    assert tree.unflatten(shape, leaves)["b"][1][0] is leaves[2]  # type: ignore[index]
    assert tree.from_plain([["x"]][:0] or shape) == shape
    assert tree.match(("tuple", [shape]), (value,)) == leaves
    with pytest.raises(InputError, match=r"expected \(\{a: tensor"):
        tree.match(("tuple", [shape]), (torch.zeros(1),))
    with pytest.raises(InputError, match="holds a int"):
        tree.flatten({"a": 1})


def test_quantization_parameters_are_consistent() -> None:
    with pytest.raises(GraphError, match="2 scales and 1 zero points"):
        QuantParams((0.1, 0.2), (0,), 0)
    with pytest.raises(GraphError, match="axis None"):
        QuantParams((0.1, 0.2), (0, 0))


def test_an_unknown_op_names_its_neighbours() -> None:
    with pytest.raises(GraphError, match="Did you mean conv2d"):
        op("conv2")
