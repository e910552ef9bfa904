"""The reference itself, against hand-computed values and TOSA's independent form of the same rounding."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from tests.reference import requant as reference


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rne", [-2, -2, 0, 0, 2, 2]),
        ("rhaz", [-3, -2, -1, 1, 2, 3]),
        ("rhup", [-2, -1, 0, 1, 2, 3]),
        ("floor", [-3, -2, -1, 0, 1, 2]),
        ("trunc", [-2, -1, 0, 0, 1, 2]),
    ],
)
def test_roundings_of_halves(name: str, expected: list[int]) -> None:
    halves = [Fraction(n, 2) for n in (-5, -3, -1, 1, 3, 5)]
    assert [reference.ROUNDINGS[name](half) for half in halves] == expected


def test_negative_tie_separates_the_modes() -> None:
    # -3 * 0.5 = -1.5: half up gives -1, half away -2.
    assert reference.reference_decompose(0.5) == (2**30, 0)
    assert reference.reference_mbqm(-6, 2**30, -1, "single") == -1
    assert reference.reference_mbqm(-6, 2**30, -1, "double") == -2
    assert reference.reference_mbqm(-6, 2**30, -1, "double_hu") == -1


def test_two_stages_carry_a_value_over_the_tie() -> None:
    # 1 * 0.25 + a little: the first stage rounds up to 1, the second makes a half of it.
    assert reference.reference_mbqm(1, 2**30, -1, "single") == 0
    assert reference.reference_mbqm(1, 2**30, -1, "double") == 1


def test_two_stage_rounding_equals_tosa_double_round() -> None:
    generator = random.Random(0)
    for _ in range(20000):
        exponent = generator.randint(-31, 0)
        x = generator.choice([generator.randint(-(2**31), 2**31 - 1), generator.randint(-300, 300)])
        significand = generator.choice([2**30, 2**31 - 1, generator.randrange(2**30, 2**31)])
        two_stage = reference.reference_mbqm(x, significand, exponent, "double")
        assert two_stage == reference.tosa_double_round(x, significand, exponent)


def test_float32_rounding_agrees_with_known_neighbours() -> None:
    assert reference.reference_float32(Fraction(2**24 + 1)) == 2**24
    assert reference.reference_float32(Fraction(2**24 + 3)) == 2**24 + 4
    assert reference.reference_float32(Fraction(1, 3)) == Fraction(11184811, 2**25)
