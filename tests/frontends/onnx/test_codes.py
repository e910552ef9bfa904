"""Operators on codes compute what ONNX Runtime computes, as operators on real numbers between quantizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.onnx.codes import FORMS, REFUSED, expand, is_quantized, place_of
from tests.frontends.onnx.files import graph_of

MICROSOFT = "com.microsoft"
X = (np.random.default_rng(0).normal(size=(4, 6, 8, 8)) * 2).astype(np.float32)
TENSORS: dict[str, npt.ArrayLike] = {
    "s": np.float32(0.031), "z": np.uint8(120), "t": np.float32(0.047), "u": np.uint8(100), "v": np.float32(0.0213),
    "ws": np.linspace(0.01, 0.02, 5, dtype=np.float32), "wz": np.zeros(5, np.int8), "one": np.float32(0.013),
    "zero": np.int8(0), "sg": np.float32(1 / 256), "zg": np.uint8(0),
    "w": np.random.default_rng(1).integers(-127, 128, (5, 6, 3, 3)).astype(np.int8),
    "m": np.random.default_rng(2).integers(-127, 128, (8, 5)).astype(np.int8),
    "b": np.arange(-500, 500, 200).astype(np.int32),
}  # fmt: skip


def case(op: str, inputs: list[str], domain: str = "", **options: Any) -> list[NodeProto]:
    """x ─► Q ─► the operator ─► DQ on its grid."""
    return [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"]),
        helper.make_node(op, inputs, ["d"], domain=domain, name="node", **options),
        helper.make_node("DequantizeLinear", ["d", "t", "u"], ["y"]),
    ]


CASES: dict[str, list[NodeProto]] = {
    "QLinearConv": case("QLinearConv", ["c", "s", "z", "w", "ws", "wz", "t", "u", "b"], pads=[1, 1, 1, 1]),
    "QLinearMatMul": case("QLinearMatMul", ["c", "s", "z", "m", "one", "zero", "t", "u"]),
    "QLinearAdd": case("QLinearAdd", ["c", "s", "z", "c", "s", "z", "t", "u"], MICROSOFT),
    "QLinearMul": case("QLinearMul", ["c", "s", "z", "c", "s", "z", "t", "u"], MICROSOFT),
    "QLinearSigmoid": case("QLinearSigmoid", ["c", "s", "z", "t", "u"], MICROSOFT),
    "QLinearLeakyRelu": case("QLinearLeakyRelu", ["c", "s", "z", "t", "u"], MICROSOFT, alpha=0.1),
    "QLinearAveragePool": case(
        "QLinearAveragePool", ["c", "s", "z", "t", "u"], MICROSOFT, kernel_shape=[2, 2], strides=[2, 2]
    ),
    "QLinearGlobalAveragePool": case("QLinearGlobalAveragePool", ["c", "s", "z", "t", "u"], MICROSOFT),
    "QLinearConcat": case("QLinearConcat", ["t", "u", "c", "s", "z", "c", "s", "z"], MICROSOFT, axis=1),
}


def model(nodes: list[NodeProto], opset: int = 17) -> ModelProto:
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    graph = graph_of(nodes, {"x": ["N", *X.shape[1:]]}, ["y"], TENSORS)
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def constants(of: ModelProto) -> Callable[[str], Any]:
    held = {item.name: numpy_helper.to_array(item) for item in of.graph.initializer}
    return held.get


def expanded(of: ModelProto) -> ModelProto:
    """The model with the nodes of `expand`."""
    found = ModelProto()
    found.CopyFrom(of)
    nodes = expand(found, constants(of))
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    return found


def run(of: ModelProto) -> npt.NDArray[np.float32]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(of.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: npt.NDArray[np.float32] = session.run(None, {"x": X})[0]
    return found


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_what_it_stands_for(name: str) -> None:
    subject = model(CASES[name])
    assert is_quantized(subject)
    written = expanded(subject)
    kinds = {node.op_type for node in written.graph.node}
    assert name not in kinds
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    steps = np.abs(run(subject) - run(written)) / 0.047
    assert steps.max() < 1.01
    assert (steps > 0.5).mean() < 0.01
    assert len(np.unique(run(subject))) > 8


def test_every_form_has_a_case_or_a_network() -> None:
    by_networks = {"QGemm", "QLinearSoftmax"}
    assert set(FORMS) <= set(CASES) | by_networks


def test_qgemm_and_its_axis_of_scales() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["p"], axes=[1, 2], keepdims=0),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["c"]),
        helper.make_node(
            "QGemm", ["c", "s", "z", "m", "ws", "wz", "b", "t", "u"], ["d"], domain=MICROSOFT, name="node", transB=0
        ),
        helper.make_node("DequantizeLinear", ["d", "t", "u"], ["y"]),
    ]
    subject = model(nodes)
    assert np.abs(run(subject) - run(expanded(subject))).max() < 0.048


def test_a_result_without_a_grid_stays_a_real_number() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["p"], axes=[1, 2], keepdims=0),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["c"]),
        helper.make_node("QGemm", ["c", "s", "z", "m", "one", "zero", "b"], ["y"], domain=MICROSOFT, name="node"),
    ]
    subject = model(nodes)
    written = expanded(subject)
    assert written.graph.node[-1].op_type == "Gemm"
    assert np.allclose(run(subject), run(written), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", sorted(REFUSED))
def test_refused_operators_are_named_with_a_reason(op: str) -> None:
    subject = model([helper.make_node(op, ["x"], ["y"], name="node", domain=MICROSOFT)])
    with pytest.raises(UnsupportedError, match=rf"{op} cannot be compiled: \w.*node \({op}\)"):
        expand(subject, constants(subject))


def test_channels_last_are_refused() -> None:
    nodes = case("QLinearGlobalAveragePool", ["c", "s", "z", "t", "u"], MICROSOFT, channels_last=1)
    with pytest.raises(UnsupportedError, match="channels last"):
        expanded(model(nodes))


def test_a_float_file_is_not_quantized() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    assert not is_quantized(model([node]))
    assert place_of(node) == "y (Relu)"
