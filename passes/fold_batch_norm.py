"""Fold batch norms into their neighbours.

With g = gamma / sqrt(var + eps) and h = beta - mean * g, per channel, batch_norm(x) = g * x + h:

    batch_norm(conv(x, W, b))  ->  conv(x, g W, g b + h)          out channels scaled
    conv(batch_norm(x), W, b)  ->  conv(x, W g, b + sum W h)      in channels scaled; only without padding
    batch_norm(x)              ->  conv(x, g, h), depthwise 1x1   a per-channel affine, nothing to fold into

`conv` is any convolution, transposed convolution or linear layer. The node that takes a batch norm in keeps what the
batch norm knew of the distribution of its output, N(beta, gamma^2) per channel, under its attribute `statistics`:
data-free ranges, bias absorption and analytic bias correction read it.

Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (batch normalization folding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from qcompiler.errors import PassError
from qcompiler.ir.dims import product
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.quantizers import is_leaf, leaf_tensor
from qcompiler.passes.base import Pass, PassContext, only_user
from qcompiler.validation.contracts import THRESHOLDS, Contract

AFFINE = "a batch norm with nothing to fold into, as a depthwise 1x1 convolution"
"""What the record says of one that stays a layer of its own."""


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Leave no batch norm in the graph.

    Refuses: the fold into the following layer when that layer pads, because the padding is zero behind the batch norm
    and would have to be -h / g in front of it; when it is a transposed convolution, whose border positions sum fewer
    taps; and when the batch norm has other users. Such a batch norm becomes a per-channel affine.
    """

    name: ClassVar[str] = "fold-batch-norm"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    establishes: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})

    @property
    def contract(self) -> Contract:
        """Products of float32 in another order."""
        return THRESHOLDS[self.name]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the class.

        Raises:
            PassError: A batch norm uses batch statistics, that is, the model was captured in train mode.
        """
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if node.op != "batch_norm":
                continue
            if node.attributes["training"]:
                raise PassError(
                    "the batch norm normalizes with the statistics of the batch", where=node.where, fix="Call eval()."
                )
            if not (_fold_backward(node, rewriter) or _fold_forward(node, rewriter)):
                _to_affine(node, rewriter)


@dataclass(frozen=True)
class _Affine:
    """batch_norm(x) = gain * x + shift with gain, shift: float64 [C]; its output is N(mean, std^2)."""

    gain: Tensor
    shift: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, node: Node) -> _Affine:
        weight, bias, mean, variance = (leaf_tensor(value).to(torch.float64) for value in node.inputs[1:])
        gain = weight / torch.sqrt(variance + cast("float", node.attributes["eps"]))
        return cls(gain, bias - mean * gain, bias.to(torch.float32), weight.abs().to(torch.float32))


def _fold_backward(node: Node, rewriter: Rewriter) -> bool:
    layer = node.inputs[0].producer
    if layer is None or not _is_layer(layer):
        return False
    if only_user(layer) is not node:
        rewriter.refuse(node, f"{layer.name} also feeds {_others(layer, node)}, so the fold would change that")
        return False
    affine = _Affine.of(node)
    weight, bias = _parameters(layer)
    axis = _out_axis(layer)
    if axis == 1:  # transposed convolution: [in, out / groups, k...]; group i makes the i-th block of out channels
        groups = cast("int", layer.attributes["groups"])
        gain = affine.gain.reshape(groups, 1, -1)
        folded = (weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1) * gain.unsqueeze(-1)).reshape(
            weight.shape
        )
    else:
        folded = weight * affine.gain.reshape(-1, *[1] * (weight.dim() - 1))
    _set_parameters(layer, folded, bias * affine.gain + affine.shift, rewriter)
    _keep_statistics(layer, node, affine, rewriter)
    layer.origins = tuple(dict.fromkeys(layer.origins + node.origins))
    rewriter.note(layer, f"took in the batch norm {node.name} that followed it")
    rewriter.replace(node, layer.output)
    return True


def _fold_forward(node: Node, rewriter: Rewriter) -> bool:
    layer = only_user(node)
    if layer is None or not _is_layer(layer) or layer.inputs[0] is not node.output:
        return False
    if _out_axis(layer) == 1:
        rewriter.refuse(node, f"border positions of the transposed convolution {layer.name} sum fewer taps")
        return False
    if any(cast("tuple[int, ...]", layer.attributes.get("padding", ()))):
        rewriter.refuse(node, f"{layer.name} pads with zeros behind the batch norm; in front of it that is no zero")
        return False
    affine = _Affine.of(node)
    weight, bias = _parameters(layer)
    groups = cast("int", layer.attributes.get("groups", 1))
    # Row o of the weight reads the in channels of its group.
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    gain, shift = (v.reshape(groups, 1, -1, 1) for v in (affine.gain, affine.shift))
    _set_parameters(
        layer, (grouped * gain).reshape(weight.shape), bias + (grouped * shift).sum((2, 3)).reshape(-1), rewriter
    )
    layer.origins = tuple(dict.fromkeys(layer.origins + node.origins))
    rewriter.note(layer, f"took in the batch norm {node.name} that preceded it")
    rewriter.replace(node, node.inputs[0])
    return True


def _to_affine(node: Node, rewriter: Rewriter) -> None:
    affine = _Affine.of(node)
    channels = affine.gain.numel()
    x, shape = node.inputs[0], node.output.type.shape
    # One image per sample whatever the rank, so that every target that has convolutions has this.
    image = (shape[0], channels, product(shape[2:-1]), shape[-1] if len(shape) > 2 else 1)
    if image != shape:
        x = rewriter.insert("reshape", [x], {"shape": image}, before=node, like=node).output
    weight = affine.gain.to(torch.float32).reshape(channels, 1, 1, 1)
    operands = [
        rewriter.leaf("parameter", weight, ref=f"{node.name}.gain", before=node, like=node),
        rewriter.leaf("parameter", affine.shift.to(torch.float32), ref=f"{node.name}.shift", before=node, like=node),
    ]
    geometry = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": channels}
    layer = rewriter.insert("conv2d", [x, *operands], geometry, before=node, like=node)
    _keep_statistics(layer, node, affine, rewriter)
    rewriter.note(layer, AFFINE)
    result = layer.output
    if image != shape:
        result = rewriter.insert("reshape", [result], {"shape": shape}, before=node, like=node).output
    rewriter.replace(node, result)


def _is_layer(node: Node) -> bool:
    has_constant_weight = len(node.inputs) > 1 and is_leaf(node.inputs[1])
    constant_bias = len(node.inputs) < 3 or is_leaf(node.inputs[2])
    return node.definition.has(Trait.MAC) and node.op != "matmul" and has_constant_weight and constant_bias


def _out_axis(layer: Node) -> int:
    return 1 if layer.op.startswith("conv_transpose") else 0


def _parameters(layer: Node) -> tuple[Tensor, Tensor]:
    weight = leaf_tensor(layer.inputs[1]).to(torch.float64)
    if len(layer.inputs) > 2:
        return weight, leaf_tensor(layer.inputs[2]).to(torch.float64)
    channels = weight.shape[0] if _out_axis(layer) == 0 else weight.shape[1] * cast("int", layer.attributes["groups"])
    return weight, torch.zeros(channels, dtype=torch.float64)


def _set_parameters(layer: Node, weight: Tensor, bias: Tensor, rewriter: Rewriter) -> None:
    weight, bias = weight.to(torch.float32), bias.to(torch.float32)
    rewriter.replace_input(layer, 1, rewriter.set_tensor(layer.inputs[1], weight, before=layer, like=layer))
    if len(layer.inputs) > 2:
        rewriter.replace_input(layer, 2, rewriter.set_tensor(layer.inputs[2], bias, before=layer, like=layer))
    else:
        rewriter.add_input(layer, rewriter.leaf("parameter", bias, ref=f"{layer.name}.bias", before=layer, like=layer))


def _keep_statistics(layer: Node, node: Node, affine: _Affine, rewriter: Rewriter) -> None:
    tensors = node.graph.module.tensors
    ref = node.graph.module.unique_tensor_name(f"{node.name}.statistics")
    tensors[ref] = torch.stack([affine.mean, affine.std])
    rewriter.set_attributes(layer, statistics=ref)


def _others(layer: Node, node: Node) -> str:
    names = [user.name for user in layer.output.users if user is not node]
    return ", ".join(names) if names else "an output of the model"
