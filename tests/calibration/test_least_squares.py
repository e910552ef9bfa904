"""Ranges against plain computations on the values themselves: no histogram, every scale and every zero point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.calibration import least_squares
from qcompiler.calibration.estimators import entropy, mse, sqnr
from qcompiler.calibration.histogram import Histogram
from qcompiler.errors import CalibrationError
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.spec import QuantSpec

COUNT = 3000

Draw = Callable[[torch.Generator], Tensor]


def normal(generator: torch.Generator) -> Tensor:
    return torch.randn(COUNT, generator=generator)


def uniform(generator: torch.Generator) -> Tensor:
    return torch.rand(COUNT, generator=generator)


def clusters(generator: torch.Generator) -> Tensor:
    centres = 4.0 * torch.rand(5, generator=generator) - 2.0
    chosen = torch.randint(0, 5, (COUNT,), generator=generator)
    return centres[chosen] + 0.003 * normal(generator)


DATA: dict[str, Draw] = {
    "normal": normal,
    "relu": lambda g: normal(g).relu(),
    "relu6": lambda g: (4.0 * normal(g) + 3.0).clamp(0.0, 6.0),
    "saturated": lambda g: normal(g).clamp(-0.7, 1.3),
    "silu": lambda g: torch.nn.functional.silu(2.0 * normal(g)),
    "clusters": clusters,
    "two far apart": lambda g: torch.where(uniform(g) < 0.5, 5.0, -1.0) + 0.1 * normal(g),
    "heavy tail": lambda g: normal(g) / uniform(g).clamp(min=0.01),
    "integers": lambda g: torch.randint(-3, 12, (COUNT,), generator=g).to(torch.float32),
    "small integers": lambda g: torch.randint(0, 5, (COUNT,), generator=g).to(torch.float32),
    "two values": lambda g: 0.05 * normal(g).sign(),
    "mostly zeros": lambda g: normal(g) * (uniform(g) > 0.99),
    "nearly constant": lambda g: 1.0 + 1e-6 * normal(g),
    "constant": lambda g: torch.full((COUNT,), 0.3),
    "zero": lambda g: torch.zeros(COUNT),
    "negative": lambda g: -normal(g).abs() - 0.1,
    "tiny": lambda g: 1e-12 * normal(g),
    "huge": lambda g: 1e30 * normal(g),
    "an outlier": lambda g: torch.cat([normal(g), torch.tensor([300.0])]),
}


def lost(data: Tensor, scale: Tensor | float, zero_point: Tensor | int, spec: QuantSpec, clipping: float) -> Tensor:
    """The cost of one grid, or of [S, Z] of them, by definition."""
    steps, zeros = (torch.as_tensor(part, dtype=torch.float64).unsqueeze(-1) for part in (scale, zero_point))
    codes = torch.round(data.double() / steps)
    found = torch.minimum(torch.maximum(codes, spec.qmin - zeros), spec.qmax - zeros)
    errors = (found * steps - data.double()).square()
    return torch.where(found != codes, clipping * errors, errors).mean(-1)


def least(data: Tensor, spec: QuantSpec, clipping: float) -> float:
    """The smallest cost of scales a percent apart, with all zero points."""
    widest = 2.0 * float(qparams_from_range(data.min(), data.max(), spec)[0])
    zeros = torch.zeros(1) if spec.symmetric else torch.arange(spec.qmin, spec.qmax + 1)
    if not spec.symmetric and float(data.min()) >= 0.0:
        zeros = torch.tensor([spec.qmin])
    if not spec.symmetric and float(data.max()) <= 0.0:
        zeros = torch.tensor([spec.qmax])
    scales = widest * 2.0 ** (-torch.arange(6 * 64).double() / 64)
    return min(float(lost(data, part.unsqueeze(1), zeros, spec, clipping).min()) for part in scales.split(8))


SPECS = ["u4", "s3", "s4 symmetric narrow", "u3 symmetric", "s2", "s4 symmetric scale=pow2"]


@given(
    name=st.sampled_from(sorted(DATA)),
    text=st.sampled_from(SPECS),
    clipping=st.sampled_from([1.0, 3.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_no_scale_and_zero_point_is_better(name: str, text: str, clipping: float, seed: int) -> None:
    spec, data = QuantSpec.parse(text), DATA[name](torch.Generator().manual_seed(seed))
    if spec.symmetric and not spec.signed and float(data.min()) < 0.0:
        data = data.abs()
    histogram = Histogram.of(data[None])
    low, high = (end[0] for end in sqnr(histogram, spec, clipping))
    found = float(lost(data, *qparams_from_range(low, high, spec), spec, clipping))
    best = float("inf") if "pow2" in text else least(data, spec, clipping)
    observed = float(lost(data, *qparams_from_range(data.min(), data.max(), spec), spec, clipping))
    # A point is up to half a bin width from its values, which moves the root of the cost by as much at the most. Beyond
    # that both searches see the plane at points only.
    width = float(histogram.width[0])
    allowed = (min(best, observed) * 1.05) ** 0.5 + max(1.0, clipping) ** 0.5 * width
    assert found**0.5 <= allowed
    if name in ("constant", "two values", "small integers", "integers") and "pow2" not in text:
        assert found <= best * 1.05 + 1e-12 * float(data.double().square().mean()), "these are known exactly"


@pytest.mark.parametrize("text", ["u4", "u8", "s8 symmetric narrow"])
def test_integers_that_fit_are_exact(text: str) -> None:
    """Though the range of the values alone would not do: 0 to 5 on fifteen steps, 0 to 100 on 255."""
    spec = QuantSpec.parse(text)
    data = torch.arange(6 if spec.bits == 4 else 101).to(torch.float32).repeat(7)[None]
    scale, zero_point = qparams_from_range(*mse(Histogram.of(data), spec), spec)
    assert float(lost(data[0], scale[0], zero_point[0], spec, 1.0)) < 1e-12


def test_zeros_cost_nothing() -> None:
    """A thousand times as many zeros change no range: of least squares not at all, of entropy by nothing either."""
    spec = QuantSpec.parse("u6")
    data = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).abs()
    few, many = (Histogram.of(torch.cat([data, torch.zeros(count)])[None]) for count in (50, 50_000))
    for method in (mse, sqnr, entropy):
        assert torch.equal(torch.stack(method(few, spec)), torch.stack(method(many, spec))), method.__name__


@pytest.mark.parametrize("text", ["u4", "u6", "u8"])
@pytest.mark.parametrize(
    "name", ["relu", "relu6", "saturated", "silu", "normal", "integers", "mostly zeros", "clusters"]
)
def test_entropy_keeps_most_of_the_signal(name: str, text: str) -> None:
    """Whatever occurs again and again; what it loses by least squares is bounded, for it looks at something else."""
    spec, generator = QuantSpec.parse(text), torch.Generator().manual_seed(1)
    data = torch.cat([DATA[name](generator) for _ in range(20)])
    histogram = Histogram.of(data[None])
    ranges = (entropy(histogram, spec), mse(histogram, spec), (data.min(), data.max()))
    grids = [qparams_from_range(low.reshape(()), high.reshape(()), spec) for low, high in ranges]
    found, best, observed = (float(lost(data, *grid, spec, 1.0)) for grid in grids)
    # At most 6 dB more noise than at best (measured: 4.3 dB for clusters at four bits), or the observed range, which is
    # what loses no value: all of them have a code of their own.
    assert found <= max(4.0 * best, 1.01 * observed)


def test_ranges_of_all_orders_of_magnitude_are_those_of_one() -> None:
    data, spec = normal(torch.Generator().manual_seed(3)), QuantSpec.parse("s4")
    expected = torch.stack(mse(Histogram.of(data[None]), spec))
    for exponent in (-40, -20, 60, 120):
        found = torch.stack(mse(Histogram.of(data[None] * 2.0**exponent), spec))
        assert torch.equal(found, expected * 2.0**exponent)


def test_pow2_scales_and_grids_of_many_bits() -> None:
    data = normal(torch.Generator().manual_seed(4))
    histogram = Histogram.of(data[None])
    spec = QuantSpec.parse("s6 scale=pow2")
    scale, zero_point = qparams_from_range(*mse(histogram, spec), spec)
    assert float(torch.frexp(scale).mantissa) == 0.5
    around = [float(lost(data, float(scale) * factor, int(zero_point), spec, 1.0)) for factor in (0.5, 1.0, 2.0)]
    assert min(around) == around[1]
    many = QuantSpec.parse("s16")
    assert least_squares.least_squares(histogram, many) is None
    low, high = mse(histogram, many)
    assert float(low) == pytest.approx(float(data.min()), rel=0.02)
    assert float(high) == pytest.approx(float(data.max()), rel=0.02)


def test_what_a_grid_cannot_hold_is_refused() -> None:
    with pytest.raises(CalibrationError, match="symmetric unsigned"):
        mse(Histogram.of(torch.tensor([[-1.0, 2.0]])), QuantSpec.parse("u4 symmetric"))


@given(value=st.floats(-1e6, 1e6, width=32), text=st.sampled_from(SPECS))
@settings(max_examples=200, deadline=None)
def test_one_value_has_a_range(value: float, text: str) -> None:
    """Both ends round alike, so that the low end is not above the high end."""
    spec = QuantSpec.parse(text)
    value = abs(value) if spec.symmetric and not spec.signed else value
    low, high = mse(Histogram.of(torch.full((1, 3), value)), spec)
    assert bool((low <= high).all())
