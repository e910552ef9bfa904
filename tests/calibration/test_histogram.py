"""Merging histograms is exact: whatever the order and the grouping, the same bits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.calibration.estimators import _divergence, entropy, mse, percentile, sparse_percentile, sqnr
from qcompiler.calibration.histogram import Histogram
from qcompiler.errors import InputError
from qcompiler.quant.affine import fake_quantize, qparams_from_range
from qcompiler.quant.spec import QuantSpec

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
batches = st.lists(st.lists(floats, min_size=1, max_size=20), min_size=1, max_size=6)


def of(values: list[float], bins: int = 16) -> Histogram:
    return Histogram.of(torch.tensor([values], dtype=torch.float32), bins)


def same(a: Histogram, b: Histogram) -> bool:
    return all(torch.equal(getattr(a, part.name), getattr(b, part.name)) for part in fields(Histogram))


repeated = st.sampled_from([0.0, 1.0, 6.0, -2.0, 3.5, 96.0])
"""Values that occur again and again, most of them integers."""


@given(
    batches | st.lists(st.lists(repeated, min_size=1, max_size=20), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
    st.sampled_from([2, 3, 16, 64]),
)
@settings(max_examples=300)
def test_any_grouping_gives_the_same_histogram(data: list[list[float]], random: object, bins: int) -> None:
    whole = of([x for batch in data for x in batch], bins)
    parts = [of(batch, bins) for batch in data]
    while len(parts) > 1:
        random.shuffle(parts)  # type: ignore[attr-defined]
        parts = [parts[0].merge(parts[1]), *parts[2:]]
    assert same(parts[0], whole)


@given(st.lists(floats, min_size=1, max_size=200), st.sampled_from([2, 16, 256]))
def test_counts_are_those_of_numpy(values: list[float], bins: int) -> None:
    histogram = of(values, bins)
    array = np.asarray(values, np.float32)
    nonzero = array[array != 0].astype(np.float64)
    edges = histogram.edges[0].numpy()
    expected = [int(((nonzero >= left) & (nonzero < right)).sum()) for left, right in itertools.pairwise(edges)]
    assert histogram.counts[0].tolist() == expected
    assert int(histogram.zeros[0]) == int((array == 0).sum())
    assert int(histogram.count[0]) == len(values)
    spread = float(array.max()) - float(array.min())
    largest = np.float32(np.abs(array).max())
    spacing = float(largest) - float(np.nextafter(largest, np.float32(0))) or 2.0**-149
    assert float(histogram.width[0]) <= max(2 * spread / (bins - 1), 2 * spacing)


@given(st.lists(floats | repeated, min_size=1, max_size=100), st.sampled_from([4, 64, 2048]))
def test_points_stand_for_the_values_and_repeated_ones_are_exact(values: list[float], bins: int) -> None:
    histogram = of(values, bins)
    points, weights = (part[0].tolist() for part in histogram.cells())
    assert sum(weights) == len(values)
    spread = sorted(itertools.chain.from_iterable([x] * int(n) for x, n in zip(points, weights, strict=True)))
    width, exact = float(histogram.width[0]), [float(np.float32(x)) for x in sorted(values)]
    assert all(abs(a - b) <= width / 2 for a, b in zip(spread, exact, strict=True))
    for value in {0.0, min(exact), max(exact)}:
        assert spread.count(value) >= exact.count(value)
    if all((x / width).is_integer() for x in exact):
        assert bool(histogram.aligned[0])
        assert spread == exact


def test_rare_values_among_zeros_are_not_given_up() -> None:
    """Four of 100,000 values are not zero: the percentile of all is 0, that of these four is not."""
    data = torch.zeros(1, 100_000)
    data[0, :4] = torch.tensor([1.0, 2.0, -1.5, 3.0])
    assert float(percentile(Histogram.of(data), 99.99)[0]) == 0.0
    low, high = (float(end) for end in sparse_percentile(Histogram.of(data), 99.99))
    assert low == pytest.approx(-1.5, abs=0.01)
    assert high == pytest.approx(3.0, abs=0.01)
    both = Histogram.of(torch.cat([data, torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))]))
    ordinary = percentile(both, 99.99)
    assert [float(end[1]) for end in sparse_percentile(both, 99.99)] == [float(end[1]) for end in ordinary]


@given(st.lists(floats, min_size=2, max_size=300), st.floats(51.0, 100.0))
def test_percentiles_lie_within_a_bin_of_those_of_numpy(values: list[float], percent: float) -> None:
    histogram = of(values, 256)
    low, high = (float(end) for end in percentile(histogram, percent))
    array = np.asarray(values, np.float64)
    exact_high = float(np.percentile(array, percent, method="higher"))
    exact_low = float(np.percentile(array, 100 - percent, method="lower"))
    width = float(histogram.width[0])
    rank = np.ceil((len(array) - 1) * percent / 100)
    if rank != np.ceil((len(array) - 1) * (percent / 100.0)):
        return  # numpy and we round the rank apart by one unit in the last place
    assert exact_high <= high <= exact_high + width
    assert exact_low - width <= low <= exact_low


def test_the_range_of_least_squares_is_the_best_of_a_fine_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(20_000, generator=generator)
    data[:4] = torch.tensor([9.0, -8.0, 7.0, 12.0])
    for text in ("s4", "s4 symmetric", "s8"):
        spec = QuantSpec.parse(text)

        def error(low: float, high: float, spec: QuantSpec = spec) -> float:
            scale, zero = qparams_from_range(torch.tensor(low), torch.tensor(high), spec)
            return float((fake_quantize(data, scale, zero, spec) - data).double().square().mean())

        low, high = (float(end[0]) for end in mse(Histogram.of(data[None]), spec))
        best = min(error(float(data.min()) * a, float(data.max()) * b) for a in GRID for b in GRID)
        width = float(Histogram.of(data[None]).width[0])
        assert error(low, high) ** 0.5 <= best**0.5 + width
        assert error(low, high) <= error(float(data.min()), float(data.max()))


GRID = [i / 25 for i in range(1, 26)]


ESTIMATORS: dict[str, Callable[[Histogram, QuantSpec], tuple[Tensor, Tensor]]] = {
    "mse": mse,
    "sqnr": sqnr,
    "entropy": entropy,
}


def rows(seed: int = 0) -> Tensor:
    """Channels of all kinds: normal, of one sign, constant, with an outlier, of few values."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(6, 3000, generator=generator)
    data[1] = data[1].abs()
    data[2] = -data[2].abs() - 0.5
    data[3] = 0.25
    data[4, 7] = 300.0
    data[5] = data[5].round()
    return data


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("text", ["s4", "s8 symmetric narrow", "s3 symmetric"])
def test_all_channels_at_once_are_each_alone(name: str, text: str) -> None:
    spec, data = QuantSpec.parse(text), rows()
    low, high = ESTIMATORS[name](Histogram.of(data), spec)
    for channel, values in enumerate(data):
        alone = ESTIMATORS[name](Histogram.of(values[None]), spec)
        assert (low[channel], high[channel]) == (alone[0][0], alone[1][0])
    # Only by least squares a range may be wider than the values, by less than an octave and what zero points round.
    wider = 1.0 if name == "entropy" else 2.2
    reach = wider * data.abs().amax(1)
    assert bool((low.clamp(max=0) >= -reach).all())
    assert bool((high.clamp(min=0) <= reach).all())


