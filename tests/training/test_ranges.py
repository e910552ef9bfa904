"""How grids learn: where they start, and the gradients of their parameters against plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.quant.rounding import Rounding, round_float
from qcompiler.quant.spec import QuantSpec
from qcompiler.training.estimators import StraightThrough
from qcompiler.training.quantizer import Quantizer
from qcompiler.training.ranges import (
    FixedRange,
    LearnedClip,
    LearnedEnds,
    LearnedOffset,
    LearnedScale,
    Ranges,
    RecomputedRange,
)

ALL: list[Ranges] = [FixedRange(), LearnedScale(), LearnedOffset(), LearnedEnds(), LearnedClip()]
SPECS = [QuantSpec(4), QuantSpec(8, signed=False), QuantSpec(4, symmetric=True, narrow=True, axis=0)]


def make(ranges: Ranges, spec: QuantSpec, scale: float = 0.07, zero_point: int | None = None) -> Quantizer:
    size = () if spec.axis is None else (3,)
    z = 0 if spec.symmetric else (spec.qmin + 5 if zero_point is None else zero_point)
    return Quantizer(spec, ranges, StraightThrough(), torch.full(size, scale), torch.full(size, z, dtype=torch.int32))


def sample(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 40, generator=generator), torch.randn(3, 40, generator=generator)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("ranges", ALL, ids=lambda item: type(item).__name__)
def test_all_start_where_calibration_ended(ranges: Ranges, spec: QuantSpec) -> None:
    x, _ = sample()
    start, fixed = make(ranges, spec), make(FixedRange(), spec)
    scale, zero_point = start.deployed(x)
    expected = fixed.deployed(x)
    # An end is scale * code, and its scale that end / code: one rounding each way.
    torch.testing.assert_close(scale, expected[0], rtol=3e-7, atol=0.0)
    assert torch.equal(zero_point, expected[1])
    names = {name for name, _ in start.named_parameters()}
    assert names == {*ranges.scales, *ranges.ends} - ({"offset", "low"} if spec.symmetric else set())


def test_ends_have_the_gradients_of_aimet() -> None:
    spec = QuantSpec(4, signed=False)
    quantizer = make(LearnedEnds(), spec, 0.2, 6)
    x, g = sample()
    y = quantizer(x, *quantizer.grid(x))
    y.backward(g)
    low, high = (float(quantizer.get_parameter(name).detach()) for name in ("low", "high"))
    steps = 15
    delta = (high - low) / steps
    offset = round(low / delta)
    inside = ((x / delta - offset >= 0) & (x / delta - offset <= steps)).double()
    q = (round_float(x / delta, Rounding.NEAREST_EVEN) - offset).clamp(0, steps).double()
    gs = ((q + offset - x.double() * inside / delta) * g).sum()
    go = (delta * g * (1 - inside)).sum()
    wide = (high - low) ** 2
    expected = {
        "low": -gs / steps + high * steps / wide * go,
        "high": gs / steps - low * steps / wide * go,
    }
    for name, value in expected.items():
        gradient = quantizer.get_parameter(name).grad
        assert gradient is not None
        assert float(gradient) == pytest.approx(float(value), rel=1e-4)


def test_symmetric_ends_have_the_gradient_of_aimet() -> None:
    spec = QuantSpec(4, symmetric=True)
    quantizer = make(LearnedEnds(), spec, 0.2)
    x, g = sample()
    quantizer(x, *quantizer.grid(x)).backward(g)
    delta, inside = 0.2, ((x / 0.2 >= -8) & (x / 0.2 <= 7)).double()
    q = round_float(x / 0.2, Rounding.NEAREST_EVEN).clamp(-8, 7).double()
    expected = ((q * g).sum() - (inside * x / delta * g).sum()) / (15 // 2)
    gradient = quantizer.get_parameter("high").grad
    assert gradient is not None
    assert float(gradient) == pytest.approx(float(expected), rel=1e-4)


def test_clip_has_the_gradient_of_pact() -> None:
    quantizer = make(LearnedClip(), QuantSpec(4, signed=False), 0.1, 0)
    x, g = sample()
    x = x.relu()
    y = quantizer(x, *quantizer.grid(x))
    # 0.5 (|x| - |x - a| + a), quantized
    clip = float(quantizer.get_parameter("clip").detach())
    assert clip == pytest.approx(1.5)
    clipped = 0.5 * (x.abs() - (x - clip).abs() + clip)
    torch.testing.assert_close(
        y.detach(), round_float(clipped / 0.1, Rounding.NEAREST_EVEN) * 0.1, rtol=1e-5, atol=1e-6
    )
    y.backward(g)
    gradient = quantizer.get_parameter("clip").grad
    assert gradient is not None
    assert float(gradient) == pytest.approx(float((g * (x > clip)).sum()), rel=1e-4)


def test_clip_refuses_a_grid_that_ends_at_zero() -> None:
    with pytest.raises(InputError, match="does not end at 0"):
        make(LearnedClip(), QuantSpec(8), 0.1, 127)


@pytest.mark.parametrize("axis", [None, 0])
def test_recomputed_range_follows_the_weight(axis: int | None) -> None:
    spec = QuantSpec(4, symmetric=True, narrow=True, axis=axis)
    quantizer = make(RecomputedRange(), spec)
    x, _ = sample()
    for weight in (x, 3 * x):
        scale, _ = quantizer.deployed(weight)
        rows = weight.abs().amax(1) if axis == 0 else weight.abs().amax()
        assert torch.equal(scale, rows / 7)
        assert float(quantizer.codes(weight).abs().max()) == 7
    assert not list(quantizer.parameters())
    with pytest.raises(InputError, match="symmetric grid of a weight"):
        make(RecomputedRange(), QuantSpec(8))


@pytest.mark.parametrize("ranges", [LearnedScale(), LearnedEnds(), LearnedOffset(), LearnedClip()])
def test_scales_stay_powers_of_two(ranges: Ranges) -> None:
    quantizer = make(ranges, QuantSpec(8, symmetric=True, scale_kind="pow2"), 0.07)  # type: ignore[arg-type]
    x, g = sample()
    scale, _ = quantizer.deployed(x)
    assert float(scale) == 2.0**-4
    x = 20 * x  # beyond the grid, for what learns from clipped values alone
    quantizer(x, *quantizer.grid(x)).backward(g)
    assert all(p.grad is not None and float(p.grad.abs()) > 0 for p in quantizer.parameters())


def test_ranges_always_hold_zero() -> None:
    quantizer = make(LearnedEnds(), QuantSpec(8), 0.1, 0)
    with torch.no_grad():
        quantizer.get_parameter("low").fill_(0.5)
    x, g = sample()
    _, zero_point = quantizer.deployed(x)
    assert int(zero_point) == -128
    quantizer(x, *quantizer.grid(x)).backward(g)
    gradient = quantizer.get_parameter("low").grad
    assert gradient is not None
    assert float(gradient) != 0.0, "straight through, so that the scale can grow again"
