"""Integer formulas of elementwise and pooling operators, against loops over Python integers."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch

from qcompiler.errors import InputError
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.arithmetic import (
    Arithmetic,
    add_codes,
    add_parameters,
    average_parameters,
    global_average_codes,
    left_is_scalar,
    lookup_table,
    mul_codes,
    mul_parameters,
    rescale_codes,
    rescale_multiplier,
    windowed_average_codes,
)
from qcompiler.quant.requant import RequantMode, RequantSpec
from qcompiler.quant.rounding import AverageRounding, Rounding
from tests.reference.requant import MODES, ROUNDINGS, half_away, reference_decompose, reference_mbqm


def arithmetic(mode: str, table: Rounding = Rounding.HALF_AWAY) -> Arithmetic:
    return Arithmetic(RequantSpec(RequantMode(mode)), Rounding.HALF_AWAY, table, AverageRounding.HALF_AWAY)


def params(scale: float, zero_point: int) -> AffineParams:
    return AffineParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32))


def clamp(value: int) -> int:
    return min(max(value, -128), 127)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.arange(-128, 128, 3)
    return codes.repeat_interleave(len(codes)), codes.repeat(len(codes))


@pytest.mark.parametrize("mode", MODES)
def test_add_follows_the_tflite_form(mode: str) -> None:
    a, b = pairs()
    left, right, out = params(0.031, 5), params(0.0177, -20), params(0.044, 3)
    actual = add_codes(a, b, add_parameters(left, right, out, arithmetic(mode)), qmin=-128, qmax=127)
    s1, s2, sy = (p.scale.item() for p in (left, right, out))
    common = 2 * max(s1, s2)
    m1, m2, my = (reference_decompose(m) for m in (s1 / common, s2 / common, common / (2**20 * sy)))
    for x, y, value in zip(a.tolist(), b.tolist(), actual.tolist(), strict=True):
        total = reference_mbqm((x - 5) << 20, *m1, mode) + reference_mbqm((y + 20) << 20, *m2, mode)
        assert value == clamp(reference_mbqm(total, *my, mode) + 3)
    exact = (a - 5) * (s1 / sy) + (b + 20) * (s2 / sy) + 3
    # The shift by 20 leaves an error of about 2^-20 before the last rounding, so the nearest code is at most half away.
    assert bool(((actual - exact.clamp(-128, 127)).abs() <= 0.5 + 1e-4).all())


@pytest.mark.parametrize("mode", MODES)
def test_mul_and_rescale_apply_one_multiplier(mode: str) -> None:
    a, b = pairs()
    left, right, out = params(0.031, 5), params(0.0177, -20), params(0.09, 3)
    actual = mul_codes(a, b, mul_parameters(left, right, out, arithmetic(mode)), qmin=-128, qmax=127)
    m = reference_decompose(left.scale.item() * right.scale.item() / out.scale.item())
    expected = [
        clamp(reference_mbqm((x - 5) * (y + 20), *m, mode) + 3) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert actual.tolist() == expected

    multiplier = rescale_multiplier(left, right, arithmetic(mode))
    rescaled = rescale_codes(a, multiplier, in_zero_point=5, out_zero_point=-20, qmin=-128, qmax=127)
    m = reference_decompose(left.scale.item() / right.scale.item())
    assert rescaled.tolist() == [clamp(reference_mbqm(x - 5, *m, mode) - 20) for x in a.tolist()]


@pytest.mark.parametrize("mode", MODES)
def test_global_average_folds_the_count(mode: str) -> None:
    q = torch.randint(-128, 128, (2, 6, 7, 7), generator=torch.Generator().manual_seed(0))
    source, target = params(0.05, -11), params(0.021, 4)
    multiplier = average_parameters(source.scale, target.scale, 49, arithmetic(mode))
    actual = global_average_codes(
        q, (2, 3), multiplier, in_zero_point=-11, out_zero_point=4, qmin=-128, qmax=127, keepdim=False
    )
    m = reference_decompose(source.scale.item() / (target.scale.item() * 49))
    sums = (q + 11).sum((2, 3)).flatten().tolist()
    assert actual.flatten().tolist() == [clamp(reference_mbqm(total, *m, mode) + 4) for total in sums]


@pytest.mark.parametrize("mode", [mode for mode in MODES if RequantMode(mode).form.significand_bits])
@pytest.mark.parametrize("count", [1, 7, 9, 49, 64, 1000])
def test_the_significand_of_a_mean_may_be_divided(mode: str, count: int) -> None:
    """As TensorFlow Lite does it, which is another number than the significand of the quotient."""
    source, target = params(0.05, -11), params(0.021, 4)
    divided = dataclasses.replace(arithmetic(mode), divides_multipliers=True)
    found = average_parameters(source.scale, target.scale, count, divided).multiplier
    significand, exponent = reference_decompose(source.scale.item() / target.scale.item())
    if mode in ("tosa16", "s64_16", "nvdla_cvt"):
        whole = average_parameters(source.scale, target.scale, 1, arithmetic(mode)).multiplier
        significand = int(whole.factor)
    shift = len(bin(count)) - 3
    assert int(found.factor) == (significand << shift) // count
    assert found.exponent is not None
    assert int(found.exponent) == exponent - shift


@pytest.mark.parametrize("rounding", AverageRounding)
def test_windowed_average_divides_by_each_count(rounding: AverageRounding) -> None:
    totals = torch.arange(-300, 301)
    counts = torch.tensor([[4], [6], [9]])
    actual = windowed_average_codes(totals, counts, rounding, zero_point=7, qmin=-40, qmax=60)
    for row, count in zip(actual.tolist(), (4, 6, 9), strict=True):
        means = [Fraction(total, count) for total in range(-300, 301)]
        exact = [half_away(mean + 7) if rounding.is_raw else ROUNDINGS[rounding](mean) + 7 for mean in means]
        assert row == [min(max(value, -40), 60) for value in exact]


@pytest.mark.parametrize("rounding", Rounding)
def test_table_entries_are_rounded_as_asked(rounding: Rounding) -> None:
    table = lookup_table(
        lambda x: x * 0.25,
        params(1.0, 0),
        params(0.5, 1),
        arithmetic("single", rounding),
        in_qmin=-128,
        in_qmax=127,
        out_qmin=-50,
        out_qmax=127,
    )
    expected = [max(ROUNDINGS[rounding](Fraction(q, 2)) + 1, -50) for q in range(-128, 128)]
    assert table.tolist() == expected


def test_table_of_a_function_with_poles() -> None:
    def reciprocal(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return 1.0 / x

    limits = {"in_qmin": 0, "in_qmax": 255, "out_qmin": 0, "out_qmax": 255}
    table = lookup_table(reciprocal, params(0.1, 0), params(0.05, 0), arithmetic("single"), **limits)
    assert table[0] == 255 and table[10] == 20
    with pytest.raises(InputError, match="NaN for the input code 0"):
        lookup_table(np.log, params(0.1, 3), params(0.05, 0), arithmetic("single"), **limits)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((4, 8), (4, 8), False),
        ((1,), (8,), True),
        ((), (8,), True),
        ((8,), (1,), False),
        ((1, 16, 1, 1), (2, 16, 9, 9), True),
        ((2, 16, 9, 9), (1, 16, 1, 1), False),
        ((40, 1), (1, 64), True),
        ((1, 64), (40, 1), False),
        ((1, 16, 1, 1), (40, 16, 1, 1), False),
        ((1,), (1,), True),
    ],
)
def test_scalar_side_of_an_addition(left: tuple[int, ...], right: tuple[int, ...], expected: bool) -> None:
    assert left_is_scalar(left, right) is expected


def test_elementwise_arithmetic_has_one_scale_per_tensor() -> None:
    channels = AffineParams(torch.ones(2), torch.zeros(2, dtype=torch.int32), 0)
    with pytest.raises(InputError, match="per-channel"):
        add_parameters(channels, params(1.0, 0), params(1.0, 0), arithmetic("single"))
