"""Every rounding mode against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import InputError
from qcompiler.quant.rounding import MAX_SHIFT, Rounding, divide, round_float, shift_right
from tests.reference.requant import ROUNDINGS

INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-40, 40))
EDGES = [sign * (2**k + d) for k in range(63) for d in (-1, 0, 1) for sign in (-1, 1)] + [-(2**63), 2**63 - 1]


@pytest.mark.parametrize("mode", Rounding)
def test_round_float_on_values_where_adding_one_half_fails(mode: Rounding) -> None:
    below_half = float(torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)))
    above_half = float(torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)))
    sizes = [0.0, 0.49999997, below_half, 0.5, above_half, 1.5, 2.5, 8388607.5, 8388609.0, 16777217.0, 3e9, 1e30]
    x = torch.tensor([sign * size for size in sizes for sign in (1.0, -1.0)])
    expected = [ROUNDINGS[mode](Fraction(value)) for value in x.tolist()]
    assert [Fraction(value) for value in round_float(x, mode).tolist()] == expected


@pytest.mark.parametrize("mode", Rounding)
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_round_float_is_exact(mode: Rounding, values: list[float]) -> None:
    rounded = round_float(torch.tensor(values, dtype=torch.float32), mode)
    assert [Fraction(value) for value in rounded.tolist()] == [ROUNDINGS[mode](Fraction(value)) for value in values]


@pytest.mark.parametrize("mode", Rounding)
def test_round_float_keeps_what_is_not_finite(mode: Rounding) -> None:
    rounded = round_float(torch.tensor([float("inf"), -float("inf"), float("nan")]), mode)
    assert rounded[0] == float("inf") and rounded[1] == -float("inf") and torch.isnan(rounded[2])


@pytest.mark.parametrize("mode", Rounding)
@pytest.mark.parametrize("shift", [0, 1, 2, 31, 61, MAX_SHIFT])
def test_shift_right_on_edges(mode: Rounding, shift: int) -> None:
    expected = [ROUNDINGS[mode](Fraction(value, 2**shift)) for value in EDGES]
    assert shift_right(torch.tensor(EDGES), shift, mode).tolist() == expected


@pytest.mark.parametrize("mode", Rounding)
@given(x=INT64, shift=st.integers(0, MAX_SHIFT), divisor=st.one_of(st.integers(1, 2**63 - 1), st.integers(1, 12)))
@settings(deadline=None, max_examples=150)
def test_shift_and_division_are_exact(mode: Rounding, x: int, shift: int, divisor: int) -> None:
    tensor = torch.tensor([x])
    assert shift_right(tensor, torch.tensor([shift]), mode).item() == ROUNDINGS[mode](Fraction(x, 2**shift))
    assert divide(tensor, divisor, mode).item() == ROUNDINGS[mode](Fraction(x, divisor))


def test_shifts_and_divisors_broadcast() -> None:
    x = torch.tensor([[5], [-5]])
    assert shift_right(x, torch.tensor([0, 1]), Rounding.HALF_UP).tolist() == [[5, 3], [-5, -2]]
    assert divide(x, torch.tensor([2, 10]), Rounding.HALF_AWAY).tolist() == [[3, 1], [-3, -1]]


def test_wrong_shifts_and_divisors_are_refused() -> None:
    for shift in (-1, 63):
        with pytest.raises(InputError, match="right shift"):
            shift_right(torch.tensor([1]), shift, Rounding.FLOOR)
    with pytest.raises(InputError, match="divisor"):
        divide(torch.tensor([1]), 0, Rounding.FLOOR)
