"""Every range estimator against a plain loop, and in streams that stay and that change."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.quant.affine import qparams_from_range, quantize
from qcompiler.quant.spec import QuantSpec
from qcompiler.training.range_estimators import (
    DSGC,
    ESTIMATORS,
    InHindsight,
    InHindsightMax,
    RangeEstimator,
    Running,
    cosine_distance,
    range_estimator,
)
from qcompiler.training.tracker import RangeTracker, move, qparams_of

SPEC, SYMMETRIC = QuantSpec(8), QuantSpec(8, symmetric=True, narrow=True)
ETA = 0.9


def spec_of(estimator: RangeEstimator) -> QuantSpec:
    """A grid that covers the range of an estimator without a shift by half a step."""
    return SYMMETRIC if isinstance(estimator, InHindsightMax) else SPEC


def stream(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(50, generator=generator) * (1 + step % 3) + 0.3 for step in range(count)]


def ranges(estimator: RangeEstimator, tensors: list[Tensor], given: Tensor | None = None) -> list[tuple[float, float]]:
    """Low and high end of the range used for each tensor, from scale and zero point."""
    tracker, spec = RangeTracker(estimator, given), spec_of(estimator)
    found = []
    for x in tensors:
        scale, zero_point = tracker.state.grid(*estimator.measured(x, spec, tracker.count), spec, estimator)
        found.append((float((spec.qmin - zero_point) * scale), float((spec.qmax - zero_point) * scale)))
        move([tracker])
    return found


def on_grid(low: float, high: float, spec: QuantSpec = SPEC) -> tuple[float, float]:
    """The ends of the grid over a range."""
    scale, zero_point = qparams_from_range(low, high, spec)
    return float((spec.qmin - zero_point) * scale), float((spec.qmax - zero_point) * scale)


def plain(name: str, tensors: list[Tensor], given: tuple[float, float] | None = None) -> Iterator[tuple[float, float]]:
    """The formulas of the module text, one number at a time."""
    state = given
    for x in tensors:
        low, high = min(x.tolist()), max(x.tolist())
        if name == "in_hindsight_max":
            high = max(abs(low), abs(high))
            low = -high
        average = (low, high)
        if state is not None:
            average = (
                (1 - ETA) * low + ETA * state[0],
                (1 - ETA) * high + ETA * state[1],
            )
        if state is None or name == "current":
            used = (low, high)
        elif name == "running":
            used = average
        else:
            used = state
        yield on_grid(*used, spec_of(range_estimator(name)))
        state = (state or (low, high)) if name == "fixed" else average


@pytest.mark.parametrize("given", [None, (-2.0, 4.0)])
@pytest.mark.parametrize("name", sorted({*ESTIMATORS} - {"dsgc"}))
def test_an_estimator_is_its_formula(name: str, given: tuple[float, float] | None) -> None:
    tensors = stream(8)
    start = None if given is None else torch.tensor([-given[0], given[1]])
    found = ranges(range_estimator(name, ETA), tensors, start)
    for got, expected in zip(found, plain(name, tensors, given), strict=True):
        assert got == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_golden_section_finds_the_clip_of_least_distance(seed: int) -> None:
    x = stream(1, seed)[0]
    x[0] = 40.0  # without a clip, most elements are within a few steps of 0
    spec = QuantSpec(4)
    clip, distance = DSGC().search(x, spec)

    def plain_distance(limit: float) -> float:
        low, high = max(float(x.min()), -limit), min(float(x.max()), limit)
        scale, zero_point = qparams_from_range(min(low, 0.0), max(high, 0.0), spec)
        y = (quantize(x, scale, zero_point, spec) - zero_point) * scale
        dot = sum(float(a) * float(b) for a, b in zip(x, y, strict=True))
        return 1 - dot / math.sqrt(sum(float(a) ** 2 for a in x) * sum(float(b) ** 2 for b in y))

    assert distance == pytest.approx(plain_distance(clip), abs=1e-6)
    assert distance <= plain_distance(40.0) + 1e-9
    # The distance is not unimodal: the search must come near to the best of a fine scan, not reach it.
    best = min(plain_distance(40.0 * part / 200) for part in range(1, 201))
    assert distance <= 1.25 * best + 1e-6


def test_dsgc_searches_every_n_steps_and_keeps_the_clip_in_between() -> None:
    estimator = DSGC(every=3)
    tensors = stream(7)
    found = ranges(estimator, tensors)
    for step, got in enumerate(found):
        x = tensors[step - step % 3]
        clip, _ = estimator.search(x, SPEC)
        assert got == pytest.approx(on_grid(max(float(x.min()), -clip), min(float(x.max()), clip)), rel=2e-5)


def test_dsgc_slows_the_layer_by_its_distance() -> None:
    estimator = DSGC(slows=True)
    tracker = RangeTracker(estimator)
    x = stream(1)[0]
    distance = estimator.search(x, QuantSpec(2))[1]
    tracker.state.grid(*estimator.measured(x, QuantSpec(2), tracker.count), QuantSpec(2), estimator)
    assert float(tracker.factor) == pytest.approx(max(math.exp(-20 * distance), 0.1))
    assert "factor" in tracker.state_dict()
    assert "factor" not in RangeTracker(DSGC()).state_dict()


def test_hindsight_and_running_converge_to_one_value_in_a_stationary_stream() -> None:
    x = torch.linspace(-1.0, 2.0, 31)
    start = torch.tensor([10.0, 10.0])
    hindsight, running = (ranges(item(ETA), [x] * 200, start) for item in (InHindsight, Running))
    assert hindsight[-1] == pytest.approx(running[-1], rel=1e-6)
    assert hindsight[-1] == pytest.approx(on_grid(-1.0, 2.0), rel=1e-6)
    # The same sequence, one step later.
    for late, early in zip(hindsight[1:], running, strict=False):
        assert late == pytest.approx(early, rel=1e-6)


def test_after_a_change_hindsight_lags_by_one_step_and_clips_at_most_one_step_more() -> None:
    before, after = torch.linspace(-1.0, 1.0, 21), torch.linspace(-4.0, 4.0, 21)
    tensors = [before] * 30 + [after] * 60
    hindsight, running = (ranges(item(ETA), tensors) for item in (InHindsight, Running))
    for late, early in zip(hindsight[1:], running[:-1], strict=True):
        assert late == pytest.approx(early, rel=1e-6)

    def clipped(found: list[tuple[float, float]], below: float) -> int:
        """Number of steps whose range ends more than `below` before the tensor."""
        return sum(high < float(x.max()) - below for x, (_, high) in zip(tensors, found, strict=True))

    for below in (0.05, 0.5, 2.0):
        assert clipped(running, below) <= clipped(hindsight, below) <= clipped(running, below) + 1
    assert clipped(hindsight, 0.5) > clipped(running, 0.5)


def test_a_range_of_zeros_is_no_range() -> None:
    zeros, x = torch.zeros(5), torch.tensor([-1.0, 3.0])
    for name in ESTIMATORS:
        low = -3.0 if name == "in_hindsight_max" else -1.0
        expected = on_grid(low, 3.0, spec_of(range_estimator(name)))
        found = ranges(range_estimator(name), [zeros, x, x])
        assert found[1] == pytest.approx(expected, rel=1e-6), name
        assert found[2] == pytest.approx(expected, rel=0.02), name


def test_micro_batches_merge_and_move_once() -> None:
    parts, whole = stream(4), torch.cat(stream(4))
    one, other = RangeTracker(InHindsight(ETA)), RangeTracker(InHindsight(ETA))
    for tracker, tensors in ((one, parts), (other, [whole])):
        for x in tensors:
            tracker.state.collect(tracker.estimator.measured(x, SPEC, tracker.count)[0])
        move([tracker])
    assert torch.equal(one.reach, other.reach)
    assert int(one.count) == 1


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_tensor_that_is_not_finite_stays_so_and_moves_no_range(bad: float) -> None:
    estimator = InHindsight()
    tracker = RangeTracker(estimator, torch.tensor([1.0, 1.0]))
    x = torch.tensor([0.5, bad])
    scale, _ = tracker.state.grid(*estimator.measured(x, SPEC, tracker.count), SPEC, estimator)
    assert bool(scale.isnan())
    move([tracker])
    assert tracker.reach.tolist() == [1.0, 1.0]
    assert int(tracker.count) == 0


def test_many_ranges_move_as_each_alone() -> None:
    kinds = [range_estimator(name) for name in ESTIMATORS for _ in range(2)]
    together, alone = [RangeTracker(kind) for kind in kinds], [RangeTracker(kind) for kind in kinds]
    for step in range(5):
        for place, (one, other) in enumerate(zip(together, alone, strict=True)):
            if place == 3 and step == 2:
                continue  # a layer that got no gradient keeps its range
            x = stream(1, seed=10 * step + place)[0]
            for tracker in (one, other):
                tracker.state.collect(tracker.estimator.measured(x, SPEC, tracker.count)[0])
        move(together)
        for tracker in alone:
            move([tracker])
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.reach, other.reach)
        assert bool(one.reach.isfinite().all())


def test_cosine_distance() -> None:
    x = torch.tensor([3.0, 4.0])
    assert float(cosine_distance(x, 2 * x)) == pytest.approx(0.0, abs=1e-12)
    assert float(cosine_distance(x, torch.tensor([4.0, -3.0]))) == pytest.approx(1.0)
    assert float(cosine_distance(0 * x, 0 * x)) == 0.0
    assert float(cosine_distance(x, 0 * x)) == 1.0


def test_refuses_names_and_numbers_that_are_none() -> None:
    with pytest.raises(InputError, match="Did you mean 'in_hindsight'"):
        range_estimator("in_hindsigt")
    with pytest.raises(InputError, match=r"momentum=1.0"):
        range_estimator("running", 1.0)
    with pytest.raises(InputError, match=r"every=0"):
        DSGC(every=0)
    with pytest.raises(InputError, match=r"beta=0.0"):
        DSGC(beta=0.0)


def test_symmetric_grids_take_the_larger_end() -> None:
    scale, zero_point = qparams_of(torch.tensor([1.0, 3.0]), QuantSpec(8, symmetric=True, narrow=True))
    assert float(scale) == pytest.approx(3.0 / 127)
    assert int(zero_point) == 0
