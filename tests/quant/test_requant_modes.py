"""Modes with 15-bit significands and those that only shift, against loops; widths, limits and other names of all modes."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import ArtifactError, InputError
from qcompiler.program import arithmetic
from qcompiler.quant.requant import (
    RequantMode,
    RequantSpec,
    decompose,
    multiply_by_quantized_multiplier,
    prepare_requantization,
    real_multiplier,
)
from tests.reference.requant import (
    MODES,
    NARROW_MODES,
    ROUNDINGS,
    SHIFT_MODES,
    half_away,
    reference_decompose,
    reference_decompose_narrow,
    reference_mbqm,
    tosa_double_round,
)


def edges(bits: int) -> list[int]:
    """0, both ends, and around all powers of two, of either sign."""
    powers = [2**k + d for k in range(bits) for d in (-1, 0, 1)]
    signed = {sign * power for power in powers for sign in (-1, 1)} | {0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1}
    return sorted(value for value in signed if -(2 ** (bits - 1)) <= value < 2 ** (bits - 1))


def ties(exponent: int, significand: int, width: int) -> list[int]:
    """Accumulators whose product lies half way between two integers."""
    unit = Fraction(2) ** (width - exponent) / significand / 2
    return [int(odd * unit) for odd in (-5, -3, -1, 1, 3, 5) if (odd * unit).denominator == 1]


def both(x: list[int], significand: list[int] | None, exponent: list[int], mode: str) -> list[int]:
    """The result of torch, which must equal that of the NumPy form."""
    dtype = torch.int16 if RequantMode(mode).form.parts[0] == "i16" else torch.int32
    wide = None if significand is None else torch.tensor(significand, dtype=dtype)
    powers = torch.tensor(exponent, dtype=torch.int8)
    found = multiply_by_quantized_multiplier(torch.tensor(x), wide, powers, RequantMode(mode))
    array = arithmetic.multiply(torch.tensor(x).numpy(), None if wide is None else wide.numpy(), powers.numpy(), mode)
    assert array.tolist() == found.tolist()
    return list(map(int, found.tolist()))


@pytest.mark.parametrize("mode", NARROW_MODES)
def test_edges_of_narrow_modes(mode: str) -> None:
    form = RequantMode(mode).form
    accumulators = edges(32 if mode == "nvdla_cvt" else 48)
    for exponent in range(form.min_exponent, form.max_exponent + 1):
        for significand in (1, 2**14, 2**14 + 1, 23_171, 2**15 - 1):
            x = accumulators + [tie for tie in ties(exponent, significand, 15) if abs(tie) < 2**47]
            found = both(x, [significand] * len(x), [exponent] * len(x), mode)
            assert found == [reference_mbqm(value, significand, exponent, mode) for value in x]


@pytest.mark.parametrize("mode", SHIFT_MODES)
def test_edges_of_shifts(mode: str) -> None:
    for exponent in range(-62, 15):
        x = edges(48) + [odd << (-exponent - 1) for odd in (-5, -3, -1, 1, 3, 5) if -48 < exponent < 0]
        found = both(x, None, [exponent] * len(x), mode)
        assert found == [reference_mbqm(value, 0, exponent, mode) for value in x]


@pytest.mark.parametrize("mode", [*MODES, *NARROW_MODES])
@given(x=st.integers(-(2**31), 2**31 - 1), exponent=st.integers(-16, 0), share=st.floats(0, 1))
@settings(max_examples=100)
def test_random_values(mode: str, x: int, exponent: int, share: float) -> None:
    bits = RequantMode(mode).form.significand_bits
    significand = 2 ** (bits - 1) + int(share * (2 ** (bits - 1) - 1))
    assert both([x], [significand], [exponent], mode) == [reference_mbqm(x, significand, exponent, mode)]


@pytest.mark.parametrize("mode", NARROW_MODES)
@given(multiplier=st.one_of(st.floats(2.0**-15, 100.0), st.floats(0.99997, 1.0), st.floats(0.5, 0.50002)))
@settings(max_examples=300)
def test_narrow_decomposition(mode: str, multiplier: float) -> None:
    significand, exponent = decompose(torch.tensor([multiplier], dtype=torch.float64), RequantMode(mode))
    assert (significand.dtype, exponent.dtype) == (torch.int16, torch.int8)
    assert (significand.item(), exponent.item()) == reference_decompose_narrow(multiplier, mode)


def test_narrow_decompositions_part_where_rounding_carries() -> None:
    almost_one = torch.tensor(1 - 2.0**-17, dtype=torch.float64)
    assert [int(part) for part in decompose(almost_one, RequantMode.TOSA16)] == [2**14, 1]
    assert [int(part) for part in decompose(almost_one, RequantMode.S64_16)] == [2**15 - 1, 0]


def test_tosa_double_is_another_name_of_double() -> None:
    assert RequantMode("tosa_double") is RequantMode.DOUBLE
    with pytest.raises(ValueError, match="triple"):
        RequantMode("triple")
    generator = random.Random(0)
    exponents = range(-31, 30)
    significands = (2**30, 2**30 + 1, 3 << 29, 2**31 - 2, 2**31 - 1, generator.randrange(2**30, 2**31))
    for exponent, significand in itertools.product(exponents, significands):
        # TOSA requires |x| < 2^(30 - exponent), within which the left shift of the two-stage form stays in 32 bits.
        limit = min(2**31, 2 ** (30 - exponent))
        x = [value for value in edges(32) if -limit <= value < limit]
        x += [tie for tie in ties(exponent, significand, 31) if -limit <= tie < limit]
        x += [generator.randrange(-limit, limit) for _ in range(5)]
        found = both(x, [significand] * len(x), [exponent] * len(x), "double")
        assert found == [tosa_double_round(value, significand, exponent) for value in x]


@pytest.mark.parametrize("count", [*range(1, 70), 100, 127, 128, 129, 1000, 4095, 4096, 4097, 65535])
def test_the_reciprocals_of_tosa_and_ethos_round_averages_half_away(count: int) -> None:
    """Both divide by a rounded-up reciprocal and a shift that rounds half up: ties leave zero, nothing else moves."""
    totals = {
        s * (count * k + d) for k in (0, 1, 5, 127, 255) for d in (0, 1, count // 2, -(-count // 2)) for s in (1, -1)
    }
    k = (count - 1).bit_length()
    multipliers = {
        "TOSA": ((((1 << 30) + 1) << k) // count, 30 + k),
        "Ethos-U": (((1 << (31 + k)) + (1 << k)) // count, 31 + k),
    }
    for total in sorted(totals):
        if abs(total) > 255 * count:
            continue
        exact = half_away(Fraction(total, count))
        for name, (multiplier, shift) in multipliers.items():
            assert (total * multiplier + (1 << (shift - 1))) >> shift == exact, (name, total)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 8, 16, 24, 31])
def test_fewer_bits_of_a_multiplier_are_zeros_behind_them(mode: str, bits: int) -> None:
    spec = RequantSpec(RequantMode(mode), multiplier_bits=bits)
    real = torch.tensor([0.3, 0.7499, 0.5, 1.0 - 2.0**-30, 1.9e-4, 511.0], dtype=torch.float64)
    significand, exponent = decompose(real, spec)
    for m, M, e in zip(real.tolist(), significand.tolist(), exponent.tolist(), strict=True):  # noqa: N806  # the text's names
        assert M % 2 ** (32 - bits) == 0 and 2**30 <= M < 2**31
        assert abs(Fraction(M) * Fraction(2) ** (e - 31) / Fraction(m) - 1) <= Fraction(1, 2 ** (bits - 1))
    assert torch.equal(decompose(real)[0], decompose(real, RequantSpec(RequantMode(mode), multiplier_bits=32))[0])


def test_sixteen_bits_in_single_are_the_arithmetic_of_tosa16() -> None:
    real = torch.logspace(-4, 1, 200, dtype=torch.float64)
    narrow, wide = (prepare_requantization(real, s) for s in (RequantMode.TOSA16, RequantSpec(RequantMode.SINGLE, 16)))
    x = torch.randint(-(2**31), 2**31, (200, 200), generator=torch.Generator().manual_seed(0))
    assert torch.equal(narrow.scale(x), wide.scale(x))


def test_a_shift_that_is_too_far_takes_bits_of_the_significand() -> None:
    spec = RequantSpec(RequantMode.SINGLE, max_right_shift=4)
    significand, exponent = decompose(torch.tensor([0.04, 0.03, 2.0**-40], dtype=torch.float64), spec)
    assert exponent.tolist() == [-4, -4, 0]
    whole = reference_decompose(0.03)
    assert (significand.tolist(), whole[1]) == ([reference_decompose(0.04)[0], whole[0] >> 1, 0], -5)
    tosa = decompose(torch.tensor(2.0**-50 * 0.75, dtype=torch.float64), RequantMode.TOSA16)
    assert [int(part) for part in tosa] == [(3 << 13) >> 3, -47]


def test_only_powers_of_two_shift() -> None:
    item = prepare_requantization(torch.tensor([2.0**-7, 1.0, 8.0], dtype=torch.float64), RequantMode.POW2_SHIFT)
    assert item.multiplier is None and item.exponent is not None
    assert item.exponent.tolist() == [-7, 0, 3] and [part.dtype for part in item.parts] == [torch.int8]
    with pytest.raises(InputError, match=r"the multiplier 0\.3; expected a power of two.*Use power-of-two scales"):
        prepare_requantization(torch.tensor([0.5, 0.3], dtype=torch.float64), RequantMode.POW2_SHIFT)


def test_multipliers_in_float32() -> None:
    scales = torch.tensor(0.013), torch.tensor([0.7, 0.011]), torch.tensor(0.33)
    narrow = real_multiplier(*scales, RequantSpec(RequantMode.DOUBLE, precision="float32"))
    assert torch.equal(narrow, scales[0] * scales[1] / scales[2])
    significand, _ = decompose(narrow)
    assert all(value % 2**7 == 0 for value in significand.tolist()), "24 bits of 31, as QNNPACK has them"


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        (RequantMode.SINGLE, {"multiplier_bits": 33}, "expected 2..32 bits"),
        (RequantMode.TOSA16, {"multiplier_bits": 17}, "expected 2..16 bits"),
        (RequantMode.FLOAT32_RNE, {"multiplier_bits": 16}, "expected no integer multiplier"),
        (RequantMode.POW2_SHIFT, {"multiplier_bits": 16}, "expected no integer multiplier"),
        (RequantMode.NVDLA, {"max_right_shift": 17}, "a right shift of up to 17 bits.*expected 0..16"),
        (RequantMode.SINGLE, {"max_left_shift": 31}, "a left shift of up to 31 bits.*expected 0..30"),
        (RequantMode.SINGLE, {"max_left_shift": -1}, "expected 0..30"),
    ],
)
def test_what_a_mode_cannot_have_is_refused(mode: RequantMode, changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RequantSpec(mode, **changes)  # type: ignore[arg-type]  # integers all


def test_the_parts_must_be_those_of_the_mode() -> None:
    x, e = torch.tensor([1]), torch.tensor(0, dtype=torch.int8)
    with pytest.raises(InputError, match="no significand"):
        multiply_by_quantized_multiplier(x, None, e, RequantMode.TOSA16)
    with pytest.raises(InputError, match="the parts that the mode needs"):
        multiply_by_quantized_multiplier(x, torch.tensor(1), e, RequantMode.POW2_SHIFT)
    for found in ((None, e.numpy(), "single"), (x.numpy(), None, "single"), (x.numpy(), e.numpy(), "triple")):
        with pytest.raises(ArtifactError, match=r"program\.json"):
            arithmetic.multiply(x.numpy(), *found)


@pytest.mark.parametrize("mode", SHIFT_MODES)
def test_a_shift_rounds_as_its_name_says(mode: str) -> None:
    x = list(range(-40, 41))
    assert both(x, None, [-3] * 81, mode) == [ROUNDINGS[SHIFT_MODES[mode]](Fraction(value, 8)) for value in x]
