"""Small ONNX models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

F32, I64 = TensorProto.FLOAT, TensorProto.INT64

Shape = Sequence[int | str]


def graph_of(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    tensors: Mapping[str, npt.ArrayLike] | None = None,
    types: Mapping[str, int] | None = None,
) -> GraphProto:
    """A graph of inputs of float32, or of other types by name."""
    kinds = types or {}
    return helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, kinds.get(name, F32), shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kinds.get(name, F32), None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (tensors or {}).items()],
    )


def model_of(graph: GraphProto, opset: int = 20) -> ModelProto:
    """A checked model."""
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
