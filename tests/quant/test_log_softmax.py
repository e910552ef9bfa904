"""The logarithm of a softmax on codes against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import InputError
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.log_softmax import log_softmax_codes, log_softmax_parameters


def grid(scale: float, zero_point: int = 0) -> AffineParams:
    return AffineParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32))


@given(st.sampled_from([8, 16]), st.integers(1, 400), st.floats(0.5, 60.0), st.floats(0.3, 2.0), st.integers(0, 99))
def test_codes_are_the_nearest_to_the_real_numbers(bits: int, count: int, span: float, finer: float, seed: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high + 1, (3, count), generator=generator)
    source, target = grid(span / 2**bits, 3), grid(finer * (span + 6) / 2**bits, high)
    p = log_softmax_parameters(source, target, distance=high - low)
    found = log_softmax_codes(codes, 1, p, out_zero_point=high, qmin=low, qmax=high)
    exact = torch.log_softmax(codes.double() * source.scale.double(), 1) / target.scale.double() + high
    # Half a step is the rounding of the result. M, L and the exponentials are rounded too, and L is made of lines.
    inner = (high - low) * 2.0 ** -(p.shift + 1) + 12 * 2.0 ** (p.rise - p.shift)
    inner += (2.5e-6 + count * 2.0**-31) / float(target.scale)
    assert float((found - exact.clamp(low, high)).abs().max()) <= 0.5 + inner
    assert inner < (5e-4 if bits == 8 else 0.1)


def test_a_row_of_one_element_is_zero() -> None:
    p = log_softmax_parameters(grid(0.1), grid(0.05, 127), distance=255)
    found = log_softmax_codes(torch.tensor([[-128], [127]]), 1, p, out_zero_point=127, qmin=-128, qmax=127)
    assert found.tolist() == [[127], [127]]


def test_numbers_that_a_softmax_in_eight_bits_rounds_to_zero_keep_their_distances() -> None:
    """Probabilities below 1/512 are 0 on the grid of a softmax, and their logarithm is lost."""
    p = log_softmax_parameters(grid(0.1), grid(0.1, 127), distance=255)
    found = log_softmax_codes(torch.tensor([[100, 0, -50, -100]]), 1, p, out_zero_point=127, qmin=-128, qmax=127)
    assert found.tolist() == [[127, 27, -23, -73]]


def test_a_result_that_is_too_fine_is_refused() -> None:
    with pytest.raises(InputError, match=r"log_softmax with the scale 1e-12 .*at least"):
        log_softmax_parameters(grid(0.1), grid(1e-12), distance=255)
