"""Real multipliers as significand and exponent, against Vela's decomposition."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from conformance.environments import ask
from conformance.lines import Line, Tally
from qcompiler.quant.requant import RequantMode, decompose

__all__ = ["lines"]

COUNT, SEED = 50_000, 0
WIDTHS = {"single": ("quantise_scale", 31), "s64_16": ("reduced_quantise_scale", 15)}
"""Modes, with Vela's function for their multipliers and the bits of a significand."""


def _check(mode: str) -> Tally:
    function, bits = WIDTHS[mode]
    form = RequantMode(mode).form
    generator = np.random.default_rng(SEED)
    # Vela shifts by 63 bits at most, and neither left. A multiplier just below a power of two carries.
    exponents = generator.integers(max(form.min_exponent, -31), min(form.max_exponent, 30), COUNT)
    fractions = generator.uniform(0.5, 1.0, COUNT)
    fractions[: COUNT // 10] = 1.0 - 2.0 ** -generator.integers(20, 50, COUNT // 10).astype(np.float64)
    fractions[COUNT // 10 : COUNT // 5] = np.float32(fractions[COUNT // 10 : COUNT // 5])
    if bits < 31:
        # If 31 bits suffice, Vela keeps the 32767 that its 15 bits saturate to, and TFLite and we go on from 2^14.
        fractions = np.minimum(fractions, 1.0 - 2.0**-31)
    real = fractions * 2.0**exponents
    answer = ask("vela", {"function": function, "arguments": ["scale"]}, {"scale": real})
    significand, exponent = (
        part.numpy().astype(np.float64) for part in decompose(torch.from_numpy(real), RequantMode(mode))
    )
    tally = Tally()
    # The numbers, not their parts: where rounding carries, Vela keeps a significand of one bit more.
    expected = answer["0"] * 2.0 ** -answer["1"].astype(np.float64)
    tally.compare("decompose", significand * 2.0 ** (exponent - bits), expected, lambda i: f"m={real[i]!r}")
    return tally


def lines() -> list[Line]:
    """One line for each width of significands."""
    return [Line(f"multiplier/{mode}/vela", partial(_check, mode), ("vela",)) for mode in WIDTHS]
