"""Unfold a folded batch norm from its layer, so that the batch norm can learn.

Post-training passes work on folded layers: they scale channels, move means and round weights. Unfolding keeps the
resulting weight w', bias b' and output statistics N(beta', gamma'^2); of the original batch norm it keeps only the
variance:

    w = w' / g,    mean = b + (beta' - b') / g,    g = gamma' / sqrt(var + eps)

The function stays the same, and batch statistics agree with the running statistics as well as in the original model. A
channel with gamma' = 0 keeps the model's weight: its result is its bias for any weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantizers import is_leaf, leaf_tensor
from qcompiler.quant.affine import along_axis, channel_rows

__all__ = ["FoldedNorm", "Unfolded", "norms_after_layers", "norms_of", "output_axis", "unfold"]

STATISTICS = ".statistics"
"""Suffix that turns the name of a batch norm into the name of the statistics tensor of its layer."""


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """A batch norm directly after a layer, before folding.

    Args:
        name: Name of the batch norm.
        layer: Name of the layer.
        gamma: Weight of the batch norm, float32 [C].
        mean: Running mean, float32 [C].
        variance: Running variance, float32 [C].
        eps: Constant added to the variance.
        momentum: Momentum; see `training.batch_norm.BatchNorm`.
        weight: Weight of the layer.
        bias: Bias of the layer; None if it has no bias.
        learns: Whether gamma and beta are parameters of the model.
    """

    name: str
    layer: str
    gamma: Tensor
    mean: Tensor
    variance: Tensor
    eps: float
    momentum: float
    weight: Tensor
    bias: Tensor | None
    learns: bool


@dataclass(frozen=True, eq=False)
class Unfolded:
    """A layer and its unfolded batch norm, float32.

    Args:
        weight: Weight of the layer.
        gamma: Weight of the batch norm, [C].
        beta: Bias of the batch norm, [C].
        mean: Running mean, [C].
        variance: Running variance, [C].
        gain: g, float64 [C]; 0 where gamma is 0.
    """

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor
    gain: Tensor


def norms_after_layers(graph: Graph) -> list[FoldedNorm]:
    """The batch norms of a CANONICAL graph that will be folded into the preceding layer and can be unfolded again.

    Batch norms with shared parameters are left out: folding gives each node its own copy.
    """
    found = []
    for node in graph.nodes:
        layer = node.inputs[0].producer if node.op == "batch_norm" else None
        if layer is None or not is_weighted(layer) or layer.output.type.rank < 2:
            continue
        parameters = [*layer.inputs[1:], *node.inputs[1:]]
        if len(layer.output.users) != 1 or graph.is_output(layer.output) or not all(map(is_leaf, parameters)):
            continue
        if any(sum(value.users.values()) != 1 for value in parameters) or output_axis(layer) is None:
            continue
        gamma, _, mean, variance = map(leaf_tensor, node.inputs[1:])
        found.append(
            FoldedNorm(
                node.name,
                layer.name,
                gamma,
                mean,
                variance,
                node.number("eps"),
                node.number("momentum"),
                leaf_tensor(layer.inputs[1]),
                leaf_tensor(layer.inputs[2]) if len(layer.inputs) > 2 else None,
                _is_parameter(node.inputs[1]) and _is_parameter(node.inputs[2]),
            )
        )
    return found


def norms_of(graph: Graph, norms: Sequence[FoldedNorm]) -> Mapping[Node, FoldedNorm]:
    """The given batch norms by the layer of a QUANTIZED graph into which each was folded."""
    by_layer = {norm.layer: norm for norm in norms}
    found = {}
    for node in graph.nodes:
        norm = by_layer.get(node.name)
        if norm is not None and node.attributes.get("statistics") == norm.name + STATISTICS:
            found[node] = norm
    return found


def output_axis(layer: Node) -> int | None:
    """The output channel axis of the weight; None if no axis holds the output channels alone."""
    view = Layer(layer)
    if view.output_axis != 1:
        return None  # a batch norm has its channels on axis 1
    return view.weight_axis if not view.transposed or view.groups == 1 else None


def unfold(layer: Node, norm: FoldedNorm, weight: Tensor, bias: Tensor, axis: int) -> Unfolded:
    """Unfold `norm` from `layer`.

    Args:
        layer: Layer of a QUANTIZED graph.
        norm: Batch norm before folding.
        weight: Current weight w', float32.
        bias: Current bias b', [C].
        axis: Output channel axis of the weight.
    """
    beta, deviation = layer.graph.module.tensors[str(layer.attributes["statistics"])].to(torch.float64)
    folded, own = weight.to(torch.float64), bias.to(torch.float64)
    root = torch.sqrt(norm.variance.to(torch.float64) + norm.eps)
    gamma = torch.where(norm.gamma < 0, -deviation, deviation)
    gain = gamma / root
    rows = channel_rows(folded, axis).abs().amax(1)
    # Rows or gains below the smallest normal float32 lose precision: such channels keep the model's weight.
    alive = (gain.abs() >= torch.finfo(torch.float32).tiny) & (rows >= torch.finfo(torch.float32).tiny)
    safe = torch.where(alive, gain, torch.ones_like(gain))
    unfolded = folded / along_axis(safe, weight.dim(), axis)
    keep = along_axis(alive, weight.dim(), axis)
    before = norm.bias.to(torch.float64) if norm.bias is not None else torch.zeros_like(beta)
    return Unfolded(
        torch.where(keep, unfolded, norm.weight.to(torch.float64)).to(torch.float32),
        torch.where(alive, gamma, torch.zeros_like(gamma)).to(torch.float32),
        torch.where(alive, beta, own).to(torch.float32),
        torch.where(alive, before + (beta - own) / safe, norm.mean.to(torch.float64)).to(torch.float32),
        norm.variance.to(torch.float32),
        torch.where(alive, gain, torch.zeros_like(gain)),
    )


def _is_parameter(value: Value) -> bool:
    return value.made_by("parameter") is not None
