"""Reading of ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from qcompiler.errors import InputError
from qcompiler.frontends.onnx.reading import read, to_tensor
from tests.frontends.onnx.files import F32, graph_of, model_of

LINEAR = graph_of(
    [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["N", 3]}, ["y"], {"w": np.ones((3, 2), np.float32)}
)


def test_a_path_bytes_and_a_message_are_the_same(tmp_path: Path) -> None:
    model = model_of(LINEAR)
    onnx.save(model, tmp_path / "small.onnx")
    files = [read(subject, {}) for subject in (tmp_path / "small.onnx", model.SerializeToString(), model)]
    for file in files:
        assert file.inputs[0].shape == ("N", 3)
        assert file.opsets == {"": 20}
        assert torch.equal(file.initializers["w"], torch.ones(3, 2))


def test_external_data_is_read(tmp_path: Path) -> None:
    model = model_of(LINEAR)
    onnx.save(model, tmp_path / "small.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert torch.equal(read(tmp_path / "small.onnx", {}).initializers["w"], torch.ones(3, 2))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "small.onnx", {})


def test_the_message_of_the_caller_is_not_changed() -> None:
    model = model_of(LINEAR)
    before = model.SerializeToString()
    read(model, {"x": torch.zeros(1, 3)})
    assert model.SerializeToString() == before


def test_a_fixed_input_is_a_tensor_of_the_model() -> None:
    file = read(model_of(LINEAR), {"x": torch.full((1, 3), 2.0)})
    assert file.inputs == ()
    assert torch.equal(file.initializers["x"], torch.full((1, 3), 2.0))
    with pytest.raises(InputError, match="no input 'rate'"):
        read(model_of(LINEAR), {"rate": 1})


def test_the_value_of_a_fixed_input_fits_its_declaration() -> None:
    assert torch.equal(read(model_of(LINEAR), {"x": np.ones((5, 3))}).initializers["x"], torch.ones(5, 3))
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    fixed = model_of(graph_of(nodes, {"x": [2, 3]}, ["y"]))
    assert torch.equal(read(fixed, {"x": 4}).initializers["x"], torch.full((2, 3), 4.0))
    for value, words in ((np.ones((3, 2)), "has the shape"), ("rate", "a number or an array")):
        with pytest.raises(InputError, match=words):
            read(fixed, {"x": value})
    whole = model_of(graph_of(nodes, {"x": [1]}, ["y"], types={"x": onnx.TensorProto.INT64}))
    with pytest.raises(InputError, match="int64 values"):
        read(whole, {"x": 2.5})


def test_bfloat16_is_read() -> None:
    item = helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [2], [1.0, -2.5])
    assert torch.equal(to_tensor(item, ""), torch.tensor([1.0, -2.5], dtype=torch.bfloat16))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read(tmp_path / "absent.onnx", {})
    (tmp_path / "text.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "text.onnx", {})
    with pytest.raises(InputError, match="opset 8"):
        read(model_of(LINEAR, opset=8), {})
    sequence = graph_of([helper.make_node("SequenceConstruct", ["x"], ["y"])], {"x": [2]}, [])
    sequence.output.append(helper.make_tensor_sequence_value_info("y", F32, None))
    with pytest.raises(InputError, match="declared as sequence"):
        read(model_of(sequence), {})
    text = graph_of([helper.make_node("Identity", ["x"], ["y"])], {"x": [2]}, ["y"], types={"x": 8, "y": 8})
    with pytest.raises(InputError, match="element type string"):
        read(model_of(text), {})


def test_a_file_without_outputs_is_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", 1, ["N", 3])], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(InputError, match="the graph has no outputs"):
        read(model, {})


def test_what_no_output_needs_is_not_run() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["large"], ["grown"]),
        helper.make_node("Exp", ["grown"], ["unread"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 3]) for name in "xy")
    large = helper.make_tensor("large", 7, [2], [2**20, 2**12])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [large]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    assert [node.op_type for node in read(model, {}).model.graph.node] == ["Relu"]
    assert len(model.graph.node) == 3