def test_clipping_costs_what_it_is_said_to_cost() -> None:
    histogram, spec = (
        Histogram.of(torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0))),
        QuantSpec.parse("s4"),
    )
    ends = [float(sqnr(histogram, spec, weight)[1]) for weight in (0.3, 1.0, 3.0, 30.0)]
    assert ends == sorted(ends)
    assert ends[0] < ends[2] < ends[3]
    assert torch.equal(torch.stack(sqnr(histogram, spec, 1.0)), torch.stack(mse(histogram, spec)))
    with pytest.raises(InputError, match="clipping=-1"):
        sqnr(histogram, spec, -1.0)


def test_the_entropy_gives_up_an_outlier() -> None:
    data = rows()[4:5]
    low, high = entropy(Histogram.of(data), QuantSpec.parse("s8"))
    assert float(high) < 100.0, "300 values: the bins, then a quarter wide, separate them"
    assert -5.0 < float(low) < -2.0


def test_the_divergence_is_that_of_the_definition() -> None:
    """Against plain loops, on one candidate after another."""
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(1, 1, 40, generator=generator, dtype=torch.float64).sort(2).values
    weights = torch.randint(1, 5, (1, 1, 40), generator=generator).to(torch.float64)
    points[..., 33:] = weights[..., 33:] = 0.0  # what a channel with fewer points than others ends with
    for limit, step in ((0.5, 0.25), (1.0, 0.5), (2.0, 0.1), (0.1, 0.1), (3.0, 4.0)):
        codes = torch.round(points / step)
        limited = codes.clamp(-limit / step, limit / step)
        found = float(_divergence(points, limited * step, weights, limited != codes))
        assert found == pytest.approx(divergence_by_loops(points, weights, limited, limited != codes), rel=1e-12)


def divergence_by_loops(points: Tensor, weights: Tensor, codes: Tensor, clipped: Tensor) -> float:
    table = zip(*(item.reshape(-1).tolist() for item in (points, weights, codes, clipped)), strict=True)
    entries = [entry for entry in sorted(table) if entry[1] > 0]
    inside = [entry for entry in entries if not entry[3]]
    p = [entry[1] for entry in inside]
    p[-1] += sum(weight for point, weight, _, out in entries if out and point > 0)
    p[0] += sum(weight for point, weight, _, out in entries if out and point <= 0)
    q = []
    for entry in inside:
        same = [other[1] for other in inside if other[2] == entry[2]]
        q.append(sum(same) / len(same))
    return float(sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)))


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        of([1.0], bins=1)
    with pytest.raises(InputError, match="non-empty float32 matrix"):
        Histogram.of(torch.zeros(3))
    with pytest.raises(InputError, match="equal numbers of channels and bins"):
        of([1.0]).merge(of([1.0], bins=8))
    with pytest.raises(InputError, match="percentile=50"):
        percentile(of([1.0]), 50.0)


@given(st.lists(floats, min_size=1, max_size=20), st.lists(floats, min_size=1, max_size=20), st.sampled_from([2, 16]))
def test_one_channel_is_laid_out_as_several(first: list[float], second: list[float], bins: int) -> None:
    """A single channel takes another way through the same arithmetic."""
    alone = of(first, bins).merge(of(second, bins))
    twice = [Histogram.of(torch.tensor([values, values], dtype=torch.float32), bins) for values in (first, second)]
    both = twice[0].merge(twice[1])
    for part in (*(part.name for part in fields(Histogram)), "exponent", "first"):
        assert torch.equal(getattr(both, part)[:1], getattr(alone, part)), part
