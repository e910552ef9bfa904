"""From what a module has learned to the graph that ships.

The graph has been there all the time; only its tensors are new. Weights become the real numbers of their codes, so that
nothing downstream rounds them a second time in another way; batch norms are folded into weight, bias and scale; what
learned as a clip or as the ends of a range becomes scale and zero point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError
from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.quantizers import is_leaf
from qcompiler.quant.affine import SMALLEST_SCALE, along_axis
from qcompiler.quant.rounding import Rounding, round_float
from qcompiler.training.batch_norm import BatchNorm
from qcompiler.training.program import Normalized
from qcompiler.training.quantizer import Quantizer

__all__ = ["QuantizedActivation", "QuantizedWeight", "check_scales", "deployable", "deployed_tensors"]

_LARGEST_BIAS = 2.0**30
"""Steps that a bias may have: half of what its 32 bits hold, so that no rounding on the way leaves them."""


@dataclass(frozen=True)
class QuantizedWeight:
    """One weight quantizer and the layer that reads it.

    Args:
        layer: Name of the layer.
        quantizer: Path of the quantizer.
        source: Path of the latent weight.
        weight: Name of the tensor in the graph.
        scale: Name of its scale.
        zero_point: Name of its zero point.
        factors: Name of the factors of its blocks; None where it has none.
        axis: Of the output channels, None where no axis is theirs alone.
        input_scale: Name of the scale of the layer's input; None where it is not quantized.
        bias: Name of the bias; None for none.
        own_bias: Path of the bias that the layer has beside a batch norm.
        normalized: Its batch norm, where that learns.
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
    """One grid of activations.

    Args:
        quantizer: Path of the quantizer.
        scale: Name of its scale in the graph.
        zero_point: Name of its zero point.
    """

    quantizer: str
    scale: str
    zero_point: str


def deployable(module: Module) -> Module:
    """A copy without dropouts, in which each weight quantizer reads a tensor of its own."""
    copy = module.clone()
    for graph in copy.graphs.values():
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            if node.op == "dropout":
                rewriter.replace(node, node.inputs[0])
            elif node.op == "fake_quantize" and is_leaf(node.inputs[0]):
                _own_leaf(node, graph, rewriter)
    return copy


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
    """The tensors of the graph that ships, from the state of the module that learned.

    Args:
        root: The module.
        fixed: Tensors that it does not hold.
        paths: Where it holds the others, by name in the graph.
        weights: Its weight quantizers.
        activations: Its other quantizers.
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
    """Refuse grids that training has destroyed, while it is known what destroyed them.

    Args:
        tensors: Of the graph that ships.
        weights: Its weight quantizers; the smallest scale is theirs where a channel is 0.
        activations: Its other quantizers.

    Raises:
        CalibrationError: A scale is not finite, or one of an activation is no longer above `SMALLEST_SCALE`.
    """
    fix = "Train again with lower rates, of the scales above all: parameter_groups(lr, scale_lr=...)."
    scales = {weight.quantizer: tensors[weight.scale] for weight in weights}
    activation_scales = {item.quantizer: tensors[item.scale] for item in activations}
    for where, scale in (scales | activation_scales).items():
        if not bool(torch.isfinite(scale).all()):
            found = f"training has left the scale {scale[~scale.isfinite()][0].item()}"
            raise CalibrationError(found, where=where, expected="a finite number", fix=fix)
    for where, scale in activation_scales.items():
        if bool((scale <= SMALLEST_SCALE).any()):
            found = "training has left the scale 0: everything in front of it is 0, or its steps were too large"
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
        # The sign of g turns the codes round. A grid without a mirror image of its lowest code loses a step there.
        codes = codes * along_axis(gain.sign().to(codes), codes.dim(), axis)
        codes = codes.clamp(quantizer.spec.qmin, quantizer.spec.qmax)
        exact = exact * gain.abs()
    grown = torch.maximum(exact, _floor(item, exact, tensors))
    if bool((grown > scale).any()) or gain is not None:
        scale = grown.to(torch.float32)
        # Where next to nothing is left of a channel, its grid is that of its bias, and its codes shrink accordingly.
        ratio = along_axis(exact / grown, codes.dim(), axis)
        codes = round_float(codes.to(torch.float64) * ratio, Rounding.NEAREST_EVEN).to(torch.float32)
    real = codes * along_axis(scale, codes.dim(), axis)
    steps = quantizer.steps_per_code(codes)
    tensors[item.weight] = real if steps is None else real * steps
    tensors[item.scale], tensors[item.zero_point] = scale, zero_point
    if item.factors is not None and quantizer.factors is not None:
        tensors[item.factors] = quantizer.factors


def _floor(item: QuantizedWeight, scale: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The smallest scales with which the bias fits its integers, float64, in the shape of `scale`."""
    if item.input_scale is None or item.bias is None:
        return torch.full_like(scale, SMALLEST_SCALE)
    bias = tensors[item.bias].to(torch.float64).abs()
    floor = bias / (tensors[item.input_scale].to(torch.float64) * _LARGEST_BIAS)
    return (floor if scale.dim() else floor.max()).clamp(min=SMALLEST_SCALE)
