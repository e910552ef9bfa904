"""Layer normalization in integers: as near to the real one as its grids allow, and within its registers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from qcompiler.errors import InputError
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.layer_norm import layer_norm_accumulator, layer_norm_codes, layer_norm_parameters
from qcompiler.quant.requant import RequantMode, RequantSpec
from qcompiler.quant.rounding import AverageRounding, Rounding

ARITHMETIC = Arithmetic(
    RequantSpec(RequantMode.SINGLE), Rounding.NEAREST_EVEN, Rounding.HALF_AWAY, AverageRounding.HALF_AWAY
)


def params(scale: float, zero_point: int = 0) -> AffineParams:
    return AffineParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), None)


@given(data=st.data())
@settings(max_examples=150)
def test_the_result_is_the_real_one_rounded(data: st.DataObject) -> None:
    """Within 0.6 of a step of it: half a step of rounding, and the rest for root, weight and bias."""
    count = data.draw(st.sampled_from([1, 2, 3, 7, 64, 96, 768]))
    spread = data.draw(st.sampled_from([1, 5, 40, 127]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    steps = torch.randint(-spread, spread + 1, (5, count), generator=generator) + data.draw(st.integers(-128, 128))
    weight = torch.randn(count, generator=generator)
    bias = torch.randn(count, generator=generator) * data.draw(st.sampled_from([0.0, 1.0, 30.0]))
    scale = 2.0 ** data.draw(st.floats(-10, 3))
    eps = data.draw(st.sampled_from([0.0, 1e-12, 1e-5, 1e-2]))
    real = functional.layer_norm(steps.double() * scale, (count,), weight.double(), bias.double(), max(eps, 1e-300))
    # E is a whole number of units, which matters where the variance is as small as one unit.
    unit = (scale / count) ** 2
    wanted = torch.round(torch.tensor(eps / unit, dtype=torch.float64)) * unit
    real = functional.layer_norm(
        steps.double() * scale, (count,), weight.double(), bias.double(), max(float(wanted), 1e-300)
    )
    out = params(max(float(real.abs().max()), 1e-3) / 127, 3)
    constants = layer_norm_parameters(params(scale), weight, bias, eps, out, ARITHMETIC, largest=512)
    codes = layer_norm_codes(steps, constants, out_zero_point=3, qmin=-(2**20), qmax=2**20)
    assert float((codes - 3 - real / out.scale.double()).abs().max()) <= 0.6


@given(
    count=st.sampled_from([1, 2, 3, 64, 255, 256, 257, 4096]),
    bits=st.sampled_from([8, 16]),
    position=st.integers(0, 10**6),
    epsilon=st.sampled_from([0, 1, 10**6]),
)
def test_one_element_far_from_all_others_is_the_largest_result(
    count: int, bits: int, position: int, epsilon: int
) -> None:
    """|t w| <= sqrt(n) 2^(f + 15) <= 2^30, reached by a single peak; the bias may be as much again."""
    steps = torch.full((1, count), -(2 ** (bits - 1)))
    steps[0, position % count] = 2 ** (bits - 1) - 1
    fraction = (30 - (count - 1).bit_length()) // 2
    ones = torch.full((count,), 2**15 - 1)
    found = layer_norm_accumulator(steps, ones, torch.full((count,), 2**30), epsilon, fraction)
    assert int(found.abs().max()) < 2**31
    if count > 1:
        spread = (2**bits - 1) ** 2 * (count - 1)
        exact = math.sqrt(count - 1) * 2**fraction / math.sqrt(1 + epsilon / spread) * (2**15 - 1)
        assert abs(int(found[0, position % count]) - 2**30 - exact) <= 2**8


def test_equal_elements_are_the_bias() -> None:
    steps = torch.full((2, 8), 100)
    bias = torch.linspace(-1, 1, 8)
    constants = layer_norm_parameters(params(0.1), torch.ones(8), bias, 0.0, params(1 / 64), ARITHMETIC, largest=255)
    codes = layer_norm_codes(steps, constants, out_zero_point=0, qmin=-128, qmax=127)
    assert (codes - bias * 64).abs().max() <= 0.51


def test_more_than_the_registers_hold_is_refused() -> None:
    with pytest.raises(InputError, match=r"can reach \d+; expected less than 2\^60"):
        layer_norm_parameters(
            params(0.1), torch.ones(2**15), torch.zeros(2**15), 1e-5, params(0.1), ARITHMETIC, largest=65535
        )
