"""Enlarge the scale of a weight until the bias of its layer fits.

A bias is stored in steps of s_x * s_w. Where all weights of a channel are tiny against it, those steps are too: the
bias leaves its register, or the accumulator on top of the largest sum of products. Then

    s_w  >=  |b| / (s_x * limit)        limit: what the bias, or the accumulator, has left beside the products
    s_w  >=  2^(e - 1) * s_y / s_x      e: smallest exponent of a multiplier, where the bias is 2^8 times all products

per channel, or for all channels where they share one scale. The products of such a channel are next to nothing beside
its bias, and so is what coarser weights change.

Related: Jacob et al. 2018, arXiv:1712.05877, section 2.4 (32-bit biases in steps of s_x * s_w).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.types import Stage
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import code_limits, grid, leaf_tensor, quantizer_of, weight_codes
from qcompiler.passes.base import Pass, PassContext, only_user
from qcompiler.passes.common.channel_limits import CLAMPS
from qcompiler.quant.affine import next_power_of_two
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.requant import RequantSpec
from qcompiler.quant.spec import ScaleKind
from qcompiler.validation.contracts import THRESHOLDS, Contract

MARGIN = 1.0 + 2.0**-20
"""Largest relative float32 rounding error of a scale and of a product of two scales."""

PRECEDENCE = 8
"""Bits by which a bias must be above the largest sum of products before weights give way to its multiplier."""


@dataclass(frozen=True)
class FitBiases(Pass):
    """Weight scales with which every bias fits, for layers whose input and weight are calibrated.

    Refuses: a layer whose products alone fill the accumulator; lowering says by how much.
    """

    name: ClassVar[str] = "fit-biases"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})
    establishes: ClassVar[frozenset[str]] = frozenset({"biases-fit"})

    @property
    def contract(self) -> Contract:
        """Weights lose information where they hardly had any."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        target = context.require_target(self.name)
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if not node.definition.has(Trait.MAC) or len(node.inputs) < 3:
                continue
            source, weight = quantizer_of(node.inputs[0]), node.inputs[1].producer
            if source is None or weight is None or weight.op != "fake_quantize" or not _calibrated(source, weight):
                continue
            params, spec = grid(source)
            arithmetic = target.arithmetic.at(node.op, spec.bits)
            room = _room(node, source, weight, arithmetic)
            if bool((room < 1).any()):
                rewriter.refuse(node, "its products leave no room for a bias")
                continue
            bias = leaf_tensor(leaf_of(node.inputs[2])).to(torch.float64).abs()
            needed = bias / (params.scale.to(torch.float64) * room) * MARGIN
            scales, weight_spec = grid(weight)
            steps = bias / (params.scale.to(torch.float64) * scales.scale.to(torch.float64))
            beside = _products(node, source, weight)[0] * 2.0**PRECEDENCE < steps
            least = _held(node, params.scale, scales.scale, bias, arithmetic.requant)
            needed = torch.maximum(needed, torch.where(beside, least, torch.zeros_like(least)))
            if scales.scale.dim() == 0:
                needed = needed.max()
            if weight_spec.scale_kind is ScaleKind.POW2:
                needed = next_power_of_two(needed.clamp(min=float(scales.scale.min())))
            wider = torch.maximum(scales.scale, needed.to(torch.float32))
            factor = float((wider / scales.scale).max())
            if factor > 1.0:
                rewriter.write_tensor(weight.inputs[1], wider)
                count = int((wider > scales.scale).sum())
                which = f"{count} of its weight scales" if scales.scale.dim() else "its weight scale"
                rewriter.note(node, f"enlarged {which} by up to {factor:.4g}, so that its bias fits")


def _held(node: Node, source: Tensor, weight: Tensor, bias: Tensor, spec: RequantSpec) -> Tensor:
    """The least weight scales, float64 [C], with which no multiplier is lost beside a large bias; 0 where none is."""
    following = only_user(node)
    while following is not None and following.op in CLAMPS:
        following = only_user(following)
    if following is None or following.op != "fake_quantize" or not _calibrated(following):
        return torch.zeros_like(bias)
    out = grid(following)[0].scale.to(torch.float64)
    real = source.to(torch.float64) * weight.to(torch.float64) / out
    small = torch.frexp(real).exponent < spec.min_exponent
    # Such a multiplier may become 0, which shows where the bias alone is worth half a code.
    least = 2.0 ** (spec.min_exponent - 1) * out / source.to(torch.float64) * MARGIN
    return torch.where(small & (bias / out >= 0.5), least, torch.zeros_like(bias))


def _calibrated(*quantizers: Node) -> bool:
    return all(is_calibrated(leaf_tensor(quantizer.inputs[1])) for quantizer in quantizers)


def _room(node: Node, source: Node, weight: Node, arithmetic: Arithmetic) -> Tensor:
    """Largest magnitude of a bias per output channel, float64 [C].

    Products of the scale as it is: with a larger one no code of the weight grows.
    """
    products, total = _products(node, source, weight)
    zero_point = int(grid(source)[0].zero_point)
    stored = torch.full_like(total, 2.0 ** (arithmetic.bias_bits - 1) - 1)
    if arithmetic.zero_point_folding == "compiler":
        stored = stored - total * abs(zero_point)
    summed = 2.0 ** (arithmetic.accumulator_bits - 1) - 1 - products
    return torch.minimum(stored, summed)


def _products(node: Node, source: Node, weight: Node) -> tuple[Tensor, Tensor]:
    """Per output channel, float64 [C]: largest magnitude of the sum of products, and the sum of the weights' codes."""
    params = grid(source)[0]
    low, high = code_limits(source)
    zero_point = int(params.zero_point)
    reach = max(abs(low - zero_point), abs(high - zero_point))
    codes = weight_codes(weight, leaf_tensor(leaf_of(node.inputs[1])))
    total = Layer(node).rows(codes).abs().sum((2, 3), dtype=torch.int64).reshape(-1).to(torch.float64)
    return total * reach, total
