"""Parts of a file: together they give what the whole gives, and each holds only its own nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.onnx_qdq import parts
from qcompiler.backends.onnx_qdq.runtime import Layers, integer_weights, run, run_default, run_observed
from tests.support.forms import onnx_of

LAYERS = 12


class Blocks(nn.Module):
    """Residual blocks, and an output from their middle."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = x
        for index, layer in enumerate(self.layers):
            y = torch.relu(layer(x))
            x = x + y if index % 2 else y
            if index == LAYERS // 2:
                middle = x
        return x, middle


@pytest.fixture(scope="module")
def file() -> bytes:
    torch.manual_seed(0)
    data = [torch.randn(4, 4, 3, 3)]
    return onnx_of(qcompiler.compile(Blocks().eval(), calibration_data=data, verify="off").artifact)


X = [np.random.default_rng(0).standard_normal((3, 4, 3, 3)).astype(np.float32)]


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_parts_give_the_results_of_the_whole(
    file: bytes, optimize: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, outputs = run_observed(file, X, optimize=optimize)
    layers = Layers(file, optimize=optimize).run(X, codes)
    monkeypatch.setattr(parts, "PART", size)
    found, others = run_observed(file, X, optimize=optimize)
    assert list(found) == list(codes)
    assert all(np.array_equal(found[name], codes[name]) for name in codes)
    assert all(np.array_equal(a, b) for a, b in zip(others, outputs, strict=True))
    again = Layers(file, optimize=optimize).run(X, codes)
    assert list(again) == list(layers)
    assert all(np.array_equal(again[name], layers[name]) for name in layers)


def test_each_node_is_in_one_part(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", 4)
    model = onnx.load_from_string(file)
    count = len(parts.quantizers(model))
    every, few = (list(parts.files_of_parts(model, every=every)) for every in (True, False))
    for found in (every, few):
        assert len(found) == -(-count // 4)
        held = [node.output[0] for part in found for node in onnx.load_from_string(part.file).graph.node]
        assert sorted(held) == sorted(node.output[0] for node in model.graph.node)
    assert sum(len(part.tensors) for part in few) < count, "only what other parts read"


def test_a_large_file_runs_in_parts_by_default(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, weights = run_default(file, X), integer_weights(file)
    monkeypatch.setattr(parts, "PART", 4)
    monkeypatch.setattr(parts, "WHOLE", 8)
    assert all(np.array_equal(a, b) for a, b in zip(run_default(file, X), whole, strict=True))
    assert integer_weights(file) == weights
    assert len(weights) == LAYERS
    assert all(np.isfinite(item).all() for item in run(file, X))
