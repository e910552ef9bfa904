"""Codes of a layer's accumulators after a single rounding, as ONNX Runtime rounds.

Targets round differently: ties upwards, twice, or with a multiplier of few bits. Which elements then differ from ONNX
Runtime depends on the accumulators. In a layer with few products, the same few outputs repeat and any share may differ,
so each element is checked separately instead of bounding the share. An element may have the code of a single rounding
(to even, with the real multiplier) instead of the reference code where

    M, e = the parts of m = s_x s_w / s_y in the mode       the multiplier of the program is correct
    |reference - zero point - acc M 2^(e - P)| <= reach     the rounding error is possible for this mode and shift

with the reach of `quant.requant.rounding_reach`. A wrong multiplier, shift, zero point, bias or rounding violates a
condition or gives codes other than ONNX Runtime's, so that its elements count as differing.

ONNX Runtime multiplies in float32, by a multiplier of float32, and where it sums real numbers, the sum is rounded, too.
An element may have the code on the other side of a tie if these roundings can move its exact result across it. With
weights of few bits, many sums are ties; a batch norm after a concat has one weight, and few sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from qcompiler.backends.integer import Executor, Sums
from qcompiler.errors import InputError
from qcompiler.quant.requant import (
    RequantMode,
    factored_scale,
    prepare_requantization,
    real_multiplier,
    rounding_reach,
)
from qcompiler.targets import Target

Array = npt.NDArray[np.generic]
Float = npt.NDArray[np.float64]

_SLACK = 2.0**-24
"""Error bound of products in float64, in steps: codes have 16 bits, and float64 has 53."""

_UNIT = 2.0**-24
"""Largest relative error of one operation in float32."""
_PRODUCT = 4
"""Operations in float32 after a sum: product and quotient of scales, conversion of the sum, their product."""
_DEVIATIONS = 4.0
"""Factor d in the error bound d sqrt(n) u sum |terms| of a sum of n terms, exceeded by 1 in 10^4 sums: roundings behave
as if independent (Higham and Mary 2019, A new approach to probabilistic rounding error analysis)."""
_FEW = 2.0**-5
"""Largest distance from a tie, in steps, that float32 rounding may explain. If the float32 error is larger, sums are
long, results do not repeat, and the target's share bounds the differing elements."""


class RoundedOnce:
    """Alternative codes for the layers of one program.

    Args:
        executor: Executor of the program.
        target: Target, which defines the computation of multipliers.
    """

    def __init__(self, executor: Executor, target: Target) -> None:
        self.executor = executor
        self.target = target
        # Limits per channel are applied to the result of a layer, and belong to it.
        self.clamped = {item.output: item.inputs[0] for item in executor.program.instructions if item.op == "int_clamp"}

    def codes(
        self, name: str, given: Mapping[str, Array], reference: Array, *, in_float32: bool = False
    ) -> Array | None:
        """The codes that the elements of a result may have instead of the reference codes.

        Args:
            name: Name of a layer's result.
            given: Operands of the layer, by name.
            reference: Reference codes of the result.
            in_float32: Whether ONNX Runtime sums real numbers in float32.

        Returns:
            Alternative codes, equal to the reference where there is no alternative; None if there are no alternatives.
        """
        sums = self.executor.sums(self.clamped.get(name, name), given)
        if sums is None or (sums.exponent is None and not in_float32):
            return None
        held, real = self._multipliers(sums)
        if held is None:
            return None
        products = sums.sums * held
        if sums.exponent is None:  # accumulator, multiplier and product are rounded to float32
            reach = 0.5 + _PRODUCT * _UNIT * np.abs(products) + _SLACK
        else:
            reach = rounding_reach(torch.from_numpy(sums.exponent), RequantMode(sums.call["mode"])).numpy() + _SLACK
        low, high = (
            self._limited(name, sums, edge) for edge in (np.ceil(products - reach), np.floor(products + reach))
        )
        exact = sums.sums * real
        once = self._limited(name, sums, np.rint(exact))
        codes = reference.astype(np.int64)
        below = np.floor(exact)
        error = _PRODUCT * _UNIT * np.abs(exact) + _SLACK
        if in_float32:
            error += _DEVIATIONS * math.sqrt(sums.terms) * _UNIT * sums.magnitude * real
        tied = sums.logical(np.abs(exact - below - 0.5) <= np.minimum(error, _FEW))
        lower, upper = (self._limited(name, sums, steps) for steps in (below, below + 1))
        once = np.where(tied, np.where(codes == lower, upper, lower), once)
        return np.where((low <= codes) & (codes <= high), once, codes)

    def _limited(self, name: str, sums: Sums, steps: Float) -> npt.NDArray[np.int64]:
        """Convert steps of the result's grid, channels last, to clamped codes in logical order."""
        codes = np.clip(steps + sums.call.output.zero_point[0], *map(np.asarray, sums.call.limits)).astype(np.int64)
        found: npt.NDArray[np.int64] = sums.logical(codes)
        return self.executor.clamped(name, found) if name in self.clamped else found

    def _multipliers(self, sums: Sums) -> tuple[Float | None, Float]:
        """The program's multipliers, or None if they are wrong, and the real multipliers."""
        x, weight = sums.call.inputs[:2]
        spec = self.target.arithmetic.at(sums.call.instruction.op.removeprefix("int_"), int(x.dtype[1:])).requant
        scales = (torch.tensor(tensor.scale, dtype=torch.float32) for tensor in (x, weight, sums.call.output))
        scale_x, scale_w, scale_y = scales
        scale_x = factored_scale(scale_x, float(sums.call.get("factor") or 1.0))
        real = scale_x.double() * scale_w.double() / scale_y.double()
        try:
            right = prepare_requantization(real_multiplier(scale_x, scale_w, scale_y, spec), spec)
        except InputError:
            return None, real.numpy()
        parts = [part for part in (sums.multiplier, sums.exponent) if part is not None]
        same = spec.mode == sums.call["mode"] and len(parts) == len(right.parts)
        if not (
            same and all(np.array_equal(a.reshape(-1), b.numpy()) for a, b in zip(parts, right.parts, strict=True))
        ):
            return None, real.numpy()
        if sums.exponent is None:
            return np.asarray(sums.multiplier, np.float64), real.numpy()
        exponent = np.asarray(sums.exponent, np.float64)
        if sums.multiplier is None:
            return np.exp2(exponent), real.numpy()
        return sums.multiplier * np.exp2(exponent - spec.mode.form.significand_bits), real.numpy()
