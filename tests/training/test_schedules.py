"""Schedules at their corners."""

from __future__ import annotations

import math

import pytest

from qcompiler.errors import InputError
from qcompiler.training.schedules import Constant, Cosine, Schedule, as_schedule


def test_cosine_goes_from_start_to_end() -> None:
    schedule = Cosine(0.1, 0.01, begin=0.25)
    assert schedule(0, 100) == schedule(24, 100) == schedule(25, 100) == pytest.approx(0.1)
    assert schedule(100, 100) == schedule(1000, 100) == pytest.approx(0.01)
    for step in range(25, 100):
        expected = 0.01 + 0.5 * 0.09 * (1 + math.cos(math.pi * (step - 25) / 75))
        assert schedule(step, 100) == pytest.approx(expected)
        assert schedule(step + 1, 100) < schedule(step, 100)


def test_cosine_may_be_off_before_it_begins() -> None:
    schedule = Cosine(0.1, 0.01, before=0.0)
    assert [schedule(step, 8) for step in (0, 1)] == [0.0, 0.0]
    assert schedule(2, 8) == pytest.approx(0.1)


def test_cosine_needs_the_number_of_steps() -> None:
    with pytest.raises(InputError, match="total_steps"):
        Cosine(0.0, 1.0)(3, None)
    with pytest.raises(InputError, match="begin"):
        Cosine(0.0, 1.0, begin=1.0)


def test_a_number_is_a_schedule() -> None:
    assert as_schedule(0.3)(7, None) == 0.3
    schedule = Constant(2.0)
    assert as_schedule(schedule) is schedule
    assert isinstance(schedule, Schedule)


def test_a_constant_may_begin_later() -> None:
    schedule = Constant(2.0, begin=0.3)
    assert [schedule(step, 10) for step in (0, 2, 3, 10)] == [0.0, 0.0, 2.0, 2.0]
    assert Constant(2.0, begin=0.5, before=7.0)(1, 4) == 7.0
    assert Constant(2.0)(0, None) == 2.0
    with pytest.raises(InputError, match="total_steps"):
        schedule(0, None)
    with pytest.raises(InputError, match="begin"):
        Constant(1.0, begin=-0.1)
