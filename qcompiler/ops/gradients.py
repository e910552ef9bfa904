"""Quantizers of gradients: the identity forward, codes backward.

In `quantize_gradient(x, range)` the gradient of the loss with respect to x is rounded to the grid of `range`, a state
that a training module reads before and updates after each backward. Where the second, optional range is given, the
layer before x has a weight scale per output channel: its product with the gradient for the layer's input then reads the
gradient times these scales, quantized in the second range, because such a scale does not leave the sum over channels.
A plain evaluation, which has no such layer, quantizes with the first range.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import TensorType
from qcompiler.ops.common import QUANTIZED_ONLY, check_float
from qcompiler.quant.affine import unchecked_qparams
from qcompiler.quant.gradients import gradient_steps
from qcompiler.quant.spec import QuantSpec
from qcompiler.quant.stochastic import noise_key

ROUNDINGS = ("stochastic", "nearest")


def _infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    spec, rounding = attributes["spec"], attributes["rounding"]
    if not isinstance(spec, QuantSpec) or spec.axis is not None:
        raise GraphError(f"the specification is {spec}", expected="a QuantSpec with one scale")
    if rounding not in ROUNDINGS:
        raise GraphError(f"the rounding is {rounding!r}", expected="one of " + ", ".join(ROUNDINGS))
    for type in types[1:]:
        if type.shape != (2,):
            raise GraphError(f"a range of a gradient is {type}", expected="f32[2]: its low and its high end")
    return (types[0],)


class _Context(Protocol):
    node: Node

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _QuantizeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, ends: Tensor, node: Node) -> Tensor:
        ctx.save_for_backward(ends)
        ctx.node = node
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None]:
        (ends,), node = ctx.saved_tensors, ctx.node
        if not bool(torch.isfinite(ends).all()):
            return gradient, None, None
        low, high = ends.to(torch.float64).unbind()
        scale, zero_point = unchecked_qparams(low, high, node.spec)
        # No step is known here: the noise is that of step 0, different for each node.
        key = noise_key(zlib.crc32(node.name.encode())) if node.text("rounding") == "stochastic" else None
        return gradient_steps(gradient, scale, zero_point, node.spec, key).mul_(scale).to(gradient.dtype), None, None


def _evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    apply = cast("Any", _QuantizeGradient.apply)
    return (apply(operands[0], operands[1], node),)


register(
    OpDef(
        name="quantize_gradient",
        operands=("x", "range", "scaled_range?"),
        attributes={"spec": REQUIRED, "rounding": "stochastic"},
        infer=_infer,
        evaluate=_evaluate,
        stages=QUANTIZED_ONLY,
        traits=frozenset({Trait.KEEPS_SIGN}),
        summary="x; its gradient is rounded to a grid over `range`, and passes unchanged while the range is NaN.",
    )
)
