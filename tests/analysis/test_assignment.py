"""Assignments of widths: the integer program finds what trying all assignments finds."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import milp

from qcompiler.analysis.assignment import Operator, Problem, Table
from qcompiler.errors import QCompilerError


def every(problem: Problem) -> Iterator[tuple[int, ...]]:
    """All assignments, tried one by one."""
    return itertools.product(*problem.noise)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to five groups of up to three widths; operators with one or two resources, some pairs of widths impossible."""
    count = draw(st.integers(1, 5))
    numbers = st.integers(0, 1000)
    widths = [
        tuple(sorted(draw(st.sets(st.sampled_from([2, 4, 8, 16]), min_size=1, max_size=3)))) for _ in range(count)
    ]
    noise = tuple({width: draw(numbers) / 7.0 for width in item} for item in widths)

    def table() -> Table:
        groups = tuple(draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=2, unique=True)))
        values = {pair: float(draw(numbers)) for pair in itertools.product(*(widths[group] for group in groups))}
        if len(values) > 1 and draw(st.booleans()):
            values.pop(draw(st.sampled_from(sorted(values))))
        return Table(groups, values)

    operators = tuple(
        Operator(tuple(tuple(table() for _ in range(draw(st.integers(1, 2)))) for _ in range(draw(st.integers(1, 2)))))
        for _ in range(draw(st.integers(1, 4)))
    )
    return Problem(noise, operators)


@given(problems(), st.floats(0.0, 1.0))
def test_every_budget_gives_what_brute_force_gives(problem: Problem, share: float) -> None:
    possible = [widths for widths in every(problem) if math.isfinite(problem.cost(widths))]
    if not possible:
        with pytest.raises(QCompilerError, match="no assignment of widths is possible"):
            problem.cheapest()
        return
    costs = sorted(map(problem.cost, possible))
    assert problem.cost(problem.cheapest()) == costs[0]
    # Between two costs, where no rounding of the solver decides.
    budget = costs[int(share * (len(costs) - 1))] + 0.5
    within = [widths for widths in possible if problem.cost(widths) <= budget]
    found = problem.best(budget)
    assert found is not None
    assert problem.cost(found) <= budget
    assert problem.expected(found) == pytest.approx(min(map(problem.expected, within)), abs=1e-6)
    assert problem.best(costs[0] - 0.5) is None
    free = problem.best()
    assert free is not None
    assert problem.expected(free) == pytest.approx(min(map(problem.expected, possible)), abs=1e-6)


def test_tiny_noise_is_told_apart() -> None:
    noise = ({8: 1e-3, 16: 1e-9}, {8: 3e-9, 16: 1e-9}, {8: 2e-9, 16: 1e-9})
    operators = tuple(Operator(((Table((group,), {(8,): 8.0, (16,): 16.0}),),)) for group in range(3))
    assert Problem(noise, operators).best(40.0) == (16, 16, 8)


def test_the_cheaper_of_two_equal_assignments_is_chosen() -> None:
    problem = Problem(({8: 0.0, 16: 0.0},), (Operator(((Table((0,), {(8,): 1.0, (16,): 2.0}),),)),))
    assert problem.best() == (8,)
    assert problem.best(1.5) == (8,)


def test_what_the_solver_prints_is_discarded(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As HiGHS does where it repairs a solution: natively, past `sys.stdout`."""

    def talkative(*arguments: Any, **options: Any) -> Any:
        os.write(1, b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();\n")
        return milp(*arguments, **options)

    monkeypatch.setattr("qcompiler.analysis.assignment.milp", talkative)
    problem = Problem(({8: 1.0, 16: 0.0},), (Operator(((Table((0,), {(8,): 1.0, (16,): 2.0}),),)),))
    assert problem.best() == (16,)
    os.write(1, b"seen")
    assert capfd.readouterr() == ("seen", "")


def test_the_slowest_resource_counts() -> None:
    compute = Table((0,), {(8,): 10.0, (16,): 20.0})
    memory = Table((1,), {(4,): 15.0, (8,): 30.0})
    problem = Problem(({8: 2.0, 16: 1.0}, {4: 2.0, 8: 1.0}), (Operator(((compute,), (memory,))),))
    assert problem.cost((8, 4)) == 15.0
    assert problem.best(20.0) == (16, 4)
    assert problem.best(30.0) == (16, 8)
