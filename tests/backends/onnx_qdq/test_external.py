"""Ends of ONNX files: codes in place of real numbers, and real numbers again."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.onnx_qdq.external import KEY, with_codes, with_real_ends
from qcompiler.backends.onnx_qdq.runtime import run
from qcompiler.errors import ArtifactError, UnsupportedError


class Ends(nn.Module):
    """Two results, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner = self.a(x)
        return inner, self.b(inner.relu()), inner


@pytest.fixture(scope="module")
def real() -> bytes:
    """A file with real numbers at its ends."""
    torch.manual_seed(0)
    compiled = qcompiler.compile(Ends().eval(), calibration_data=[torch.randn(16, 6)], effort="fast")
    return compiled.artifact.forms["ONNX"].files["model.onnx"]


@pytest.mark.parametrize("io", ["uint8", "int8"])
def test_codes_stand_for_the_same_numbers(real: bytes, io: Literal["uint8", "int8"]) -> None:
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    coded = with_codes(onnx.load_from_string(real), io).SerializeToString()
    again = with_real_ends(coded)
    for ours, theirs in zip(run(again, [x]), run(real, [x]), strict=True):
        assert np.array_equal(ours, theirs)
    types = [item.type.tensor_type.elem_type for item in onnx.load_from_string(coded).graph.output]
    assert types == [{"uint8": onnx.TensorProto.UINT8, "int8": onnx.TensorProto.INT8}[io]] * 3
    onnx.checker.check_model(onnx.load_from_string(coded), full_check=True)


def test_a_file_with_the_stored_type_has_no_quantizer_at_its_input(real: bytes) -> None:
    coded = with_codes(onnx.load_from_string(real), "uint8")
    first = next(node for node in coded.graph.node if coded.graph.input[0].name in node.input)
    assert first.op_type == "DequantizeLinear"
    assert sum(node.op_type == "QuantizeLinear" for node in coded.graph.node) < sum(
        node.op_type == "QuantizeLinear" for node in onnx.load_from_string(real).graph.node
    ) + len(coded.graph.output)


def test_files_with_real_numbers_stay(real: bytes) -> None:
    assert with_real_ends(real) is real


def test_what_is_computed_in_float_is_refused() -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    with pytest.raises(UnsupportedError, match="the input 'x' is read in float"):
        with_codes(onnx.helper.make_model(graph), "uint8")


@pytest.mark.parametrize("text", ["[]", "{}", '{"inputs": [{"name": 3}], "outputs": []}', "{"])
def test_metadata_that_do_not_describe_the_file_are_refused(real: bytes, text: str) -> None:
    model = with_codes(onnx.load_from_string(real), "uint8")
    onnx.helper.set_model_props(model, {KEY: text})
    with pytest.raises(ArtifactError, match="do not describe its ends"):
        with_real_ends(model.SerializeToString())
