"""Take a folded batch norm out of its layer again, so that it can learn.

Post-training passes work on folded layers: they scale channels, move means and round weights. What they made of weight
w', bias b' and the statistics N(beta', gamma'^2) of the result is kept; of the batch norm as it was, only the variance:

    w = w' / g,    mean = b + (beta' - b') / g,    g = gamma' / sqrt(var + eps)

gives the same function, and statistics of the batch that agree with the running ones as far as those of the model did.
A channel whose gamma' is 0 keeps its weight of the model: its result is its bias, whatever the weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer
from qcompiler.ops.quantizers import is_leaf, leaf_tensor
from qcompiler.quant.affine import along_axis

__all__ = ["FoldedNorm", "Unfolded", "norms_behind_layers", "norms_of", "output_axis", "unfold"]

STATISTICS = ".statistics"
"""Follows the name of a batch norm in the name of what its layer keeps of it."""


@dataclass(frozen=True, eq=False)
class FoldedNorm:
    """A batch norm right behind a layer, before it is folded.

    Args:
        name: Of the batch norm.
        layer: Of the layer.
        gamma: float32 [C].
        mean: Running mean.
        variance: Running variance.
        eps: Added to the variance.
        momentum: See `training.batch_norm.BatchNorm`.
        weight: Of the layer.
        bias: Of the layer, None for none.
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
    """A layer and its batch norm, float32.

    Args:
        weight: Of the layer.
        gamma: [C].
        beta: [C].
        mean: [C].
        variance: [C].
        gain: float64 [C], g; 0 where gamma is.
    """

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor
    gain: Tensor


def norms_behind_layers(graph: Graph) -> list[FoldedNorm]:
    """The batch norms of a CANONICAL graph that will be folded into the layer in front of them and may be taken out.

    Parameters that several nodes share are no such thing: each of the nodes gets its own when they are folded.
    """
    found = []
    for node in graph.nodes:
        layer = node.inputs[0].producer if node.op == "batch_norm" else None
        if layer is None or not layer.definition.has(Trait.MAC) or layer.op == "matmul" or layer.output.type.rank < 2:
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
                cast("float", node.attributes["eps"]),
                cast("float", node.attributes["momentum"]),
                leaf_tensor(layer.inputs[1]),
                leaf_tensor(layer.inputs[2]) if len(layer.inputs) > 2 else None,
                _is_parameter(node.inputs[1]) and _is_parameter(node.inputs[2]),
            )
        )
    return found


def norms_of(graph: Graph, norms: Sequence[FoldedNorm]) -> Mapping[Node, FoldedNorm]:
    """The layers of a QUANTIZED graph that hold one of these batch norms, and which."""
    by_layer = {norm.layer: norm for norm in norms}
    found = {}
    for node in graph.nodes:
        norm = by_layer.get(node.name)
        if norm is not None and node.attributes.get("statistics") == norm.name + STATISTICS:
            found[node] = norm
    return found


def output_axis(layer: Node) -> int | None:
    """The axis of the weight along which the output channels lie; None where no axis is theirs alone."""
    view = Layer(layer)
    if view.output_axis != 1:
        return None  # its channels are not along axis 1, that of a batch norm
    return view.weight_axis if not view.transposed or view.groups == 1 else None


def unfold(layer: Node, norm: FoldedNorm, weight: Tensor, bias: Tensor, axis: int) -> Unfolded:
    """Take `norm` out of `layer`.

    Args:
        layer: Of a QUANTIZED graph.
        norm: As it was.
        weight: w', float32, as it is.
        bias: b', [C].
        axis: Of the output channels of the weight.
    """
    beta, deviation = layer.graph.module.tensors[str(layer.attributes["statistics"])].to(torch.float64)
    folded, own = weight.to(torch.float64), bias.to(torch.float64)
    root = torch.sqrt(norm.variance.to(torch.float64) + norm.eps)
    gamma = torch.where(norm.gamma < 0, -deviation, deviation)
    gain = gamma / root
    rows = folded.movedim(axis, 0).flatten(1).abs().amax(1)
    # float32 holds a row and its gain as long as neither is all but nothing.
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
    return value.producer is not None and value.producer.op == "parameter"
