"""Quantization of gradients: the rounding of a backward pass.

k = clamp(R(g / scale) + z, qmin, qmax) - z,      R stochastic or to the nearest code
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.quant.rounding import Rounding, round_float_
from qcompiler.quant.spec import QuantSpec
from qcompiler.quant.stochastic import Key, round_stochastic

__all__ = ["gradient_steps"]


def gradient_steps(g: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec, key: Key | None) -> Tensor:
    """Codes of a gradient minus the zero point.

    Args:
        g: Gradient of any shape; float16 and bfloat16 are quantized in float32.
        scale: float32, one element; NaN gives NaN.
        zero_point: Integral, one element.
        spec: Grid with one scale.
        key: Key of the noise of stochastic rounding; None: to the nearest code, ties to even.

    Returns:
        Integral float32 in new memory, in the shape of `g`.
    """
    v = g.to(torch.float32) / scale
    codes = round_float_(v, Rounding.NEAREST_EVEN) if key is None else round_stochastic(v, key)
    if spec.symmetric:
        return codes.clamp_(spec.qmin, spec.qmax)
    if g.device.type == "cpu" and not torch.compiler.is_compiling():
        # One pass instead of three, where the zero point can be read.
        number = float(zero_point)
        return codes.clamp_(spec.qmin - number, spec.qmax - number)
    z = zero_point.to(torch.float32)
    return codes.add_(z).clamp_(spec.qmin, spec.qmax).sub_(z)
