"""The ONNX file in ONNX Runtime against the integer graph: every layer on the same integers, in a default session."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qcompiler.backends.onnx_qdq import Layers, emit, integer_weights
from qcompiler.errors import UnsupportedError
from qcompiler.ir.interpret import LEAVES, interpret
from tests.backends.test_integer_program import build
from tests.passes.test_default_pipeline import capture

EXACT = {"", "Conv", "Gemm", "GlobalAveragePool", "Sigmoid"}
"""Operators whose kernels in ONNX Runtime int8_ort reproduces; the empty one quantizes the input."""


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2", "mixed"])
def test_int8_ort_equals_the_kernels_of_onnx_runtime(network: str) -> None:
    module = build(network, "int8_ort")
    model = emit(module.main)
    sizes = module.main.inputs[0].type.shape[1:]
    x = torch.randn(7, *(int(size) for size in sizes), generator=torch.Generator().manual_seed(1))
    expected: dict[str, np.ndarray] = {}
    interpret(module.main, [x], lambda value, tensor: expected.update({value.name: tensor.numpy()}))
    layers = Layers(model)
    found = layers.run([x.numpy()], expected)
    assert len(found) == sum(node.output.type.quant is not None for node in module.main.nodes if node.op not in LEAVES)
    operators = set(layers.operators.values())
    assert "Conv" in operators and "Gemm" in operators
    for name, codes in found.items():
        distance = np.abs(codes.astype(np.int64) - expected[name])
        assert int(distance.max()) <= (0 if layers.operators[name] in EXACT else 1), name


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2"])
def test_every_product_runs_in_an_integer_kernel(network: str) -> None:
    for target in ("int8_ort", "int8_dsp", "int8_dsp_per_channel"):
        module = build(network, target)
        weights = {node.inputs[1].name for node in module.main.nodes if node.op in ("int_conv2d", "int_linear")}
        assert integer_weights(emit(module.main)) == weights


def test_file_is_about_a_quarter_and_the_same_bytes_twice() -> None:
    module = build("resnet18", "int8_dsp")
    size = len(emit(module.main))
    floats = 4 * 11_684_712  # parameters of ResNet-18 after folding
    assert 0.24 < size / floats < 0.27
    assert emit(module.main) == emit(build("resnet18", "int8_dsp").main)


def test_refuses_a_graph_that_is_not_integer() -> None:
    with pytest.raises(UnsupportedError, match="stage float"):
        emit(capture(torch.nn.Linear(2, 2), torch.zeros(1, 2)).main)
