"""The training quantizer of a bias, on the grid of the sums of its layer."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from qcompiler.quant.affine import SMALLEST_SCALE
from qcompiler.quant.rounding import Rounding, round_float_

__all__ = ["fake_quantize_bias"]


def fake_quantize_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor, rounding: str) -> Tensor:
    """A bias in steps of input scale x weight scale. Its gradient passes straight through; the scales get none.

    Float32 holds up to 2^24 steps exactly. Larger biases are off by a few steps, a millionth of a layer's output.

    Args:
        bias: float32 [C].
        input_scale: float32, one element.
        weight_scale: float32, one element or [C].
        rounding: A `Rounding`.
    """
    return cast("Tensor", _FakeQuantizeBias.apply(bias, input_scale, weight_scale, rounding))


class _FakeQuantizeBias(torch.autograd.Function):
    """Nothing is saved."""

    @staticmethod
    def forward(  # torch's own name
        ctx: object,  # noqa: ARG004  # torch's own signature
        bias: Tensor,
        input_scale: Tensor,
        weight_scale: Tensor,
        rounding: str,
    ) -> Tensor:
        scale = (input_scale * weight_scale).clamp_(min=SMALLEST_SCALE**2)
        return round_float_(bias / scale, Rounding(rounding)).mul_(scale)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ARG004  # as above
        return gradient, None, None, None
