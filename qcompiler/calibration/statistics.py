"""Facts about a layer's channels: statistics of a folded batch norm, and the center of a folded normalization.

The statistics, mean and standard deviation of each output channel, are a tensor [2, C] of the module; the attribute
`statistics` of the layer has its name (decision 4). The center, one value per input channel that the normalization
mapped to 0, is a tensor [C], named by the attribute `center`. Only this module reads and writes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.calibration.gaussian import Gaussian
from qcompiler.ir.graph import Node

__all__ = ["center_of", "set_center", "set_statistics", "statistics_of"]


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


def center_of(layer: Node) -> Tensor | None:
    """The input [C] that a folded normalization mapped to 0, float64; None without one."""
    ref = layer.attributes.get("center")
    return layer.graph.module.tensors[ref].to(torch.float64) if isinstance(ref, str) else None


def set_center(layer: Node, center: Tensor) -> None:
    """Replace the center of a layer, whose attribute `center` has a name."""
    layer.graph.module.tensors[str(layer.attributes["center"])] = center.to(torch.float32)
