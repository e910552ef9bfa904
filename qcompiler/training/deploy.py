"""Write the learned state of a training module into the shipped graph.

Only the tensors of the graph change. Weights become the real values of their codes, so that later steps round them to
the same codes. Batch norms are folded into weight, bias and scale. Learned clips and range ends become scale and zero
point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError
from qcompiler.ir.graph import Graph, Module, Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.quantizers import leaf_tensor, quantizes_parameter
from qcompiler.quant.affine import SMALLEST_SCALE, along_axis
from qcompiler.quant.rounding import Rounding, round_float
from qcompiler.training.batch_norm import BatchNorm
from qcompiler.training.program import Normalized
from qcompiler.training.quantizer import Quantizer

__all__ = ["QuantizedActivation", "QuantizedWeight", "check_scales", "deployable", "deployed_tensors"]

_LARGEST_BIAS = 2.0**30
"""Largest bias in steps: half of the 32-bit range, so that rounding cannot overflow."""


@dataclass(frozen=True)
class QuantizedWeight:
    """One weight quantizer and the layer that reads it.

    Args:
        layer: Name of the layer.
        quantizer: Path of the quantizer.
        source: Path of the latent weight.
        weight: Name of the tensor in the graph.
        scale: Name of the weight's scale.
        zero_point: Name of the weight's zero point.
        factors: Name of the block factors; None without blocks.
        axis: Output channel axis of the weight; None if no axis holds the output channels alone.
        input_scale: Name of the scale of the layer's input; None if the input is not quantized.
        bias: Name of the bias; None if the layer has no bias.
        own_bias: Path of the layer's bias in addition to the batch norm.
        normalized: Learning batch norm of the layer; None if it is folded.
    """

    layer: str
    quantizer: str
    source: str
    weight: str
    scale: str
    zero_point: str
    factors: str | None
    axis: int | None
    input_scale: str | None = None
    bias: str | None = None
    own_bias: str | None = None
    normalized: Normalized | None = None


@dataclass(frozen=True)
class QuantizedActivation:
    """One activation quantizer.

    Args:
        quantizer: Path of the quantizer.
        scale: Name of its scale in the graph.
        zero_point: Name of its zero point in the graph.
    """

    quantizer: str
    scale: str
    zero_point: str


def deployable(module: Module, widened: Mapping[str, int] | None = None) -> Module:
    """A copy without dropouts and gradient quantizers in which no two weight quantizers share a tensor.

    Args:
        module: Module at stage QUANTIZED.
        widened: Weight quantizers with one scale in training and a scale per channel in the copy: their names, and the
            output channel axes of their weights.
    """
    copy = module.clone()
    for graph in copy.graphs.values():
        rewriter = Rewriter(graph)
        for node in list(graph.nodes):
            if node.op in ("dropout", "quantize_gradient"):
                ranges = node.inputs[1:]
                rewriter.replace(node, node.inputs[0])
                for value in ranges:
                    _forget(value, rewriter)
            elif quantizes_parameter(node):
                _own_leaf(node, graph, rewriter)
                if widened and node.name in widened:
                    _widen(node, widened[node.name], rewriter)
    return copy


def _widen(quantizer: Node, axis: int, rewriter: Rewriter) -> None:
    """Give each output channel of a weight a scale of its own, at first that of the whole weight."""
    channels = quantizer.output.type.sizes[axis]
    products = [user for user in quantizer.inputs[1].users if user.op == "scale_product"]
    for index in (1, 2):
        leaf = quantizer.inputs[index].producer
        assert leaf is not None
        ref = leaf.text("ref")
        tensor = leaf_tensor(quantizer.inputs[index]).expand(channels).clone()
        own = rewriter.leaf(leaf.op, tensor, ref=ref, before=_first(quantizer, products), like=leaf)
        for user in (quantizer, *products):
            for place, value in enumerate(user.inputs):
                if value is leaf.output:
                    rewriter.replace_input(user, place, own)
        _forget(leaf.output, rewriter)
    rewriter.set_attributes(quantizer, spec=dataclasses.replace(quantizer.spec, axis=axis))
    for product in products:
        rewriter.refresh_types(product)


def _forget(value: Value, rewriter: Rewriter) -> None:
    """Remove a tensor of the module that no node reads any more."""
    leaf = value.producer
    if leaf is not None and not value.users:
        rewriter.erase(leaf)
        del rewriter.graph.module.tensors[leaf.text("ref")]


def _first(quantizer: Node, products: Sequence[Node]) -> Node:
    """The first of these nodes in the order of the graph."""
    chosen = {quantizer, *products}
    return next(node for node in quantizer.graph.nodes if node in chosen)


def _own_leaf(quantizer: Node, graph: Graph, rewriter: Rewriter) -> None:
    value = quantizer.inputs[0]
    leaf = value.producer
    if leaf is None or (sum(value.users.values()) == 1 and not graph.is_output(value)):
        return
    ref = str(leaf.attributes["ref"])
    own = rewriter.leaf(leaf.op, graph.module.tensors[ref], ref=ref, before=quantizer, like=leaf)
    rewriter.replace_input(quantizer, 0, own)


@torch.no_grad()
def deployed_tensors(
    root: nn.Module,
    fixed: Mapping[str, Tensor],
    paths: Mapping[str, str],
    weights: Sequence[QuantizedWeight],
    activations: Sequence[QuantizedActivation],
) -> dict[str, Tensor]:
    """The tensors of the shipped graph, from the state of the training module.

    Args:
        root: Training module.
        fixed: Tensors outside the module.
        paths: Paths of all other tensors in the module, by name in the graph.
        weights: Weight quantizers.
        activations: Activation quantizers.
    """
    place = next((tensor.device for tensor in (*root.parameters(), *root.buffers())), torch.device("cpu"))
    tensors = {name: tensor.to(place) for name, tensor in fixed.items()}
    tensors |= {name: tensor_at(root, path).detach() for name, path in paths.items()}
    nothing = torch.empty(0)
    for item in activations:
        tensors[item.scale], tensors[item.zero_point] = _quantizer(root, item.quantizer).deployed(nothing)
    for weight in weights:
        _deploy_weight(root, weight, tensors)
    return tensors


def check_scales(
    tensors: Mapping[str, Tensor], weights: Sequence[QuantizedWeight], activations: Sequence[QuantizedActivation]
) -> None:
    """Refuse scales that training has destroyed.

    Args:
        tensors: Tensors of the shipped graph.
        weights: Weight quantizers; a channel of zeros legitimately has the smallest scale.
        activations: Activation quantizers.

    Raises:
        CalibrationError: A scale is not finite, or an activation scale is not above `SMALLEST_SCALE`.
    """
    fix = "Train again with lower learning rates, especially for scales: parameter_groups(lr, scale_lr=...)."
    scales = {weight.quantizer: tensors[weight.scale] for weight in weights}
    activation_scales = {item.quantizer: tensors[item.scale] for item in activations}
    for where, scale in (scales | activation_scales).items():
        if not bool(torch.isfinite(scale).all()):
            found = f"after training a scale is {scale[~scale.isfinite()][0].item()}"
            raise CalibrationError(found, where=where, expected="a finite number", fix=fix)
    for where, scale in activation_scales.items():
        if bool((scale <= SMALLEST_SCALE).any()):
            found = "after training a scale is 0: its input is always 0, or its steps were too large"
            raise CalibrationError(found, where=where, expected="a number above 0", fix=fix)


def tensor_at(root: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at `path`."""
    home, _, leaf = path.rpartition(".")
    tensor = getattr(root.get_submodule(home), leaf)
    assert isinstance(tensor, Tensor)
    return tensor


