"""Statistics of a folded batch norm, kept on its layer: mean and standard deviation of each output channel.

The statistics are a tensor [2, C] of the module; the attribute `statistics` of the layer has its name (decision 4).
Only this module reads and writes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.calibration.gaussian import Gaussian
from qcompiler.ir.graph import Node

__all__ = ["set_statistics", "statistics_of"]


def statistics_of(layer: Node) -> Gaussian | None:
    """Statistics [C] of the output channels of `layer` from its batch norm; None if the layer had no batch norm."""
    ref = layer.attributes.get("statistics")
    if not isinstance(ref, str):
        return None
    mean, std = layer.graph.module.tensors[ref]
    return Gaussian(mean, std)


def set_statistics(layer: Node, moments: Gaussian) -> None:
    """Replace the statistics of a layer after a change of its output channels, if the layer has statistics."""
    tensor: Tensor = torch.stack([moments.mean, moments.std]).to(torch.float32)
    layer.graph.module.tensors[str(layer.attributes["statistics"])] = tensor
