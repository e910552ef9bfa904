"""Fold batch norms into their neighbours.

With g = gamma / sqrt(var + eps) and h = beta - mean * g, per channel, batch_norm(x) = g * x + h:

    batch_norm(conv(x, W, b))  ->  conv(x, g W, g b + h)          out channels scaled
    conv(batch_norm(x), W, b)  ->  conv(x, W g, b + sum W h)      in channels scaled; only without padding
    batch_norm(x)              ->  conv(x, g, h), depthwise 1x1   if there is no layer to fold into

`conv` is any convolution, transposed convolution or linear layer whose channels are on axis 1, as those of the batch
norm are; a linear layer on more than two axes has its channels on the last axis. The layer keeps the distribution of
the output of the batch norm, N(beta, gamma^2) per channel, in its attribute `statistics`, for data-free ranges, bias
absorption and analytic bias correction.

Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (batch normalization folding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.calibration.gaussian import Gaussian
from qcompiler.calibration.statistics import set_statistics
from qcompiler.errors import PassError
from qcompiler.ir.dims import product
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.layers import Layer
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.base import Pass, PassContext, only_user
from qcompiler.validation.contracts import THRESHOLDS, Contract

AFFINE = Sentence(
    "batch-norm-as-convolution", "a batch norm without a layer to fold into, as a depthwise 1x1 convolution"
)
FOLLOWED = Sentence("batch-norm-followed", "includes the batch norm {norm} that followed it")
PRECEDED = Sentence("batch-norm-preceded", "includes the batch norm {norm} that preceded it")
CHANNELS_AFTER = Sentence(
    "channels-after-layer", "the channels of {layer} are on axis {axis}, those of the batch norm on axis 1"
)
CHANNELS_BEFORE = Sentence(
    "channels-before-layer", "{layer} reads channels on axis {axis}, but those of the batch norm are on axis 1"
)
ALSO_FEEDS = Sentence("layer-feeds-others", "{layer} also feeds {others}, which the fold would change")
FEWER_TAPS = Sentence("border-sums-fewer-taps", "border positions of the transposed convolution {layer} sum fewer taps")
PADS = Sentence(
    "layer-pads", "{layer} pads with zeros after the batch norm; before the batch norm the padding would not be zero"
)

CHANNEL_AXIS = 1
"""The channel axis of a batch norm."""


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Leave no batch norm in the graph.

    Refuses: the fold into a layer whose channel axis differs from that of the batch norm; the fold into a following
    layer that pads, because the padding is zero after the batch norm and would have to be -h / g before it; the fold
    into a transposed convolution, whose border positions sum fewer taps; and the fold of a batch norm with other users.
    Such a batch norm becomes an affine function per channel.
    """

    name: ClassVar[str] = "fold-batch-norm"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    establishes: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})

    @property
    def contract(self) -> Contract:
        """Float32 products are computed in another order."""
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
            if node.flag("training"):
                raise PassError("the batch norm uses batch statistics", where=node.where, fix="Call eval().")
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
        gain = weight / torch.sqrt(variance + node.number("eps"))
        return cls(gain, bias - mean * gain, bias.to(torch.float32), weight.abs().to(torch.float32))


def _fold_backward(node: Node, rewriter: Rewriter) -> bool:
    layer = Layer.of(node.inputs[0].producer)
    if layer is None:
        return False
    if layer.output_axis != CHANNEL_AXIS:
        rewriter.refuse(node, CHANNELS_AFTER(layer=layer.node.name, axis=layer.output_axis))
        return False
    if only_user(layer.node) is not node:
        rewriter.refuse(node, ALSO_FEEDS(layer=layer.node.name, others=_others(layer.node, node)))
        return False
    affine = _Affine.of(node)
    weight, bias = _parameters(layer)
    gain = affine.gain.reshape(layer.groups, -1, 1, 1)
    _set_parameters(layer, weight * gain, bias * affine.gain + affine.shift, rewriter)
    _keep_statistics(layer.node, node, affine, rewriter)
    layer.node.origins = tuple(dict.fromkeys(layer.node.origins + node.origins))
    rewriter.note(layer.node, FOLLOWED(norm=node.name))
    rewriter.replace(node, layer.node.output)
    return True


def _fold_forward(node: Node, rewriter: Rewriter) -> bool:
    layer = Layer.of(only_user(node))
    if layer is None or layer.node.inputs[0] is not node.output:
        return False
    name = layer.node.name
    if layer.input_axis != CHANNEL_AXIS:
        rewriter.refuse(node, CHANNELS_BEFORE(layer=name, axis=layer.input_axis))
        return False
    if layer.transposed:
        rewriter.refuse(node, FEWER_TAPS(layer=name))
        return False
    if layer.pads:
        rewriter.refuse(node, PADS(layer=name))
        return False
    affine = _Affine.of(node)
    weight, bias = _parameters(layer)
    gain, shift = (v.reshape(layer.groups, 1, -1, 1) for v in (affine.gain, affine.shift))
    _set_parameters(layer, weight * gain, bias + (weight * shift).sum((2, 3)).reshape(-1), rewriter)
    layer.node.origins = tuple(dict.fromkeys(layer.node.origins + node.origins))
    rewriter.note(layer.node, PRECEDED(norm=node.name))
    rewriter.replace(node, node.inputs[0])
    return True


def _to_affine(node: Node, rewriter: Rewriter) -> None:
    affine = _Affine.of(node)
    channels = affine.gain.numel()
    x, shape = node.inputs[0], node.output.type.shape
    # One image per sample for every rank, so that every target with convolutions supports this.
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
    rewriter.note(layer, AFFINE())
    result = layer.output
    if image != shape:
        result = rewriter.insert("reshape", [result], {"shape": shape}, before=node, like=node).output
    rewriter.replace(node, result)


def _parameters(layer: Layer) -> tuple[Tensor, Tensor]:
    """Weight as rows, [groups, outputs, inputs, taps], and bias, [outputs]; float64."""
    bias = layer.bias_tensor()
    bias = torch.zeros(layer.outputs) if bias is None else bias
    return layer.rows().to(torch.float64), bias.to(torch.float64)


def _set_parameters(layer: Layer, rows: Tensor, bias: Tensor, rewriter: Rewriter) -> None:
    node, weight, bias = layer.node, layer.from_rows(rows).to(torch.float32), bias.to(torch.float32)
    rewriter.replace_input(node, 1, rewriter.set_tensor(node.inputs[1], weight, before=node, like=node))
    if layer.bias is not None:
        rewriter.replace_input(node, 2, rewriter.set_tensor(node.inputs[2], bias, before=node, like=node))
    else:
        rewriter.add_input(node, rewriter.leaf("parameter", bias, ref=f"{node.name}.bias", before=node, like=node))


def _keep_statistics(layer: Node, node: Node, affine: _Affine, rewriter: Rewriter) -> None:
    rewriter.set_attributes(layer, statistics=node.graph.module.unique_tensor_name(f"{node.name}.statistics"))
    set_statistics(layer, Gaussian(affine.mean, affine.std))


def _others(layer: Node, node: Node) -> tuple[str, ...]:
    names = tuple(user.name for user in layer.output.users if user is not node)
    return names or ("an output of the model",)