def _quantizer(root: nn.Module, path: str) -> Quantizer:
    found = root.get_submodule(path)
    assert isinstance(found, Quantizer)
    return found


def _deploy_weight(root: nn.Module, item: QuantizedWeight, tensors: dict[str, Tensor]) -> None:
    quantizer, latent = _quantizer(root, item.quantizer), tensor_at(root, item.source)
    gain = None
    if item.normalized is not None:
        norm = root.get_submodule(item.normalized.norm)
        assert isinstance(norm, BatchNorm)
        own = tensor_at(root, item.own_bias) if item.own_bias is not None else None
        folded, bias, gain = norm.folded(latent, own, item.normalized.axis)
        assert item.bias is not None
        tensors[item.bias] = bias.to(torch.float32)
        if item.normalized.style == "double":
            latent, gain = folded.to(torch.float32), None
    codes = quantizer.codes(latent)
    scale, zero_point = quantizer.deployed(latent)
    axis = quantizer.spec.axis
    exact = scale.to(torch.float64)
    if gain is not None:
        axis = item.normalized.axis if item.normalized is not None else axis
        # A negative g negates the codes. The lowest code of an asymmetric range has no negative and is clamped.
        codes = codes * along_axis(gain.sign().to(codes), codes.dim(), axis)
        codes = codes.clamp(quantizer.spec.qmin, quantizer.spec.qmax)
        exact = exact * gain.abs()
    grown = torch.maximum(exact, _floor(item, exact, tensors))
    if bool((grown > scale).any()) or gain is not None:
        scale = grown.to(torch.float32)
        # In a channel of almost zero weights the bias dictates the scale, and the codes shrink accordingly.
        ratio = along_axis(exact / grown, codes.dim(), axis)
        codes = round_float(codes.to(torch.float64) * ratio, Rounding.NEAREST_EVEN).to(torch.float32)
    real = codes * along_axis(scale, codes.dim(), axis)
    steps = quantizer.steps_per_code(codes)
    tensors[item.weight] = real if steps is None else real * steps
    tensors[item.scale], tensors[item.zero_point] = scale, zero_point.expand(scale.shape)
    if item.factors is not None and quantizer.factors is not None:
        tensors[item.factors] = quantizer.factors


def _floor(item: QuantizedWeight, scale: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The smallest scales with which the bias fits its integer type, float64, in the shape of `scale`."""
    if item.input_scale is None or item.bias is None:
        return torch.full_like(scale, SMALLEST_SCALE)
    bias = tensors[item.bias].to(torch.float64).abs()
    floor = bias / (tensors[item.input_scale].to(torch.float64) * _LARGEST_BIAS)
    return (floor if scale.dim() else floor.max()).clamp(min=SMALLEST_SCALE)
