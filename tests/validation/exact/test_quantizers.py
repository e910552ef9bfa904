"""Quantizers of real numbers, of codes on another grid, and of what waits."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import CalibrationError
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.spec import QuantSpec
from qcompiler.validation.exact import Codes, Exact, Pending
from qcompiler.validation.exact.quantizers import rescaled
from tests.support.exact import ARITHMETIC, OUT, check_rounds, codes, evaluate, grid

SCALE, ZERO = torch.tensor(0.05), torch.tensor(3, dtype=torch.int32)


def quantized(x: Exact, *, shape: tuple[int, ...] = (3, 40), qmin: int | None = None, qmax: int | None = None) -> Codes:
    found = evaluate(
        "fake_quantize", x, SCALE, ZERO, shapes=[shape, (), ()], spec=QuantSpec(bits=8), qmin=qmin, qmax=qmax
    )
    assert isinstance(found, Codes)
    return found


def test_real_numbers_become_the_nearest_codes() -> None:
    x = torch.linspace(-9, 9, 120).reshape(3, 40)
    found = quantized(x)
    assert found.codes.dtype == torch.int64
    assert (int(found.codes.min()), int(found.codes.max())) == (-128, 127)
    inside = x.abs() < 6
    assert float((found.real() - x)[inside].abs().max()) <= 0.025 + 1e-6
    assert (quantized(x, qmin=0, qmax=9).qmin, int(quantized(x, qmin=0, qmax=9).codes.max())) == (0, 9)


def test_codes_of_another_grid_are_brought_to_this_one() -> None:
    x = codes((3, 40), grid(0.03, -6), 1)
    assert torch.equal(quantized(x).codes, rescaled(x, ARITHMETIC).requantize(OUT, -128, 127))
    check_rounds(rescaled(x, ARITHMETIC), x.real().to(torch.float64))


def ramp(params: AffineParams, qmin: int, qmax: int) -> torch.Tensor:
    """Codes of -6 to 6, as requantized on any grid."""
    return (
        ((torch.arange(120).reshape(3, 40) - 60) / 10 / params.scale + params.zero_point)
        .round()
        .long()
        .clamp(qmin, qmax)
    )


def test_limits_of_what_waits_become_limits_of_codes() -> None:
    found = quantized(Pending(ramp, 0.0, 1.0))
    assert (found.qmin, found.qmax) == (3, 23)
    assert torch.equal(found.codes, ramp(OUT, 3, 23))


def test_limits_per_channel_hold_for_each_channel() -> None:
    ends = torch.tensor([-5.0, 0.0, 1.0]), torch.tensor([-4.0, 1.0, 6.0])
    found = quantized(Pending(ramp, channels=(*ends, 0)))
    assert found.codes.amin(1).tolist() == [-97, 3, 43]
    assert found.codes.amax(1).tolist() == [-77, 23, 121]


def test_blocks_of_a_weight_have_whole_factors() -> None:
    spec = QuantSpec(bits=4, symmetric=True, axis=0, block=2)
    scale, zero = torch.tensor([0.1, 0.2]), torch.zeros(2, dtype=torch.int32)
    weight = torch.tensor([[0.3, -0.7, 0.3, 1.4], [0.2, 0.4, -1.2, 0.6]])
    factors = torch.tensor([[1, 2], [1, 3]], dtype=torch.uint8)
    found = evaluate("fake_quantize", weight, scale, zero, factors, spec=spec)
    assert isinstance(found, Codes)
    assert found.codes.tolist() == [[3, -7, 2 * 2, 2 * 7], [1, 2, 3 * -2, 3 * 1]]
    assert found.qmax == 7 * 3


def test_a_bias_is_in_steps_of_the_products() -> None:
    found = evaluate(
        "fake_quantize_bias", torch.tensor([1.0, -0.26, 3276.7]), torch.tensor(0.1), bits=16, rounding="rne"
    )
    assert isinstance(found, Codes)
    assert found.codes.tolist() == [10, -3, 2**15 - 1]
    per_channel = evaluate("fake_quantize_bias", torch.tensor([1.0, 1.0]), torch.tensor([0.1, 0.5]), rounding="rne")
    assert isinstance(per_channel, Codes)
    assert (per_channel.codes.tolist(), per_channel.params.axis) == ([10, 2], 0)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_quantizer_without_a_range_is_named(scale: float) -> None:
    with pytest.raises(CalibrationError, match=r"no range yet \(at %fake_quantize\).*Run a calibration pass first"):
        evaluate("fake_quantize", torch.ones(2), torch.tensor(scale), ZERO, spec=QuantSpec(bits=8))
