"""Expected noise of tensors that share a grid because an operator joins them, with and without requantized copies.

A concat reads tensors on one grid, whose range is that of all of them. An operand either has this grid, for all of its
readers, or keeps its own grid, and the concat reads a copy on the shared one. With the sensitivity G of the outputs to
an operand and G_join to the part of it that the concat reads,

    shared    step_shared^2 / 12 * G
    copied    step_own^2 / 12 * G  +  step_shared^2 / 12 * G_join

so a copy helps the other readers of an operand whose range is much smaller than that of the whole. Joins that have an
operand in common have one grid, unless a copy is between them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.spec import QuantSpec

SWEEPS = 3
"""Largest number of visits of each operand: a copy changes what other copies gain."""

Range = tuple[float, float]
"""Lowest and highest value."""
Edge = tuple[int, int]
"""An operand and a join that reads it."""


@dataclass(frozen=True)
class Operand:
    """Tensors that have one grid with or without copies.

    Args:
        range: Range of the values.
        sensitivity: Sensitivity of the outputs to independent errors of the elements, for all readers.
    """

    range: Range
    sensitivity: float


@dataclass(frozen=True)
class Reading:
    """The part of an operand that one join reads.

    Args:
        sensitivity: Sensitivity of the outputs to errors of the elements on this way only.
        copies: Number of copies that it takes.
        fixed: Whether there cannot be a copy.
    """

    sensitivity: float
    copies: int = 1
    fixed: bool = False


@functools.lru_cache(maxsize=65536)
def step_of(low: float, high: float, spec: QuantSpec) -> float:
    """The step of the grid for a range."""
    if spec.symmetric and not spec.signed:
        low = 0.0
    return float(qparams_from_range(min(low, 0.0), max(high, 0.0), spec)[0])


def union(ranges: Iterable[Range]) -> Range:
    """The range of several tensors."""
    items = list(ranges)
    return min(low for low, _ in items), max(high for _, high in items)


@dataclass
class JoinedGrids:
    """Operands and joins that are connected with each other, and the copies that were chosen.

    Args:
        spec: The grid, without scale and zero point.
        operands: The operands.
        joins: Ranges of the joins, which include all of their operands.
        readings: By operand and join.
        copied: The chosen copies.
    """

    spec: QuantSpec
    operands: Sequence[Operand]
    joins: Sequence[Range]
    readings: Mapping[Edge, Reading]
    copied: set[Edge] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._read_by: list[list[int]] = [[] for _ in self.operands]
        self._reads: list[list[int]] = [[] for _ in self.joins]
        for operand, join in self.readings:
            self._read_by[operand].append(join)
            self._reads[join].append(operand)
        for joins in self._read_by:
            joins.sort(key=lambda join: self._step(self.joins[join]))
        # The widest operand of a join keeps the shared grid, so that the join has one.
        self._widest = list(map(self._widest_of, range(len(self.joins))))
        self._wide: dict[int, float] = {}

    def noise(self) -> float:
        """Expected noise of all operands and copies."""
        return self._noise_of(range(len(self.operands)))

    def own_step(self, operand: int) -> float:
        """The step of an operand with a grid of its own."""
        return self._step(self.operands[operand].range)

    def shared_step(self, operand: int) -> float:
        """The current step of an operand."""
        kept = next((join for join in self._read_by[operand] if (operand, join) not in self.copied), None)
        return self.own_step(operand) if kept is None else self.step_at(kept)

    def step_at(self, join: int) -> float:
        """The step of the grid of a join."""
        if join not in self._wide:
            found = self._connected(self._widest[join])
            self._wide.update(dict.fromkeys(found[1], self._step(self._range_of(found))))
        return self._wide[join]

    def candidates(self, ratio: float) -> list[int]:
        """The operands whose shared step is more than `ratio` times their own, and which may have copies."""
        apart = [item for item in range(len(self.operands)) if any(map(self._may_copy, self._edges(item)))]
        return [item for item in apart if self.shared_step(item) > ratio * self.own_step(item)]

    def choose(self, least: float, ratio: float) -> None:
        """Choose the copies that each lower the noise by at least `least`; see `candidates` for `ratio`."""
        waiting = self.candidates(ratio)
        gains = {item: self._best(item, least)[0] for item in waiting}
        waiting.sort(key=lambda item: -gains[item])  # stable: equal gains in the order of the graph
        for _ in range(SWEEPS):
            before = set(self.copied)
            for operand in waiting:
                self._set(operand, self._best(operand, least)[1])
            self._part_joins(least, ratio)
            if self.copied == before:
                return

    def _best(self, operand: int, least: float) -> tuple[float, frozenset[Edge]]:
        """The gain of the best copies of an operand over the current ones, less `least` for each, and these copies."""
        edges = self._edges(operand)
        now = frozenset(edges) & self.copied
        possible = [edge for edge in edges if self._may_copy(edge)]
        # Joins in the order of their ranges: those with the largest ranges read copies.
        choices = [frozenset(possible[first:]) for first in range(len(possible) + 1)]
        choices += [now ^ {edge} for edge in possible]
        costs = {choice: self._cost(operand, choice, least) for choice in dict.fromkeys((now, *choices))}
        best = min(costs, key=lambda choice: (costs[choice], choice != now))
        return costs[now] - costs[best], best

    def _part_joins(self, least: float, ratio: float) -> None:
        """Give joins copies of all their operands but the widest where that pays, which no single copy may show."""
        for join, operands in enumerate(self._reads):
            several = [item for item in operands if len(self._read_by[item]) > 1]
            if len(several) < 2 or not any(self.shared_step(item) > ratio * self.own_step(item) for item in operands):
                continue
            before, now = set(self.copied), self.noise()
            for item in operands:
                if self._may_copy((item, join)):
                    self._set(item, frozenset({*self.copied.intersection(self._edges(item)), (item, join)}))
            added = sum(self.readings[edge].copies for edge in self.copied - before)
            if now - self.noise() < least * added:
                self.copied.clear()
                self.copied.update(before)
                self._wide.clear()

    def _cost(self, operand: int, choice: frozenset[Edge], least: float) -> float:
        """The noise that depends on a choice, and the price of its copies."""
        price = least * sum(self.readings[edge].copies for edge in choice)
        edges = self._edges(operand)
        if len(edges) == 1:  # the grid of the only join is the same with and without a copy
            wide = self.step_at(edges[0][1])
            item = self.operands[operand]
            if not choice:
                return price + wide**2 / 12.0 * item.sensitivity
            own = self.own_step(operand) ** 2 * item.sensitivity
            return price + (own + wide**2 * self.readings[edges[0]].sensitivity) / 12.0
        now = frozenset(edges) & self.copied
        touched = self._component(operand)
        self._set(operand, choice)
        noise = self._noise_of(touched)
        self._set(operand, now)
        return price + noise

    def _set(self, operand: int, chosen: frozenset[Edge]) -> None:
        """Replace the copies of an operand."""
        edges = self._edges(operand)
        if self.copied.intersection(edges) == chosen:
            return
        self.copied.difference_update(edges)
        self.copied.update(chosen)
        if len(edges) > 1:  # it may connect joins
            self._wide.clear()

    def _widest_of(self, join: int) -> int:
        return max(self._reads[join], key=lambda item: (not self.readings[item, join].fixed, self.own_step(item)))

    def _edges(self, operand: int) -> list[Edge]:
        return [(operand, join) for join in self._read_by[operand]]

    def _may_copy(self, edge: Edge) -> bool:
        return not self.readings[edge].fixed and self._widest[edge[1]] != edge[0]

    def _step(self, values: Range) -> float:
        return step_of(*values, self.spec)

    def _noise_of(self, operands: Iterable[int]) -> float:
        """The noise of some operands and of their copies."""
        total = 0.0
        for operand in operands:
            total += self.shared_step(operand) ** 2 / 12.0 * self.operands[operand].sensitivity
            for edge in self._edges(operand):
                if edge in self.copied:
                    total += self.step_at(edge[1]) ** 2 / 12.0 * self.readings[edge].sensitivity
        return total

    def _connected(self, operand: int, *, whole: bool = False) -> tuple[list[int], list[int]]:
        """The operands and joins on the grid of `operand`; with `whole`, as if it had no copies."""
        operands, joins = {operand: None}, dict[int, None]()
        waiting = [operand]
        while waiting:
            current = waiting.pop()
            for join in self._read_by[current]:
                if join in joins or ((current, join) in self.copied and not (whole and current == operand)):
                    continue
                joins[join] = None
                new = [item for item in self._reads[join] if item not in operands and (item, join) not in self.copied]
                operands.update(dict.fromkeys(new))
                waiting += new
        return list(operands), list(joins)

    def _component(self, operand: int) -> list[int]:
        """The operands whose grids, or those of their copies, may depend on the copies of `operand`."""
        found = dict.fromkeys(self._connected(operand, whole=True)[0])
        joins = {join for item in found for join in self._read_by[item]}
        return sorted({item for join in joins for item in self._reads[join]} | set(found))

    def _range_of(self, found: tuple[list[int], list[int]]) -> Range:
        operands, joins = found
        return union([*(self.operands[item].range for item in operands), *(self.joins[item] for item in joins)])
