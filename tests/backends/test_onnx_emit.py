"""The ONNX file in ONNX Runtime against the integer graph: every quantized tensor, in a default session."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from qcompiler.backends.onnx_qdq import UNSIGNED_SHIFT, emit
from qcompiler.errors import UnsupportedError
from qcompiler.ir.interpret import interpret
from tests.backends.test_integer_program import build
from tests.passes.test_default_pipeline import capture


def runtime_codes(model: bytes, x: np.ndarray, optimized: Path) -> tuple[dict[str, np.ndarray], Counter[str]]:  # type: ignore[type-arg]
    """Signed codes of every QuantizeLinear output, and the operators of the optimized model."""
    proto = onnx.load_from_string(model)
    names = [node.output[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    for name in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = session.run(names, {session.get_inputs()[0].name: x})
    kernels = Counter(node.op_type for node in onnx.load(str(optimized)).graph.node)
    return {n: r.astype(np.int64) - UNSIGNED_SHIFT for n, r in zip(names, results, strict=True)}, kernels


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2"])
def test_int8_ort_equals_onnx_runtime_on_every_tensor(network: str, tmp_path: Path) -> None:
    module = build(network, "int8_ort")
    x = torch.randn(7, 3, 64, 64)
    codes, kernels = runtime_codes(emit(module.main), x.numpy(), tmp_path / "optimized.onnx")
    assert kernels["Conv"] == kernels["Gemm"] == 0, "every product runs in an integer kernel"
    assert kernels["QLinearConv"] == sum(node.op == "int_conv2d" for node in module.main.nodes)
    expected: dict[str, np.ndarray] = {}  # type: ignore[type-arg]
    interpret(module.main, [x], lambda value, tensor: expected.update({value.name: tensor.numpy()}))
    assert len(codes) > 25
    differing = {name: int((expected[name] != found).sum()) for name, found in codes.items()}
    assert not any(differing.values()), {name: count for name, count in differing.items() if count}


def test_file_is_about_a_quarter_and_the_same_bytes_twice() -> None:
    module = build("resnet18", "int8_dsp")
    size = len(emit(module.main))
    floats = 4 * 11_684_712  # parameters of ResNet-18 after folding
    assert 0.24 < size / floats < 0.27
    assert emit(module.main) == emit(build("resnet18", "int8_dsp").main)


def test_refuses_a_graph_that_is_not_integer() -> None:
    with pytest.raises(UnsupportedError, match="stage float"):
        emit(capture(torch.nn.Linear(2, 2), torch.zeros(1, 2)).main)
