"""What one rounding makes of the accumulators of a layer, which is what ONNX Runtime does to them.

Targets round otherwise: ties upwards, twice, or by a multiplier of few bits. Such a target and ONNX Runtime differ in
elements of which the accumulator alone decides. In a layer with few products, whose outputs are the same few numbers
over and over, they may be any share, so they are not bounded by a share: each is found by itself. An element may have
the code of one rounding, to even and by the real multiplier, in place of that of the reference where

    M, e = what the mode makes of m = s_x s_w / s_y         the multiplier of the program is the right one
    |reference - zero point - acc M 2^(e - P)| <= reach     it is rounded as far as mode and shift can, and no further

with the reach of `quant.requant.rounding_reach`. A wrong multiplier, shift, zero point, bias or rounding breaks one of
the two, or gives other codes than ONNX Runtime has, and its elements count as different.

Where ONNX Runtime sums real numbers in float32, the sum itself is rounded too. An element whose exact sum lies as near
to a tie as these roundings may move it can have the code on the other side of the tie. With weights of few bits, many
sums lie on a tie.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from qcompiler.backends.integer import Executor, Sums
from qcompiler.errors import InputError
from qcompiler.quant.requant import RequantMode, prepare_requantization, real_multiplier, rounding_reach
from qcompiler.targets import Target

Array = npt.NDArray[np.generic]
Float = npt.NDArray[np.float64]

_SLACK = 2.0**-24
"""Steps by which products in float64 may be wrong: codes have 16 bits, and float64 has 53."""

_UNIT = 2.0**-24
"""Largest relative error of one operation in float32."""
_DEVIATIONS = 4.0
"""A sum of n terms is wrong by less than 4 sqrt(n) units of the sum of their magnitudes, but for one in 10^4 such sums:
roundings are as good as independent (Higham and Mary 2019, A new approach to probabilistic rounding error analysis)."""
_FEW = 2.0**-5
"""Steps next to a tie within which an element may be explained: where float32 is worse, sums are long, no number comes
up over and over, and the share of the target bounds what differs."""


class RoundedOnce:
    """The layers of one program.

    Args:
        executor: The program.
        target: Says how multipliers are made.
    """

    def __init__(self, executor: Executor, target: Target) -> None:
        self.executor = executor
        self.target = target
        # Limits per channel are applied to the result of a layer, and belong to it.
        self.clamped = {item.output: item.inputs[0] for item in executor.program.instructions if item.op == "int_clamp"}

    def codes(
        self, name: str, given: Mapping[str, Array], reference: Array, *, in_float32: bool = False
    ) -> Array | None:
        """The codes that the elements of a result may have beside those of the reference.

        Args:
            name: The result of a layer.
            given: What the layer reads, by name.
            reference: What it gives.
            in_float32: Whether the sums are those of real numbers.

        Returns:
            Codes, those of the reference where nothing else is explained; None where nothing is explained at all.
        """
        sums = self.executor.sums(self.clamped.get(name, name), given)
        if sums is None or (sums.exponent is None and not in_float32):
            return None
        held, real = self._multipliers(sums)
        if held is None:
            return None
        products = sums.sums * held
        if sums.exponent is None:  # accumulator, multiplier and product are rounded to float32
            reach = 0.5 + 4 * _UNIT * np.abs(products) + _SLACK
        else:
            reach = rounding_reach(torch.from_numpy(sums.exponent), RequantMode(sums.call["mode"])).numpy() + _SLACK
        low, high = (
            self._limited(name, sums, edge) for edge in (np.ceil(products - reach), np.floor(products + reach))
        )
        exact = sums.sums * real
        once = self._limited(name, sums, np.rint(exact))
        codes = reference.astype(np.int64)
        if in_float32:
            below = np.floor(exact)
            error = _DEVIATIONS * math.sqrt(sums.terms) * _UNIT * sums.magnitude * real + _SLACK
            tied = sums.logical(np.abs(exact - below - 0.5) <= np.minimum(error, _FEW))
            lower, upper = (self._limited(name, sums, steps) for steps in (below, below + 1))
            once = np.where(tied, np.where(codes == lower, upper, lower), once)
        return np.where((low <= codes) & (codes <= high), once, codes)

    def _limited(self, name: str, sums: Sums, steps: Float) -> npt.NDArray[np.int64]:
        """Steps of the result's grid, channels last, as codes in logical order."""
        codes = np.clip(steps + sums.call.output.zero_point[0], *map(np.asarray, sums.call.limits)).astype(np.int64)
        found: npt.NDArray[np.int64] = sums.logical(codes)
        return self.executor.clamped(name, found) if name in self.clamped else found

    def _multipliers(self, sums: Sums) -> tuple[Float | None, Float]:
        """The multipliers that the program holds and the real ones; None in place of the former if they are wrong."""
        x, weight = sums.call.inputs[:2]
        spec = self.target.arithmetic.at(sums.call.instruction.op.removeprefix("int_"), int(x.dtype[1:])).requant
        scales = (torch.tensor(tensor.scale, dtype=torch.float32) for tensor in (x, weight, sums.call.output))
        scale_x, scale_w, scale_y = scales
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
