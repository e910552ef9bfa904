"""The affine map: ranges to parameters, codes, fake quantization and its gradients, biases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import CalibrationError, InputError
from qcompiler.quant.affine import (
    SMALLEST_SCALE,
    AffineParams,
    along_axis,
    bias_scale,
    channel_rows,
    dequantize,
    fake_quantize,
    qparams_from_range,
    quantize,
    quantize_bias,
)
from qcompiler.quant.rounding import Rounding
from qcompiler.quant.spec import QuantSpec

SPECS = ["u8", "s8", "s8 symmetric", "s8 symmetric narrow", "s4", "u4", "s16", "u8 scale=pow2", "s8 rounding=rhaz"]
ENDS = st.floats(0.0, 1e6, width=32)


@pytest.mark.parametrize("text", SPECS)
@given(below=ENDS, above=ENDS)
@settings(deadline=None, max_examples=80)
def test_zero_is_exact_and_the_range_is_covered(text: str, below: float, above: float) -> None:
    spec = QuantSpec.parse(text)
    scale, zero_point = qparams_from_range(-below, above, spec)
    assert scale.dtype == torch.float32 and zero_point.dtype == torch.int32
    assert spec.qmin <= int(zero_point) <= spec.qmax
    ends = torch.tensor([0.0, -below, above])
    codes = quantize(ends, scale, zero_point, spec)
    restored = dequantize(codes, scale, zero_point)
    assert codes[0] == zero_point and restored[0] == 0.0
    # One step at the ends: up to half from rounding the value, up to half from rounding the zero point, and the
    # float32 rounding of the scale itself, which is far below the slack given here.
    assert bool(((restored - ends).abs() <= 1.001 * scale).all())


@pytest.mark.parametrize("text", SPECS)
@given(data=st.lists(st.floats(-4.0, 4.0, width=32), min_size=1, max_size=20))
@settings(deadline=None, max_examples=60)
def test_quantization_is_idempotent_and_close(text: str, data: list[float]) -> None:
    spec = QuantSpec.parse(text)
    scale, zero_point = qparams_from_range(-4.5, 4.5, spec)
    x = torch.tensor(data, dtype=torch.float32)
    codes = quantize(x, scale, zero_point, spec)
    real = dequantize(codes, scale, zero_point)
    assert torch.equal(quantize(real, scale, zero_point, spec), codes)
    # The range has room beyond +-4, so nothing clips; float32 division and product add a few ulp to half a step.
    limit = scale.double() / 2 + 4 * torch.finfo(torch.float32).eps * x.double().abs()
    assert bool(((real.double() - x.double()).abs() <= limit).all())


def test_parameters_by_hand() -> None:
    scale, zero_point = qparams_from_range(-1.0, 3.0, QuantSpec.parse("u8"))
    assert scale.item() == torch.tensor(4.0 / 255).item() and zero_point.item() == 64
    scale, zero_point = qparams_from_range(-1.0, 3.0, QuantSpec.parse("s8 symmetric"))
    assert scale.item() == torch.tensor(3.0 / 127).item() and zero_point.item() == 0
    scale, zero_point = qparams_from_range(2.0, 5.1, QuantSpec.parse("u8 symmetric"))
    assert scale.item() == torch.tensor(5.1 / 255).item() and zero_point.item() == 0
    scale, _ = qparams_from_range(-1.0, 1.0, QuantSpec.parse("s8 symmetric scale=pow2"))
    assert scale.item() == 2.0**-6
    scale, _ = qparams_from_range(-1.0, 127 / 64, QuantSpec.parse("s8 symmetric scale=pow2"))
    assert scale.item() == 2.0**-6


def test_degenerate_ranges() -> None:
    spec = QuantSpec.parse("s8 symmetric axis=0")
    scale, zero_point = qparams_from_range(torch.tensor([0.0, -1e-38, -1.0]), torch.tensor([0.0, 1e-38, 1.0]), spec)
    of_zero = torch.tensor(1.0 / 127).item()  # the grid of 0 to 1
    assert scale.tolist()[:2] == [of_zero, SMALLEST_SCALE] and zero_point.tolist() == [0, 0, 0]
    smallest = torch.tensor(SMALLEST_SCALE)
    assert bias_scale(smallest, smallest).item() >= torch.finfo(torch.float32).tiny


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (math.nan, 1.0, "u8"),
        (-1.0, math.inf, "u8"),
        (1.0, -1.0, "u8"),
        (-0.1, 1.0, "u8 symmetric"),
        (-1e300, 1e300, "u8"),
    ],
)
def test_impossible_ranges_are_refused(low: float, high: float, text: str) -> None:
    with pytest.raises(CalibrationError):
        qparams_from_range(torch.tensor(low).double(), torch.tensor(high).double(), QuantSpec.parse(text))


def test_division_is_true_division() -> None:
    scale = torch.tensor(0.0123)
    x = (torch.arange(-120, 120) + 0.5) * scale
    codes = quantize(x, scale, torch.tensor(0, dtype=torch.int32), QuantSpec.parse("s8"))
    # numpy divides in IEEE float32; multiplying by the reciprocal would give other codes on some of these ties.
    assert codes.tolist() == np.rint(x.numpy() / scale.numpy()).tolist()
    assert codes.tolist() != torch.round(x * (1 / scale)).tolist()


def test_not_finite_values_have_codes() -> None:
    spec, zero = QuantSpec.parse("u8"), torch.tensor(7, dtype=torch.int32)
    x = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38])
    for text in ("u8", "s32"):
        wide = QuantSpec.parse(text)
        expected = [7, wide.qmax, wide.qmin, wide.qmax, wide.qmin]
        assert quantize(x, torch.tensor(1e-3), zero, wide).tolist() == expected
    assert fake_quantize(x, torch.tensor(1e-3), zero, spec)[0] == 0.0


@pytest.mark.parametrize("text", [*SPECS, "u8 axis=1", "s8 symmetric axis=-1", "s8 rounding=rhup", "s8 rounding=floor"])
def test_fake_quantization_equals_codes_bit_for_bit(text: str) -> None:
    spec = QuantSpec.parse(text)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 32, generator=generator) * 3
    # Half of the values sit on or next to ties.
    x[::2] = (torch.randint(-140, 140, (32, 32), generator=generator) + 0.5) * 0.0137
    low, high = (x.amin(0), x.amax(0)) if spec.per_channel else (x.min() * 0.7, x.max() * 0.7)
    scale, zero_point = qparams_from_range(low, high, spec)
    for limits in ((None, None), (max(spec.qmin, 3), spec.qmax - 3)):
        codes = quantize(x, scale, zero_point, spec, *limits)
        expected = dequantize(codes, scale, zero_point, spec.axis)
        assert int(codes.min()) >= (limits[0] if limits[0] is not None else spec.qmin)
        for tensor in (x, x.clone().requires_grad_()):
            actual = fake_quantize(tensor, scale, zero_point, spec, *limits)
            assert torch.equal(actual.detach().view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("text", ["u8", "s8 symmetric axis=1"])
def test_gradients_follow_the_formulas(text: str) -> None:
    spec = QuantSpec.parse(text)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 5, generator=generator) * 2
    upstream = torch.randn(40, 5, generator=generator)
    high = torch.linspace(0.5, 2.0, 5) if spec.per_channel else torch.tensor(1.0)
    scale, zero_point = qparams_from_range(-high, high, spec)
    leaf_x, leaf_scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    fake_quantize(leaf_x, leaf_scale, zero_point, spec).backward(upstream)
    ratio = x / scale
    rounded = torch.round(ratio)
    lowest, highest = (spec.qmin - zero_point).float(), (spec.qmax - zero_point).float()
    below, above = rounded < lowest, rounded > highest
    assert bool(below.any()) and bool(above.any()) and not bool((below | above).all())
    by_scale = torch.where(below, lowest, torch.where(above, highest, rounded - ratio)) * upstream
    assert leaf_x.grad is not None and leaf_scale.grad is not None
    assert torch.equal(leaf_x.grad, upstream * ~(below | above))
    total = by_scale.sum(0) if spec.per_channel else by_scale.sum()
    # The sum may run in another order: 200 float32 terms of size up to about 500.
    torch.testing.assert_close(leaf_scale.grad, total, rtol=1e-5, atol=1e-3)


def test_bias_is_quantized_in_float64_and_must_fit() -> None:
    scale = bias_scale(torch.tensor(0.02), torch.tensor([0.001, 0.5]))
    assert scale.dtype == torch.float32
    bias = torch.tensor([1000.0, -2.5e-3 * 1.0])
    expected = [round(float(b) / float(s)) for b, s in zip(bias, scale, strict=True)]
    assert quantize_bias(bias, scale, Rounding.NEAREST_EVEN).tolist() == expected
    # 50,000,001 steps need more than float32's 24 bits.
    assert expected[0] > 2**24
    half = torch.tensor([0.5, -0.5])
    assert quantize_bias(half, torch.tensor(1.0), Rounding.HALF_AWAY).tolist() == [1, -1]
    limit = torch.tensor([-128.0, 127.0])
    assert quantize_bias(limit, torch.tensor(1.0), Rounding.NEAREST_EVEN, bits=8).tolist() == [-128, 127]
    with pytest.raises(InputError, match="channel 1"):
        quantize_bias(torch.tensor([0.0, 128.0]), torch.tensor(1.0), Rounding.NEAREST_EVEN, bits=8)
    with pytest.raises(InputError, match="32 bits"):
        quantize_bias(torch.tensor([1.0]), torch.tensor(2.0**-31), Rounding.NEAREST_EVEN)


def test_parameters_must_fit_together() -> None:
    one, zero = torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    assert AffineParams(one, zero).axis is None
    for scale, zero_point, axis in ((one.double(), zero, None), (one, zero, 0), (one.repeat(2), zero.repeat(3), 0)):
        with pytest.raises(InputError):
            AffineParams(scale, zero_point, axis)


def test_what_has_no_codes_or_no_gradient_is_refused_by_name() -> None:
    x, one, zero = torch.zeros(4), torch.tensor(1.0), torch.tensor(0, dtype=torch.int32)
    with pytest.raises(InputError, match="32 bits"):
        fake_quantize(x, one, zero, QuantSpec(32))
    for function in (quantize, fake_quantize):
        with pytest.raises(InputError, match="the grid has blocks of 2 but no factors"):
            function(x, one, zero, QuantSpec(8, axis=0, block=2))


def test_rows_of_channels_are_the_inverse_of_values_along_an_axis() -> None:
    for shape, axis in [((3,), 0), ((3,), -1), ((2, 3), 1), ((2, 3, 4), -2)]:
        values = along_axis(torch.arange(3.0), len(shape), axis).expand(shape)
        rows = channel_rows(values, axis)
        assert torch.equal(rows, torch.arange(3.0)[:, None].expand(rows.shape))
        assert rows.numel() == values.numel()
