"""Widths of all groups at once: the least expected noise for a budget of cost, by integer programming.

    minimize    sum over groups g of noise[g, width of g]
    subject to  sum over operators o of max over resources r of (sum of tables of o and r)  <=  budget

A table gives the cost for the widths of one group, or of two: a product of an activation and a weight costs a * w. One
binary variable stands for each width of a group; a product of two of them is a continuous variable whose sums over
either side equal these binaries, so that it is exact for binary values. A largest of several sums is a variable that is
at least as large as each.

Source: for the formulation of widths as an integer program, Yao et al. 2021, HAWQ-V3, arXiv:2011.10680, section 3.4.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from qcompiler.errors import QCompilerError

__all__ = ["Operator", "Problem", "Table"]

NOISE_SCALE = 1e6
"""Objective of the noisiest assignment: the solver stops at an absolute gap of 1e-6."""
TIE = 1e-4
"""Objective of the dearest assignment, so that the cheaper one of two assignments with the same noise is chosen."""
SLACK = 1e-6
"""Share of the budget by which the solver's tolerance may exceed it; then the budget is lowered by as much."""

Widths = tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """The cost of an operator that depends on the widths of one or two groups.

    Args:
        groups: Numbers of one group, or of two different ones.
        values: Cost by the widths of these groups; widths that are missing are impossible.
    """

    groups: tuple[int, ...]
    values: Mapping[Widths, float]

    def of(self, widths: Sequence[int]) -> float:
        """The cost for the widths of all groups; infinite if they are impossible."""
        return self.values.get(tuple(widths[group] for group in self.groups), math.inf)


@dataclass(frozen=True)
class Operator:
    """The cost of an operator: the largest of the sums of its resources, which work at the same time.

    Args:
        resources: Tables by resource.
    """

    resources: tuple[tuple[Table, ...], ...]

    def of(self, widths: Sequence[int]) -> float:
        """The cost for the widths of all groups."""
        return max((sum(table.of(widths) for table in tables) for tables in self.resources), default=0.0)


@dataclass(frozen=True)
class Problem:
    """Groups with their possible widths, noise and costs.

    Args:
        noise: Expected noise by width, for each group; its keys are the possible widths.
        operators: Costs.
    """

    noise: tuple[Mapping[int, float], ...]
    operators: tuple[Operator, ...]

    def cost(self, widths: Sequence[int]) -> float:
        """The cost of an assignment; infinite if it is impossible."""
        return sum(operator.of(widths) for operator in self.operators)

    def expected(self, widths: Sequence[int]) -> float:
        """The expected noise of an assignment."""
        return sum(noise[width] for noise, width in zip(self.noise, widths, strict=True))

    def cheapest(self) -> Widths:
        """The assignment with the least cost.

        Raises:
            QCompilerError: No assignment is possible.
        """
        found = self._solved(None, noise=0.0, cost=NOISE_SCALE)
        if found is None:
            raise QCompilerError("no assignment of widths is possible", fix="Allow more candidates.")
        return found

    def best(self, budget: float | None = None) -> Widths | None:
        """The assignment with the least expected noise; None if none is within the budget.

        Args:
            budget: Largest cost; None for any.
        """
        found = self._solved(budget, noise=NOISE_SCALE, cost=TIE)
        if budget is None or found is None or self.cost(found) <= budget:
            return found
        return self._solved(budget * (1.0 - SLACK), noise=NOISE_SCALE, cost=TIE)

    def _solved(self, budget: float | None, *, noise: float, cost: float) -> Widths | None:
        """The assignment with the least weighted sum of noise and cost.

        Args:
            budget: Largest cost.
            noise: Weight of the noise, as a share of the largest one.
            cost: Weight of the cost, as a share of the largest one.
        """
        program = self._program
        objective = noise * program.noise + cost * program.cost
        bounds = Bounds(np.zeros(len(objective)), program.upper)
        constraints = list(program.constraints)
        if budget is not None:
            row = csr_array(program.cost[None, :])
            constraints.append(LinearConstraint(row, -np.inf, budget / program.largest_cost))
        with _silent_stdout():
            found = milp(
                objective,
                integrality=program.integrality,
                bounds=bounds,
                constraints=constraints,
                options={"mip_rel_gap": 0.0},
            )
        if found.x is None:
            return None
        return tuple(
            max(columns, key=lambda width, columns=columns: float(found.x[columns[width]]))  # type: ignore[misc]
            for columns in program.columns
        )

    @functools.cached_property
    def _program(self) -> _Program:
        return _Program(self)


