"""The walk over the operators of a file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper

from qcompiler.errors import QCompilerError, UnsupportedError
from qcompiler.frontends import capture
from qcompiler.frontends.onnx.source import OnnxModel
from qcompiler.ir.graph import Module
from qcompiler.ir.interpret import interpret
from tests.frontends.onnx.files import F32, I64, graph_of, model_of


def ops(module: Module) -> list[str]:
    return [node.op for node in module.main.nodes]


def run(module: Module, x: torch.Tensor) -> torch.Tensor:
    (found,), _ = interpret(module.main, [x], module.tensors)
    return found


def branch(op: str) -> object:
    return helper.make_graph(
        [helper.make_node(op, ["x"], ["inner"])], op, [], [helper.make_tensor_value_info("inner", F32, None)]
    )


def conditional() -> NodeProto:
    return helper.make_node("If", ["flag"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg"))


@pytest.mark.parametrize(("flag", "op"), [(True, "relu"), (False, "mul")])
def test_an_if_on_a_fixed_input_takes_its_branch(flag: bool, op: str) -> None:
    graph = graph_of([conditional()], {"x": ["N", 3], "flag": []}, ["y"], types={"flag": TensorProto.BOOL})
    module = capture(OnnxModel(model_of(graph), {"flag": flag}), torch.randn(2, 3)).module
    assert ops(module)[-1] == op
    with pytest.raises(UnsupportedError, match="condition of an If depends on the inputs"):
        capture(OnnxModel(model_of(graph)), (torch.randn(2, 3), torch.tensor(flag)))


def loop(steps: int) -> list[NodeProto]:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", "x"], ["next"]),
            helper.make_node("Mul", ["next", "half"], ["out"]),
            helper.make_node("Identity", ["go"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", I64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", F32, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", F32, None),
            helper.make_tensor_value_info("out", F32, None),
        ],
        [helper.make_tensor("half", F32, [], [0.5])],
    )
    count = helper.make_node("Constant", [], ["count"], value=helper.make_tensor("c", I64, [], [steps]))
    return [count, helper.make_node("Loop", ["count", "", "x"], ["last", "all"], body=body)]


def test_a_loop_of_known_length_is_unrolled() -> None:
    graph = graph_of([*loop(3), helper.make_node("Add", ["last", "all"], ["y"])], {"x": ["N", 2]}, ["y"])
    module = capture(OnnxModel(model_of(graph)), torch.randn(2, 2)).module
    x = torch.randn(4, 2)
    expected = 4 * x + torch.stack([(step + 2) * x * 0.5 for step in range(3)])
    assert torch.allclose(run(module, x), expected)


def test_a_loop_that_is_too_long_is_refused() -> None:
    graph = graph_of([*loop(100_000), helper.make_node("Add", ["last", "all"], ["y"])], {"x": [1, 2]}, ["y"])
    with pytest.raises(QCompilerError, match="Loop of more than 512 steps"):
        capture(OnnxModel(model_of(graph)), torch.randn(1, 2))


def test_what_depends_on_tensors_of_the_model_alone_is_computed_with_its_kind() -> None:
    """A transposed weight is still a parameter, and keeps a name."""
    nodes = [helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]), helper.make_node("MatMul", ["x", "wt"], ["y"])]
    graph = graph_of(nodes, {"x": ["N", 3]}, ["y"], {"w": np.ones((2, 3), np.float32)})
    module = capture(OnnxModel(model_of(graph)), torch.randn(2, 3)).module
    (leaf,) = [node for node in module.main.nodes if node.op == "parameter"]
    assert leaf.text("ref") == "wt"
    assert "linear" in ops(module)


def test_results_that_nothing_needs_are_not_read() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("NonZero", ["x"], ["unused"])]
    assert "custom" not in ops(
        capture(OnnxModel(model_of(graph_of(nodes, {"x": [2, 3]}, ["y"]))), torch.ones(2, 3)).module
    )


def test_an_operator_without_translation_is_refused_with_its_name_and_place() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["y"], name="find")]
    with pytest.raises(UnsupportedError, match=r"'NonZero' is not read \(at find, NonZero\)"):
        capture(OnnxModel(model_of(graph_of(nodes, {"x": [2, 3]}, ["y"], types={"y": I64}))), torch.ones(2, 3))


def test_a_value_that_nothing_computes_is_named() -> None:
    nodes = [helper.make_node("Relu", ["z"], ["y"], name="act")]
    with pytest.raises(QCompilerError, match="z"):
        capture(OnnxModel(model_of(graph_of(nodes, {"x": [2, 3]}, ["y"]))), torch.ones(2, 3))
