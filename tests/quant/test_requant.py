"""Requantization against plain loops over Python integers, on random values and on the edges where modes part."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import InputError
from qcompiler.quant.requant import (
    RequantMode,
    decompose,
    multiply_by_quantized_multiplier,
    prepare_requantization,
    real_multiplier,
    requantize,
)
from tests.reference.requant import (
    MODES,
    reference_decompose,
    reference_mbqm,
    reference_requantize_float32,
)

INT32 = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-600, 600))
SIGNIFICANDS = st.one_of(st.integers(2**30, 2**31 - 1), st.sampled_from([2**30, 2**31 - 1, 3 << 29]))
EDGE_SIGNIFICANDS = [2**30, 2**30 + 1, 3 << 29, 1518500250, 2**31 - 2, 2**31 - 1]


def edge_accumulators() -> list[int]:
    powers = [2**k + d for k in range(31) for d in (-1, 0, 1)]
    signed = {sign * power for power in powers for sign in (-1, 1)} | {0, -(2**31), 2**31 - 1}
    return sorted(value for value in signed if -(2**31) <= value < 2**31)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("exponent", range(-31, 31))
def test_edges(mode: str, exponent: int) -> None:
    accumulators = edge_accumulators()
    if mode != "single":
        limit = 2 ** (31 - max(exponent, 0))
        accumulators = [x for x in accumulators if -limit <= x < limit]
    pairs = list(itertools.product(accumulators, EDGE_SIGNIFICANDS))
    actual = multiply_by_quantized_multiplier(
        torch.tensor([x for x, _ in pairs]),
        torch.tensor([m for _, m in pairs], dtype=torch.int32),
        torch.full((len(pairs),), exponent, dtype=torch.int8),
        RequantMode(mode),
    )
    assert actual.tolist() == [reference_mbqm(x, m, exponent, mode) for x, m in pairs]


@pytest.mark.parametrize("mode", MODES)
@given(x=INT32, significand=SIGNIFICANDS, exponent=st.integers(-31, 30))
@settings(deadline=None, max_examples=300)
def test_random_values(mode: str, x: int, significand: int, exponent: int) -> None:
    x >>= max(exponent, 0)
    actual = multiply_by_quantized_multiplier(
        torch.tensor([x]),
        torch.tensor([significand], dtype=torch.int32),
        torch.tensor([exponent], dtype=torch.int8),
        RequantMode(mode),
    )
    assert actual.item() == reference_mbqm(x, significand, exponent, mode)


@pytest.mark.parametrize("exponent", range(-31, 1))
def test_modes_part_on_negative_ties(exponent: int) -> None:
    # With M = 2^30 the product x * m is x * 2^(exponent - 1): an odd multiple of 2^-exponent is a tie.
    ties = [k << -exponent for k in (-5, -3, -1, 1, 3, 5)]
    ties = [x for x in ties if -(2**31) <= x < 2**31]
    significand = torch.tensor(2**30, dtype=torch.int32)
    power = torch.tensor(exponent, dtype=torch.int8)
    results = {}
    for mode in MODES:
        result = multiply_by_quantized_multiplier(torch.tensor(ties), significand, power, RequantMode(mode))
        assert result.tolist() == [reference_mbqm(x, 2**30, exponent, mode) for x in ties]
        results[mode] = result
    if exponent < 0 and len(ties) > 1:
        assert not torch.equal(results["single"], results["double"])


@given(multiplier=st.floats(2.0**-45, 2.0**40))
@settings(deadline=None, max_examples=300)
def test_decomposition(multiplier: float) -> None:
    significand, exponent = decompose(torch.tensor([multiplier], dtype=torch.float64))
    assert (significand.dtype, exponent.dtype) == (torch.int32, torch.int8)
    assert (significand.item(), exponent.item()) == reference_decompose(multiplier)


def test_decomposition_at_its_ends() -> None:
    values = [0.0, 0.5, 1.0, 1.0 - 2.0**-40, 2.0**-33, 2.0**-32, 2.0**30 * (1 - 2.0**-31), 2.0**30, 2.0**50]
    significand, exponent = decompose(torch.tensor(values, dtype=torch.float64))
    pairs = list(zip(significand.tolist(), exponent.tolist(), strict=True))
    assert pairs == [reference_decompose(value) for value in values]
    assert pairs[3] == (2**30, 1) and pairs[4] == (0, 0) and pairs[-1] == (2**31 - 1, 30)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="finite"):
            decompose(torch.tensor([wrong], dtype=torch.float64))


def test_left_shift_out_of_int32_is_refused_where_the_mode_needs_it() -> None:
    multiplier = torch.tensor(2**30, dtype=torch.int32)
    exponent = torch.tensor(4, dtype=torch.int8)
    fitting, beyond = torch.tensor([-(2**27)]), torch.tensor([2**27])
    for mode in (RequantMode.DOUBLE, RequantMode.DOUBLE_HALF_UP):
        assert multiply_by_quantized_multiplier(fitting, multiplier, exponent, mode).item() == -(2**30)
        with pytest.raises(InputError, match="overflows int32"):
            multiply_by_quantized_multiplier(beyond, multiplier, exponent, mode)
    assert multiply_by_quantized_multiplier(beyond, multiplier, exponent, RequantMode.SINGLE).item() == 2**30
    with pytest.raises(InputError, match="no exponent"):
        multiply_by_quantized_multiplier(fitting, multiplier, None, RequantMode.SINGLE)


@pytest.mark.parametrize("mode", MODES)
def test_requantize_per_channel_with_zero_point_and_clamp(mode: str) -> None:
    generator = torch.Generator().manual_seed(3)
    acc = torch.randint(-(2**20), 2**20, (2, 3, 4, 5), generator=generator)
    real = torch.tensor([1.7e-4, 3.1e-5, 0.9e-4], dtype=torch.float64)
    prepared = prepare_requantization(real, RequantMode(mode))
    actual = prepared.apply(acc, zero_point=-7, qmin=-7, qmax=127, axis=1)
    assert actual.dtype == torch.int64
    for (n, c, h, w), value in zip(
        itertools.product(range(2), range(3), range(4), range(5)), actual.flatten(), strict=True
    ):
        significand, exponent = reference_decompose(real[c].item())
        expected = reference_mbqm(int(acc[n, c, h, w]), significand, exponent, mode) - 7
        assert value.item() == min(max(expected, -7), 127)
    assert -7 in actual and 127 in actual and len(set(actual.flatten().tolist())) > 20


@given(x=INT32, multiplier=st.floats(2.0**-24, 2.0**4, width=32), zero_point=st.integers(-128, 127))
@settings(deadline=None, max_examples=300)
def test_float32_mode(x: int, multiplier: float, zero_point: int) -> None:
    actual = requantize(
        torch.tensor([x]),
        torch.tensor([multiplier]),
        None,
        RequantMode.FLOAT32_RNE,
        zero_point=zero_point,
        qmin=-128,
        qmax=127,
    )
    assert actual.item() == reference_requantize_float32(x, multiplier, zero_point, -128, 127)


def test_multiplier_precision_belongs_to_the_mode() -> None:
    scales = torch.tensor(0.013), torch.tensor([0.7, 0.011]), torch.tensor(0.33)
    wide = real_multiplier(*scales, RequantMode.SINGLE)
    assert wide.dtype == torch.float64
    exact = [Fraction(scales[0].item()) * Fraction(w) / Fraction(scales[2].item()) for w in scales[1].tolist()]
    # Two float64 roundings.
    assert all(abs(Fraction(m) / e - 1) <= Fraction(2, 2**53) for m, e in zip(wide.tolist(), exact, strict=True))
    narrow = real_multiplier(*scales, RequantMode.FLOAT32_RNE)
    assert narrow.dtype == torch.float32 and torch.equal(narrow, (scales[0] * scales[1]) / scales[2])
