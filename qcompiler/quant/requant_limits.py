"""Proof that a multiplier is representable and that nothing overflows between an accumulator and its code.

Accumulators are bounded first, from the weights (`quant.accumulator`). Two things remain to be shown for each channel:
the hardware shifts by the exponent, or losing the multiplier changes no code; and every product fits into its register.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.quant.accumulator import fits
from qcompiler.quant.requant import Requantization, RequantMode, RequantSpec

__all__ = ["requantization_misfit"]

_NARROW_INPUT_BITS = {RequantMode.TOSA16: 48, RequantMode.S64_16: 48, RequantMode.NVDLA: 32}
"""Widest accumulator of the modes with 16-bit significands."""


def requantization_misfit(
    item: Requantization, spec: RequantSpec | RequantMode, minimum: Tensor, maximum: Tensor
) -> str:
    """Why accumulators from minimum to maximum cannot be requantized; empty if they can.

    Args:
        item: From `prepare_requantization`, which keeps the real multiplier.
        spec: Specification with which `item` was made.
        minimum: int64, one element or [C].
        maximum: In the shape of `minimum`.

    Returns:
        A sentence without a full stop.
    """
    spec = RequantSpec.of(spec)
    largest = torch.maximum(maximum, -minimum)
    if item.real is not None:
        found = _out_of_range(item, item.real, spec, largest)
        if found:
            return found
    if item.exponent is None:
        return ""
    powers = item.exponent.to(torch.int64)
    left = powers.clamp(min=0)
    if spec.mode in (RequantMode.DOUBLE, RequantMode.DOUBLE_HALF_UP):
        return "" if fits(minimum << left, maximum << left, 32) else _shifted(left, 32)
    if spec.mode.is_shift:
        return "" if int(largest.max()) << int(left.max()) < 2**62 else _shifted(left, 63)
    bits = _NARROW_INPUT_BITS.get(spec.mode)
    if bits is not None and not fits(minimum, maximum, bits):
        return (
            f"the accumulator can reach {int(largest.max())}, but requantization mode '{spec.mode}' accepts {bits} bits"
        )
    width = spec.mode.form.significand_bits
    if (int(largest.max()) << width) + 2 ** (width - 1 - int(powers.min())) > 2**63:
        return "the product of accumulator and multiplier exceeds 64 bits"
    return ""


def _shifted(left: Tensor, bits: int) -> str:
    return f"the accumulator, shifted left by {int(left.max())}, exceeds {bits} bits"


def _out_of_range(item: Requantization, real: Tensor, spec: RequantSpec, largest: Tensor) -> str:
    """Why a multiplier is out of range: too large, or so small that losing it changes a code."""
    wide = real.detach().to(torch.float64)
    exponents = torch.frexp(wide).exponent.to(torch.int64) - int(spec.mode.is_shift)
    if bool((exponents > spec.max_exponent).any()):
        worst = int(exponents.argmax())
        return (
            f"the multiplier {float(wide.reshape(-1)[worst]):.6g} of channel {worst} needs a left shift of "
            f"{int(exponents.max())} bits, but the hardware shifts by at most {spec.max_exponent}"
        )
    small = exponents < spec.min_exponent
    # The lost part of the product must stay below half a code, so that it changes no more than the rounding does.
    lost = (largest.to(torch.float64) * (wide - _held(item, wide))).abs() >= 0.5
    harmful = (small & lost).reshape(-1)
    if bool(harmful.any()):
        worst = int(torch.nonzero(harmful)[0])
        return (
            f"the multiplier {float(wide.reshape(-1)[min(worst, wide.numel() - 1)]):.6g} of channel {worst} needs a "
            f"right shift of {-int(exponents.min())} bits, but the hardware shifts by at most {-spec.min_exponent}"
        )
    return ""


def _held(item: Requantization, real: Tensor) -> Tensor:
    """The real multiplier that the parts of `item` represent."""
    if item.exponent is None:
        return real
    powers = item.exponent.to(torch.float64)
    if item.multiplier is None:
        return torch.exp2(powers)
    return item.multiplier.to(torch.float64) * torch.exp2(powers - item.mode.form.significand_bits)
