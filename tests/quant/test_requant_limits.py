"""Impossible requantizations are found before anything runs: exponents out of range, products that leave a register."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.quant.requant import RequantMode, RequantSpec, prepare_requantization
from qcompiler.quant.requant_limits import requantization_misfit


def misfit(real: float | list[float], spec: RequantSpec, largest: int, smallest: int | None = None) -> str:
    item = prepare_requantization(torch.tensor(real, dtype=spec.dtype), spec)
    low = -largest if smallest is None else smallest
    count = item.parts[0].shape
    return requantization_misfit(item, spec, torch.full(count, low), torch.full(count, largest))


@pytest.mark.parametrize("mode", [mode for mode in RequantMode if mode is not RequantMode.FLOAT32_RNE])
def test_ordinary_numbers_fit(mode: RequantMode) -> None:
    assert misfit([2.0**-9, 2.0**-12], RequantSpec(mode), 2**20) == ""


@pytest.mark.parametrize(
    ("spec", "multiplier", "shift"),
    [
        (RequantSpec(RequantMode.SINGLE, max_left_shift=0), 1.5, 1),
        (RequantSpec(RequantMode.SINGLE, max_left_shift=3), 8.0, 4),
        (RequantSpec(RequantMode.NVDLA), 2.0**15 * 1.5, 16),
        (RequantSpec(RequantMode.S64_16), 2.0**7, 8),
        (RequantSpec(RequantMode.FLOAT32_RNE, max_left_shift=8), 256.0, 9),
        (RequantSpec(RequantMode.POW2_SHIFT, max_left_shift=2), 8.0, 3),
        (RequantSpec(RequantMode.DOUBLE), 2.0**31, 32),
    ],
)
def test_a_multiplier_that_is_too_large_is_named(spec: RequantSpec, multiplier: float, shift: int) -> None:
    found = misfit([0.25, multiplier], spec, 100)
    assert f"of channel 1 needs a left shift of {shift} bits" in found
    assert f"by at most {spec.max_exponent}" in found


def test_a_left_shift_that_is_allowed_is_no_misfit() -> None:
    assert misfit(7.9, RequantSpec(RequantMode.SINGLE, max_left_shift=3), 100) == ""
    assert misfit(255.9, RequantSpec(RequantMode.FLOAT32_RNE, max_left_shift=8), 100) == ""
    assert misfit(4.0, RequantSpec(RequantMode.POW2_SHIFT, max_left_shift=2), 100) == ""


def test_a_right_shift_that_is_too_short_is_a_misfit_only_where_it_shows() -> None:
    spec = RequantSpec(RequantMode.SINGLE, multiplier_bits=8, max_right_shift=4)
    tiny = 2.0**-13 * 1.01
    assert misfit([0.25, tiny], spec, 2**11) == "", "less than half a code is lost"
    found = misfit([0.25, tiny], spec, 2**23)
    assert "of channel 1 needs a right shift of 12 bits, but the hardware shifts by at most 4" in found
    assert misfit(2.0**-40, RequantSpec(RequantMode.SINGLE), 2**31 - 1) == "", "zero is correct for 32 bits"
    assert "a right shift of 32 bits" in misfit(2.0**-33, RequantSpec(RequantMode.S64_16), 2**40)
    assert "a right shift of 9 bits" in misfit(2.0**-9, RequantSpec(RequantMode.POW2_SHIFT, max_right_shift=8), 2**20)


def test_products_stay_in_their_registers() -> None:
    double, single = RequantSpec(RequantMode.DOUBLE), RequantSpec(RequantMode.SINGLE)
    assert misfit(8.0, double, 2**27 - 1) == ""
    assert "shifted left by 4, exceeds 32 bits" in misfit(8.0, double, 2**27)
    assert misfit(8.0, single, 2**31 - 1) == ""
    assert "product of accumulator and multiplier exceeds 64 bits" in misfit(8.0, single, 2**33)
    assert misfit(0.25, RequantSpec(RequantMode.TOSA16), 2**47 - 1) == ""
    for mode in (RequantMode.TOSA16, RequantMode.S64_16):
        assert f"but requantization mode '{mode}' accepts 48 bits" in misfit(0.25, RequantSpec(mode), 2**47)
        assert misfit(0.25, RequantSpec(mode), 2**47 - 1, -(2**47)) == ""
    assert "accepts 32 bits" in misfit(0.25, RequantSpec(RequantMode.NVDLA), 2**31)
    assert "exceeds 63 bits" in misfit(2.0**40, RequantSpec(RequantMode.POW2_SHIFT), 2**30)


@given(data=st.data())
@settings(max_examples=150)
def test_what_fits_is_rounded_from_the_real_product(data: st.DataObject) -> None:
    """Within one code of the real number: no exponent and no register has cut anything off."""
    mode = data.draw(st.sampled_from([mode for mode in RequantMode if not mode.is_shift]))
    limits = [data.draw(st.one_of(st.none(), st.integers(0, 7))) for _ in range(2)]
    spec = RequantSpec(mode, max_left_shift=limits[0], max_right_shift=limits[1])
    real = torch.tensor(2.0 ** data.draw(st.floats(-40, 8)), dtype=spec.dtype)
    x = data.draw(st.integers(-(2**31), 2**31 - 1)) >> data.draw(st.integers(0, 31))
    item, bound = prepare_requantization(real, spec), torch.tensor(abs(x))
    if requantization_misfit(item, spec, -bound, bound):
        return
    exact = x * float(real)
    # The significand has 15 bits at least, and what a short shift takes away is half a code at most.
    assert abs(int(item.scale(torch.tensor(x))) - exact) <= 1.5 + abs(exact) * 2.0**-14
