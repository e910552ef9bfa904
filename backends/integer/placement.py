"""Rigid groups of rectangles in the plane of time and bytes, placed so that none overlap and the height is small.

A group is several rectangles at fixed distances, such as results that lie on one another. The least height is
NP-complete to find; attempts are made until a lower bound is met:

1. in order of time, at the bottom or at the top of an array that is as high as the bound: exact for a chain, of which
   two neighbours are alive at a time;
2. in other orders, each group as low as it can be;
3. from the best of these orders on, what stands highest or carries it is moved.

Source: orders by size and by the bytes alive at once are those of Pisarchyk and Lee 2020, arXiv:2001.03288, section 5.
The third step is a hill climb over orders of placement, as compilers for small machines have it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MOVES, FEWEST_MOVES = 40_000, 20
"""Groups that the third step places in all, and the number of its moves where that would be fewer."""
ACCEPT = 0.02
"""Share of the moves for the worse that are made all the same."""


@dataclass(frozen=True)
class Rectangle:
    """Bytes that are taken for some time.

    Args:
        begin: First time, 0 or later.
        end: Last time; it is taken too.
        low: First byte, counted from where the group begins.
        high: Behind the last byte.
    """

    begin: int
    end: int
    low: int
    high: int


Group = Sequence[Rectangle]
"""Its lowest byte is 0."""


class Placement:
    """Searches first bytes for groups. The same groups get the same bytes.

    Args:
        groups: What is to be placed.
        least: A height below which nobody can get.
    """

    def __init__(self, groups: Sequence[Group], least: int) -> None:
        self.least = least
        self.heights = [max(part.high for part in group) for group in groups]
        self.begins = [min(part.begin for part in group) for group in groups]
        self.lengths = [max(part.end for part in group) - min(part.begin for part in group) + 1 for group in groups]
        self.conflicts = _conflicts(groups)
        """For each group: another one, and the open interval in which the distance from its first byte must not be."""
        self.pressures = _pressures(groups)
        """For each group: the most bytes that are taken at once while it is there."""
        self.offsets: list[int] = []
        """The best first bytes so far."""
        self.top = 0
        """Height of the best placement so far."""
        self._order: list[int] = []

    @property
    def done(self) -> bool:
        """Whether the bound is met."""
        return bool(self.offsets or not self.heights) and self.top <= self.least

    def attempt(self) -> None:
        """Steps 1 and 2."""
        for order, both_ends in self._orders():
            if self.done:
                return
            offsets = self._placed(order, both_ends)
            top = self._height(offsets)
            if not self.offsets or top < self.top:
                self.offsets, self.top, self._order = offsets, top, order

    def climb(self, seed: int = 0) -> None:
        """Step 3."""
        generator = random.Random(seed)  # noqa: S311  # no secret: a search that is the same each time
        order, offsets = self._order, self.offsets
        top = self._height(offsets)
        for _ in range(max(FEWEST_MOVES, MOVES // max(1, len(order)))):
            if self.done:
                return
            new_order = self._moved(order, offsets, top, generator)
            new = self._placed(new_order, both_ends=False)
            new_top = self._height(new)
            if new_top <= top or generator.random() < ACCEPT:
                order, offsets, top = new_order, new, new_top
            if top < self.top:
                self.offsets, self.top = offsets, top

    def _moved(self, order: list[int], offsets: list[int], top: int, generator: random.Random) -> list[int]:
        """An order in which a group of the highest pile comes earlier, or changes places with any other."""
        highest = [group for group in order if offsets[group] + self.heights[group] == top]
        group = generator.choice(highest)
        pile = [group, *(other for other, _, _ in self.conflicts[group] if offsets[other] < offsets[group])]
        result = list(order)
        for _ in range(generator.choice((1, 1, 2))):
            moving = generator.choice(pile)
            place = result.index(moving)
            if moving == group or generator.random() < 0.5:
                result.insert(generator.randrange(place + 1), result.pop(place))
            else:
                other = generator.randrange(len(result))
                result[place], result[other] = result[other], result[place]
        return result

    def _orders(self) -> Iterator[tuple[list[int], bool]]:
        """Orders of placement, and whether they use both ends of the array."""
        size, length, pressure = self.heights, self.lengths, self.pressures
        groups = range(len(size))
        yield sorted(groups, key=lambda g: (self.begins[g], -size[g])), True
        yield sorted(groups, key=lambda g: (-pressure[g], -length[g], -size[g])), True
        yield sorted(groups, key=lambda g: (-pressure[g], -size[g])), False
        yield sorted(groups, key=lambda g: (-pressure[g], -length[g], -size[g])), False
        yield sorted(groups, key=lambda g: (-size[g], -length[g])), False
        yield sorted(groups, key=lambda g: (-pressure[g], -length[g] * size[g])), False

    def _placed(self, order: Sequence[int], both_ends: bool) -> list[int]:
        """First bytes, given one group after the other."""
        offsets = [-1] * len(self.heights)
        for group in order:
            excluded = [
                (offsets[other] + low, offsets[other] + high)
                for other, low, high in self.conflicts[group]
                if offsets[other] >= 0
            ]
            lowest = _lowest(excluded)
            at_the_top = self.least - self.heights[group]
            free = all(not low < at_the_top < high for low, high in excluded)
            offsets[group] = at_the_top if both_ends and lowest > 0 and at_the_top >= 0 and free else lowest
        return offsets

    def _height(self, offsets: Sequence[int]) -> int:
        return max((offset + height for offset, height in zip(offsets, self.heights, strict=True)), default=0)


def _lowest(excluded: list[tuple[int, int]]) -> int:
    """The first number from 0 on that is in none of the open intervals."""
    result = 0
    for low, high in sorted(excluded):
        if result <= low:
            break
        result = max(result, high)
    return result


def _conflicts(groups: Sequence[Group]) -> list[list[tuple[int, int, int]]]:
    found: list[dict[tuple[int, int, int], None]] = [{} for _ in groups]
    parts = [(part, index) for index, group in enumerate(groups) for part in group]
    alive: list[tuple[Rectangle, int]] = []
    for part, index in sorted(parts, key=lambda item: (item[0].begin, item[1])):
        alive = [item for item in alive if item[0].end >= part.begin]
        for old, other in alive:
            if other != index:
                found[index][other, old.low - part.high, old.high - part.low] = None
                found[other][index, part.low - old.high, part.high - old.low] = None
        alive.append((part, index))
    return [list(item) for item in found]


def _pressures(groups: Sequence[Group]) -> list[int]:
    change = [0] * (max((part.end for group in groups for part in group), default=0) + 2)
    for group in groups:
        for part in group:
            change[part.begin] += part.high - part.low
            change[part.end + 1] -= part.high - part.low
    taken = list(itertools.accumulate(change))
    return [max(max(taken[part.begin : part.end + 1]) for part in group) for group in groups]
