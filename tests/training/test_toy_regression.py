"""The regression of one weight: what oscillates, how often, and what stops it.

The optimum is d away from the next code, s is the scale: see `examples.qat.toy_regression`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.qat.toy_regression import PLOT, WAYS, Trace, Way, main, plot, regress
from qcompiler.training.estimators import (
    EWGS,
    PSG,
    DifferentiableSoftQuantization,
    Estimator,
    StackedSigmoid,
    StraightThrough,
)
from qcompiler.training.regularizers import BinRegularization, Dampening, L2ToGrid, Regularizer

STEPS, LAST = 360, 300


def is_still(trace: Trace) -> bool:
    return len(set(trace.codes)) == 1


@pytest.mark.parametrize("lr", [0.3, 0.01])
@pytest.mark.parametrize(("optimum", "scale", "frequency"), [(0.75, 1.0, 0.25), (0.9, 1.0, 0.1), (0.61, 0.2, 0.05)])
def test_frequency_is_distance_over_scale_whatever_the_learning_rate(
    optimum: float, scale: float, frequency: float, lr: float
) -> None:
    # From right below the threshold, so that small learning rates need no time to get there.
    threshold = (round(optimum / scale) + (0.5 if optimum / scale > round(optimum / scale) else -0.5)) * scale
    trace = regress(Way(), steps=STEPS, lr=lr, optimum=optimum, scale=scale, start=threshold).last(LAST)
    assert abs(trace.frequency - frequency) <= 1.5 / LAST
    # In the mean over time the quantized weight is the optimum that it never reaches.
    assert scale * sum(trace.codes) / LAST == pytest.approx(optimum, abs=2 * scale / LAST)


def test_learning_rate_scales_the_amplitude_alone() -> None:
    wide, narrow = (regress(Way(), steps=STEPS, lr=lr, start=0.5).last(LAST).weights for lr in (0.1, 0.01))
    ratio = (max(wide) - min(wide)) / (max(narrow) - min(narrow))
    assert ratio == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize(
    "estimator", [StraightThrough(), EWGS(), PSG(), DifferentiableSoftQuantization(), StackedSigmoid(5.0)], ids=repr
)
def test_no_multiplicative_estimator_stops_it(estimator: Estimator) -> None:
    trace = regress(Way(estimator), steps=STEPS, lr=0.02, start=0.5).last(LAST)
    assert not is_still(trace)
    assert trace.frequency == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("strength", "stops"),
    [(0.24, False), (0.26, True)],  # of d / s = 0.25
)
@pytest.mark.parametrize("regularizer", [Dampening("sum"), L2ToGrid("sum"), BinRegularization()], ids=repr)
def test_an_additive_penalty_stops_it_once_it_is_stronger_than_d_over_s(
    regularizer: Regularizer, strength: float, stops: bool
) -> None:
    trace = regress(Way(regularizer=regularizer, strength=strength), steps=STEPS, lr=0.02, start=0.49).last(LAST)
    assert is_still(trace) is stops
    if stops:
        assert trace.codes[0] == 1  # the nearer code


def test_too_strong_a_penalty_holds_the_farther_code_too() -> None:
    # From (s - d) / s = 0.75 on both codes hold.
    for strength, code in ((0.7, 1), (0.8, 0)):
        trace = regress(Way(regularizer=Dampening("sum"), strength=strength), steps=STEPS, lr=0.02, start=0.45)
        assert set(trace.last(LAST).codes) == {code}


def test_freezing_stops_it_at_the_code_of_most_steps() -> None:
    # Two of four steps change the code, so that the frequency that is tracked tends to 0.5: by the time that it passes
    # 0.45 the average of the codes has forgotten where it began.
    for optimum, code in ((0.75, 1), (0.25, 0)):
        trace = regress(Way(threshold=0.45), steps=STEPS, lr=0.02, optimum=optimum, start=0.5)
        assert set(trace.codes[:200]) == {0, 1}
        assert set(trace.last(100).codes) == {code}
    free = regress(Way(threshold=0.55), steps=STEPS, lr=0.02, start=0.5)
    assert not is_still(free.last(100))


def test_of_the_plot_dampening_and_freezing_alone_settle() -> None:
    for name, way in WAYS.items():
        trace = regress(way, steps=300, lr=0.02, start=0.5, momentum=0.02)
        assert is_still(trace.last(100)) == (name in ("dampening", "freezing"))
        assert len(set(trace.codes)) == 2


def test_the_committed_plot_is_the_one_that_the_program_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--output", str(tmp_path / "plot.svg")])
    assert "expected: 0.25" in capsys.readouterr().out
    assert (tmp_path / "plot.svg").read_text() == plot() == PLOT.read_text()
