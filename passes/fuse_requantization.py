"""Let the quantizer do the work of the activation in front of it.

    conv ─► relu ─► fq(s, z)        becomes        conv ─► fq(s, z) {qmin = z}

A clamp before rounding is a tighter clamp of the codes after it, because rounding is monotone: the requantization that
the hardware does anyway takes the activation in at no cost.

    quantize(clamp(x, a, b)) = clamp(quantize(x), quantize(a), quantize(b))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from qcompiler.errors import CalibrationError
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.interpret import evaluate_node
from qcompiler.ir.registry import Trait
from qcompiler.ir.types import Stage
from qcompiler.passes.base import Pass, PassContext, only_user
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.spec import QuantSpec
from qcompiler.validation.exact import activation_bounds, clamp_codes


@dataclass(frozen=True)
class FuseRequantization(Pass):
    """Turn activations in front of quantizers into code limits.

    Refuses: an activation whose result is read by others than one quantizer.
    """

    name: ClassVar[str] = "fuse-requantization"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})
    establishes: ClassVar[frozenset[str]] = frozenset({"requantization-fused"})

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if not node.definition.has(Trait.ACTIVATION):
                continue
            quantizer = only_user(node)
            if quantizer is None or quantizer.op != "fake_quantize":
                rewriter.refuse(node, "its result is not read by one quantizer alone")
                continue
            low, high = activation_bounds(node)
            params, spec = grid(quantizer)
            qmin, qmax = clamp_codes(low, high, params, spec, *code_limits(quantizer))
            rewriter.set_attributes(quantizer, qmin=qmin, qmax=qmax)
            quantizer.origins = tuple(dict.fromkeys(node.origins + quantizer.origins))
            rewriter.note(quantizer, f"does the work of {node.name}: codes {qmin} to {qmax}")
            rewriter.replace(node, node.inputs[0])


def grid(quantizer: Node) -> tuple[AffineParams, QuantSpec]:
    """Scale, zero point and specification of a calibrated quantizer.

    Raises:
        CalibrationError: It has no range yet.
    """
    spec = cast("QuantSpec", quantizer.attributes["spec"])
    scale, zero_point = (
        evaluate_node(value.producer, [])[0].detach() for value in quantizer.inputs[1:] if value.producer is not None
    )
    if not bool(torch.isfinite(scale).all()):
        raise CalibrationError("the quantizer has no range yet", where=quantizer.where, fix="Calibrate first.")
    return AffineParams(scale, zero_point, spec.axis if scale.dim() else None), spec


def code_limits(quantizer: Node) -> tuple[int, int]:
    """Lowest and highest code that the quantizer gives."""
    spec = cast("QuantSpec", quantizer.attributes["spec"])
    low, high = quantizer.attributes["qmin"], quantizer.attributes["qmax"]
    return (
        spec.qmin if low is None else cast("int", low),
        spec.qmax if high is None else cast("int", high),
    )
