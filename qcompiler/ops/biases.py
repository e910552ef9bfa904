"""Weight scales with which the biases of layers fit their integer type.

A bias is stored in steps of s_x * s_w. If all weights of a channel are much smaller than the bias, the steps are so
small that the bias exceeds its register, or the accumulator together with the largest sum of products. Then

    s_w  >=  |b| / (s_x * limit)        limit: largest bias, or the part of the accumulator that the products leave
    s_w  >=  2^(e - 1) * s_y / s_x      e: smallest exponent of a multiplier, where the bias is 2^8 times all products

per channel, or for all channels that share one scale. The products of such a channel are negligible compared with its
bias, and so is the error of coarser weights.

Related: Jacob et al. 2018, arXiv:1712.05877, section 2.4 (32-bit biases in steps of s_x * s_w).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.interpret import Tensors
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import (
    code_limits,
    grid,
    is_quantizer,
    leaf_tensor,
    quantizer_after,
    quantizer_of,
    weight_codes,
)
from qcompiler.quant.affine import next_power_of_two
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.requant import RequantSpec
from qcompiler.quant.spec import ScaleKind

__all__ = ["BiasFit", "fit_bias", "fitted"]

MARGIN = 1.0 + 2.0**-20
"""Largest relative float32 rounding error of a scale and of a product of two scales."""

PRECEDENCE = 8
"""Bits by which a bias must be above the largest sum of products before weights give way to its multiplier."""


@dataclass(frozen=True)
class BiasFit:
    """The scale of a weight, and the least larger scale with which the bias of its layer fits.

    Args:
        quantizer: Quantizer of the weight.
        scale: Scale of the weight, float32 [] or [C].
        wider: Scale with which the bias fits, in the same shape; None where the products alone fill the accumulator.
    """

    quantizer: Node
    scale: Tensor
    wider: Tensor | None

    @property
    def factor(self) -> float:
        """Largest growth of a scale; 1 where the bias fits as it is, or never."""
        return 1.0 if self.wider is None else float((self.wider / self.scale).max())


def fitted(graph: Graph, tensors: Tensors, arithmetic: Arithmetic) -> dict[str, Tensor]:
    """`tensors` with weight scales with which every bias fits.

    Args:
        graph: Graph at stage QUANTIZED.
        tensors: Tensors that its leaves read; not changed.
        arithmetic: Arithmetic of the target.
    """
    found = dict(tensors)
    for node in graph.nodes:
        fit = fit_bias(node, found, arithmetic)
        if fit is not None and fit.wider is not None and fit.factor > 1.0:
            leaf = fit.quantizer.inputs[1].producer
            assert leaf is not None
            found[leaf.text("ref")] = fit.wider
    return found


def fit_bias(node: Node, tensors: Tensors, arithmetic: Arithmetic) -> BiasFit | None:
    """The weight scale of a layer with which its bias fits; None without a bias, or where input or weight has no range.

    Args:
        node: A node of a QUANTIZED graph.
        tensors: Tensors that leaves read.
        arithmetic: Arithmetic of the target.
    """
    if not node.definition.has(Trait.WEIGHTED) or len(node.inputs) < 3:
        return None
    source, weight = quantizer_of(node.inputs[0]), node.inputs[1].producer
    if source is None or not is_quantizer(weight):
        return None
    if not (_is_calibrated(source, tensors) and _is_calibrated(weight, tensors)):
        return None
    params, spec = grid(source, tensors)
    scales, weight_spec = grid(weight, tensors)
    arithmetic = arithmetic.at(node.op, spec.bits)
    products, total = _products(node, source, weight, tensors)
    room = _room(products, total, int(params.zero_point), arithmetic)
    if bool((room < 1).any()):
        return BiasFit(weight, scales.scale, None)
    bias = leaf_tensor(leaf_of(node.inputs[2]), tensors).to(torch.float64).abs()
    needed = bias / (params.scale.to(torch.float64) * room) * MARGIN
    steps = bias / (params.scale.to(torch.float64) * scales.scale.to(torch.float64))
    negligible = products * 2.0**PRECEDENCE < steps
    least = _held(node, params.scale, scales.scale, bias, arithmetic.requant, tensors)
    needed = torch.maximum(needed, torch.where(negligible, least, torch.zeros_like(least)))
    if scales.scale.dim() == 0:
        needed = needed.max()
    if weight_spec.scale_kind is ScaleKind.POW2:
        needed = next_power_of_two(needed.clamp(min=float(scales.scale.min())))
    return BiasFit(weight, scales.scale, torch.maximum(scales.scale, needed.to(torch.float32)))


def _held(node: Node, source: Tensor, weight: Tensor, bias: Tensor, spec: RequantSpec, tensors: Tensors) -> Tensor:
    """The least weight scales, float64 [C], with which no multiplier is lost because of a large bias; 0 if none is."""
    following = quantizer_after(node)
    if following is None or not _is_calibrated(following, tensors):
        return torch.zeros_like(bias)
    out = grid(following, tensors)[0].scale.to(torch.float64)
    real = source.to(torch.float64) * weight.to(torch.float64) / out
    small = torch.frexp(real).exponent < spec.min_exponent
    # Such a multiplier may become 0, which shows where the bias alone is worth half a code.
    least = 2.0 ** (spec.min_exponent - 1) * out / source.to(torch.float64) * MARGIN
    return torch.where(small & (bias / out >= 0.5), least, torch.zeros_like(bias))


def _is_calibrated(quantizer: Node, tensors: Tensors) -> bool:
    return is_calibrated(leaf_tensor(quantizer.inputs[1], tensors))


def _room(products: Tensor, total: Tensor, zero_point: int, arithmetic: Arithmetic) -> Tensor:
    """Largest magnitude of a bias per output channel, float64 [C].

    Products of the scale as it is: with a larger one no code of the weight grows.
    """
    stored = torch.full_like(total, 2.0 ** (arithmetic.bias_bits - 1) - 1)
    if arithmetic.zero_point_folding == "compiler":
        stored = stored - total * abs(zero_point)
    summed = 2.0 ** (arithmetic.accumulator_bits - 1) - 1 - products
    return torch.minimum(stored, summed)


def _products(node: Node, source: Node, weight: Node, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Per output channel, float64 [C]: largest magnitude of the sum of products, and the sum of the weights' codes."""
    params = grid(source, tensors)[0]
    low, high = code_limits(source)
    zero_point = int(params.zero_point)
    reach = max(abs(low - zero_point), abs(high - zero_point))
    codes = weight_codes(weight, leaf_tensor(leaf_of(node.inputs[1]), tensors), tensors)
    total = Layer(node).rows(codes).abs().sum((2, 3), dtype=torch.int64).reshape(-1).to(torch.float64)
    return total * reach, total
