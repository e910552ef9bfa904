"""Patches of inputs: times the rows of a weight they are what the layer gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qcompiler import frontends
from qcompiler.ops.layers import leaf_of
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.common.patches import patches, positions, rows_of, weight_of

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (3, 7)),
    "linear over sequences": (lambda: nn.Linear(7, 5), (3, 4, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 4, 9, 8)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=2, padding=1), (2, 2, 4, 5, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 4, 5)),
    "transposed in groups": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(1, 3), dilation=(2, 1), groups=2), (2, 4, 4, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_rows_are_what_the_layer_gives(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().eval(), torch.randn(shape)
    graph = frontends.capture(nn.Sequential(layer).eval(), x).module.main
    node = next(node for node in graph.nodes if len(node.inputs) == 3)
    weight = leaf_tensor(leaf_of(node.inputs[1]))
    rows = rows_of(node, weight)
    assert torch.equal(weight_of(node, rows), weight)
    read = patches(node, x, torch.arange(positions(node, x)))
    found = (read.double() @ rows.double().transpose(1, 2)).transpose(0, 1).flatten(1)
    found = found + leaf_tensor(node.inputs[2]).double()
    with torch.no_grad():
        expected = layer(x)
    expected = expected.movedim(-1 if node.op == "linear" else 1, -1).reshape(found.shape)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)
