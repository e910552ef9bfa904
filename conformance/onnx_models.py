"""Models for ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from conformance.requantization_cases import Codes

__all__ = ["accumulator_codes"]

Int = npt.NDArray[np.int64]


def accumulator_codes(cases: Codes, qmin: int, qmax: int) -> Int:
    """Codes that QLinearConv makes of accumulators: the biases of a 1x1 convolution whose weights are all 0.

    Args:
        cases: One channel for each accumulator.
        qmin: Lowest code: 0 for unsigned ones.
        qmax: Not needed: codes have 8 bits.
    """
    count, kind = len(cases.x), np.dtype(np.int8 if qmin else np.uint8)
    constants: dict[str, npt.NDArray[Any]] = {
        "x_scale": np.array(cases.input_scale, np.float32),
        "x_zero": np.zeros((), kind),
        "w": np.zeros((count, 1, 1, 1), np.int8),
        "w_scale": cases.weight_scale,
        "w_zero": np.zeros(count, np.int8),
        "y_scale": np.array(cases.output_scale, np.float32),
        "y_zero": np.array(cases.zero_point, kind),
        "bias": cases.x.astype(np.int32),
    }
    names = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", "bias"]
    element = TensorProto.INT8 if qmin else TensorProto.UINT8
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", names, ["y"])],
        "accumulators",
        [helper.make_tensor_value_info("x", element, [1, 1, 1, 1])],
        [helper.make_tensor_value_info("y", element, [1, count, 1, 1])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Int = session.run(None, {"x": np.ones((1, 1, 1, 1), kind)})[0].reshape(-1).astype(np.int64)
    return found
