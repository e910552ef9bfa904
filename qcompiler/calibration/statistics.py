"""The statistics that a layer keeps of its folded batch norm: mean and standard deviation of each output channel.

They are a tensor [2, C] of the module, named by the attribute `statistics` of the layer (decision 4). All that reads or
writes them does so here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.calibration.gaussian import Gaussian
from qcompiler.ir.graph import Node

__all__ = ["set_statistics", "statistics_of"]


def statistics_of(layer: Node) -> Gaussian | None:
    """What a batch norm says of the output channels of `layer`, [C]; None where there was none."""
    ref = layer.attributes.get("statistics")
    if not isinstance(ref, str):
        return None
    mean, std = layer.graph.module.tensors[ref]
    return Gaussian(mean, std)


def set_statistics(layer: Node, moments: Gaussian) -> None:
    """Replace the statistics of a layer that has some, after a change of its output channels."""
    tensor: Tensor = torch.stack([moments.mean, moments.std]).to(torch.float32)
    layer.graph.module.tensors[str(layer.attributes["statistics"])] = tensor
