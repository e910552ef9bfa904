"""Enlarge the scale of a weight until the bias of its layer fits.

A bias is stored in steps of s_x * s_w. Where all weights of a channel are tiny against it, those steps are too: the
bias leaves its register, or the accumulator on top of the largest sum of products. Then

    s_w  >=  |b| / (s_x * limit)        limit: what the bias, or the accumulator, has left beside the products

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
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import code_limits, grid, leaf_tensor, quantizer_of
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.equalization import by_channels, leaf_of
from qcompiler.quant.affine import next_power_of_two, quantize
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.spec import ScaleKind
from qcompiler.validation.contracts import THRESHOLDS, Contract

MARGIN = 1.0 + 2.0**-20
"""What float32 may lose of a scale and of a product of two."""


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
            room = _room(node, source, weight, target.arithmetic.at(node.op, spec.bits))
            if bool((room < 1).any()):
                rewriter.refuse(node, "its products leave no room for a bias")
                continue
            bias = leaf_tensor(leaf_of(node.inputs[2])).to(torch.float64).abs()
            needed = bias / (params.scale.to(torch.float64) * room) * MARGIN
            scales, weight_spec = grid(weight)
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


def _calibrated(*quantizers: Node) -> bool:
    return all(is_calibrated(leaf_tensor(quantizer.inputs[1])) for quantizer in quantizers)


def _room(node: Node, source: Node, weight: Node, arithmetic: Arithmetic) -> Tensor:
    """Largest magnitude of a bias per output channel, float64 [C].

    Products of the scale as it is: with a larger one no code of the weight grows.
    """
    params, (scales, weight_spec) = grid(source)[0], grid(weight)
    low, high = code_limits(source)
    zero_point = int(params.zero_point)
    reach = max(abs(low - zero_point), abs(high - zero_point))
    codes = quantize(leaf_tensor(leaf_of(node.inputs[1])), scales.scale, scales.zero_point, weight_spec)
    total = by_channels(node, codes).abs().sum((2, 3), dtype=torch.int64).reshape(-1).to(torch.float64)
    stored = torch.full_like(total, 2.0 ** (arithmetic.bias_bits - 1) - 1)
    if arithmetic.zero_point_folding == "compiler":
        stored = stored - total * abs(zero_point)
    summed = 2.0 ** (arithmetic.accumulator_bits - 1) - 1 - total * reach
    return torch.minimum(stored, summed)