class _Program:
    """Matrices of the integer program; noise and cost are shares of their largest values."""

    def __init__(self, problem: Problem) -> None:
        self.columns: list[dict[int, int]] = []
        self.count = 0
        for noise in problem.noise:
            self.columns.append({width: self._column() for width in noise})
        binaries = self.count
        self.pairs: dict[tuple[int, ...], dict[Widths, int]] = {}
        self.impossible: set[int] = set()
        self.rows: list[tuple[dict[int, float], float, float]] = []  # coefficients, lower and upper limit
        for columns in self.columns:
            self.rows.append((dict.fromkeys(columns.values(), 1.0), 1.0, 1.0))
        costs: dict[int, float] = {}
        self.largest_cost = _largest_cost(problem)
        for operator in problem.operators:
            self._add_operator(operator, costs)
        self.integrality = np.array([1.0] * binaries + [0.0] * (self.count - binaries))
        self.upper = np.array([1.0] * binaries + [np.inf] * (self.count - binaries))
        self.upper[list(self.impossible)] = 0.0
        self.cost = np.zeros(self.count)
        for column, value in costs.items():
            self.cost[column] = value
        self.noise = np.zeros(self.count)
        largest = sum(max(noise.values()) for noise in problem.noise) or 1.0
        for noise, columns in zip(problem.noise, self.columns, strict=True):
            for width, column in columns.items():
                self.noise[column] = noise[width] / largest
        self.constraints = (self._constraint(),)

    def _column(self) -> int:
        self.count += 1
        return self.count - 1

    def _add_operator(self, operator: Operator, costs: dict[int, float]) -> None:
        sums = [self._sum(tables) for tables in operator.resources]
        if len(sums) == 1:
            for column, value in sums[0].items():
                costs[column] = costs.get(column, 0.0) + value
        elif sums:
            largest = self._column()
            costs[largest] = 1.0
            for found in sums:
                self.rows.append(({**found, largest: -1.0}, -np.inf, 0.0))

    def _sum(self, tables: Sequence[Table]) -> dict[int, float]:
        """Coefficients of a sum of tables, as shares of the largest cost."""
        found: dict[int, float] = {}
        for table in tables:
            columns = self._columns_of(table.groups)
            for widths, column in columns.items():
                if widths in table.values:
                    found[column] = found.get(column, 0.0) + table.values[widths] / self.largest_cost
                else:
                    self.impossible.add(column)
        return found

    def _columns_of(self, groups: tuple[int, ...]) -> dict[Widths, int]:
        """Variables by the widths of one or two groups."""
        if len(groups) == 1:
            return {(width,): column for width, column in self.columns[groups[0]].items()}
        if groups not in self.pairs:
            first, second = (self.columns[group] for group in groups)
            found: dict[Widths, int] = {(a, b): self._column() for a in first for b in second}
            for a, column in first.items():
                self.rows.append(({**{found[a, b]: 1.0 for b in second}, column: -1.0}, 0.0, 0.0))
            for b, column in second.items():
                self.rows.append(({**{found[a, b]: 1.0 for a in first}, column: -1.0}, 0.0, 0.0))
            self.pairs[groups] = found
        return self.pairs[groups]

    def _constraint(self) -> LinearConstraint:
        entries = [(row, column, value) for row, (found, *_) in enumerate(self.rows) for column, value in found.items()]
        rows, columns, values = (np.array(part) for part in zip(*entries, strict=True))
        matrix = csr_array((values, (rows, columns)), shape=(len(self.rows), self.count))
        return LinearConstraint(matrix, [row[1] for row in self.rows], [row[2] for row in self.rows])


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Discard what native code prints: HiGHS reports repaired solutions, whatever its options are.

    A line on stdout would spoil the JSON of a command.
    """
    try:
        kept = os.dup(1)
    except OSError:  # the process has no stdout
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(null)
        os.close(kept)


def _largest_cost(problem: Problem) -> float:
    """An upper bound of the cost of all possible assignments."""

    def largest(operator: Operator) -> Iterator[float]:
        for tables in operator.resources:
            yield sum(max(table.values.values(), default=0.0) for table in tables)

    return sum(max(largest(operator), default=0.0) for operator in problem.operators) or 1.0
