"""The choice of copies against all choices there are."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from qcompiler.passes.common.joined_grids import JoinedGrids, Operand, Reading, step_of, union
from qcompiler.quant.spec import QuantSpec

SPEC = QuantSpec(bits=8, signed=True)


def grids(seed: int, operands: int, joins: int) -> JoinedGrids:
    """Random operands with ranges over four decades, each read by some joins and by other nodes."""
    source = random.Random(seed)
    items = []
    readings = {}
    for number in range(operands):
        high = 10.0 ** source.uniform(-2.0, 2.0)
        costs = {}
        for join in source.sample(range(joins), source.randint(1, joins)):
            costs[join] = 10.0 ** source.uniform(-3.0, 0.0)
            readings[number, join] = Reading(costs[join])
        other = 10.0 ** source.uniform(-3.0, 0.0) if source.random() < 0.7 else 0.0
        items.append(Operand((-high * source.random(), high), sum(costs.values()) + other))
    used = sorted({join for _, join in readings})
    readings = {(number, used.index(join)): reading for (number, join), reading in readings.items()}
    ranges = [union(items[number].range for number, join in readings if join == index) for index in range(len(used))]
    return JoinedGrids(SPEC, items, ranges, readings)


def price(subject: JoinedGrids, least: float) -> float:
    return subject.noise() + least * len(subject.copied)


def test_a_copy_costs_what_the_formula_says() -> None:
    small, large = Operand((0.0, 1.0), 3.0), Operand((0.0, 100.0), 1.0)
    subject = JoinedGrids(SPEC, [small, large], [(0.0, 100.0)], {(0, 0): Reading(0.5), (1, 0): Reading(1.0)})
    fine, coarse = step_of(0.0, 1.0, SPEC), step_of(0.0, 100.0, SPEC)
    assert subject.noise() == pytest.approx(coarse**2 / 12 * 4.0)
    assert (subject.shared_step(0), subject.own_step(0)) == (coarse, fine)
    subject.choose(0.0, 1.25)
    assert subject.copied == {(0, 0)}
    assert subject.noise() == pytest.approx((fine**2 * 3.0 + coarse**2 * 0.5 + coarse**2 * 1.0) / 12)
    assert subject.shared_step(0) == fine


def test_a_copy_that_gains_less_than_its_price_is_not_chosen() -> None:
    small, large = Operand((0.0, 1.0), 1e-3), Operand((0.0, 100.0), 1.0)
    for least, copied in ((0.0, {(0, 0)}), (1.0, set())):
        subject = JoinedGrids(SPEC, [small, large], [(0.0, 100.0)], {(0, 0): Reading(0.0), (1, 0): Reading(1.0)})
        subject.choose(least, 1.25)
        assert subject.copied == copied


def test_an_operand_without_other_readers_has_no_copy() -> None:
    small, large = Operand((0.0, 1.0), 2.0), Operand((0.0, 100.0), 1.0)
    subject = JoinedGrids(SPEC, [small, large], [(0.0, 100.0)], {(0, 0): Reading(2.0), (1, 0): Reading(1.0)})
    subject.choose(0.0, 1.25)
    assert not subject.copied


@pytest.mark.parametrize("seed", range(40))
def test_the_search_is_near_the_best_of_all_choices(seed: int) -> None:
    operands, joins = 2 + seed % 4, 1 + seed % 3
    subject = grids(seed, operands, joins)
    shared = subject.noise()
    least = shared * 1e-3
    widest = [subject._widest_of(join) for join in range(len(subject.joins))]
    free = [edge for edge in subject.readings if widest[edge[1]] != edge[0]]
    best = math.inf
    for count in range(min(len(free), 8) + 1):
        for chosen in itertools.combinations(free, count):
            other = JoinedGrids(subject.spec, subject.operands, subject.joins, subject.readings, set(chosen))
            best = min(best, price(other, least))
    subject.choose(least, 1.0)
    found = price(subject, least)
    assert found <= shared * (1 + 1e-9), "never above the noise without copies"
    assert found <= 1.5 * best
    again = JoinedGrids(subject.spec, subject.operands, subject.joins, subject.readings, set(subject.copied))
    assert again.noise() == pytest.approx(subject.noise()), "kept steps are those of a new search"


def test_a_thousand_operands_of_one_join_take_seconds() -> None:
    source = random.Random(0)
    items = [Operand((0.0, 10.0 ** source.uniform(-3.0, 3.0)), 2.0) for _ in range(1000)]
    readings = {(number, 0): Reading(1.0) for number in range(1000)}
    subject = JoinedGrids(SPEC, items, [union(item.range for item in items)], readings)
    subject.choose(0.0, 1.25)
    assert len(subject.copied) > 900
