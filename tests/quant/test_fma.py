"""The fused multiply-add against rational arithmetic, on sums that sit on and next to float32 ties."""

from __future__ import annotations

from fractions import Fraction

import torch

from qcompiler.quant.fma import fused_multiply_add
from tests.reference.requant import reference_float32


def test_one_rounding_only() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 256, (4000,), generator=generator).float()
    y = torch.exp(torch.rand(4000, generator=generator) * 8 - 5)
    z = torch.randn(4000, generator=generator) * 200
    # Every second sum is close to a quarter, where the float32 product alone decides the last bit.
    z[::2] = ((x * y * 4).round() / 4 - x * y)[::2]
    actual = fused_multiply_add(x, y, z)
    exact = [
        Fraction(a) * Fraction(b) + Fraction(c) for a, b, c in zip(x.tolist(), y.tolist(), z.tolist(), strict=True)
    ]
    assert [Fraction(value) for value in actual.tolist()] == [reference_float32(value) for value in exact]
    assert not torch.equal(actual, x * y + z)


def test_sum_that_float64_rounds_onto_a_float32_tie() -> None:
    # The exact sum lies 2^-70 below the tie between 1 + 2^-23 and 1 + 2^-22; float64 keeps only the tie, whose even
    # neighbour is the wrong one.
    x, y = torch.tensor([1.0 + 2.0**-23]), torch.tensor([2.0**-24 * (1.0 - 2.0**-23)])
    z = torch.tensor([1.0 + 2.0**-23])
    for sign in (1.0, -1.0):
        naive = (x.double() * (sign * y).double() + (sign * z).double()).float()
        assert naive.item() == sign * (1.0 + 2.0**-22)
        assert fused_multiply_add(x, sign * y, sign * z).item() == sign * (1.0 + 2.0**-23)
