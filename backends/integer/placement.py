"""Places rigid groups of rectangles in the plane of time and bytes, without overlap and with a small height.

A group is a set of rectangles at fixed distances, such as results that share bytes. Finding the least height is
NP-complete; the search stops when a lower bound is met:

1. groups in order of time, at the bottom or at the top of an array with the height of the bound: exact for a chain,
   in which two neighbours are alive at a time;
2. other orders, each group as low as possible;
3. starting from the best of these, the groups around the highest one are placed again, from the bottom up except for a
   few moves.

Source: orders by size and by the bytes alive at once are those of Pisarchyk and Lee 2020, arXiv:2001.03288, section 5.
The third step is hill climbing over orders of placement, as in compilers for small machines.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

STEPS = 40_000
"""Number of groups that the third step places in total: about half a second."""
ACCEPT = 0.02
"""Share of worsening moves that are accepted."""


@dataclass(frozen=True)
class Rectangle:
    """Bytes that are occupied for some time.

    Args:
        begin: First time, 0 or later.
        end: Last time, inclusive.
        low: First byte, relative to the start of the group.
        high: End of the bytes, exclusive.
    """

    begin: int
    end: int
    low: int
    high: int


Group: TypeAlias = Sequence[Rectangle]
"""The rectangles of a group, whose lowest byte is 0."""
Array: TypeAlias = npt.NDArray[np.int64]


class Placement:
    """Searches the first byte of each group. The same groups always get the same bytes.

    Args:
        groups: Groups to place.
        least: A lower bound of the height.
    """

    def __init__(self, groups: Sequence[Group], least: int) -> None:
        self.least = least
        parts = [(part, index) for index, group in enumerate(groups) for part in group]
        parts.sort(key=lambda item: (item[0].begin, item[1]))
        self.begin, self.end, self.low, self.high = (
            np.array([getattr(part, name) for part, _ in parts], np.int64) for name in ("begin", "end", "low", "high")
        )
        self.parts: list[list[int]] = [[] for _ in groups]
        """For each group, the indices of its rectangles among all rectangles in order of time."""
        for place, (_, index) in enumerate(parts):
            self.parts[index].append(place)
        self.owners = np.array([index for _, index in parts], np.int64)
        """The group of each rectangle."""
        self.reach = np.maximum.accumulate(self.end)
        """For each rectangle, the latest end among the rectangles up to it."""
        begun, ended = np.searchsorted(self.begin, self.end, "right"), np.searchsorted(self.reach, self.begin, "left")
        self.windows = [slice(*pair) for pair in zip(ended.tolist(), begun.tolist(), strict=True)]
        """For each rectangle, the index range of rectangles that may be alive at the same time."""
        self.heights = [max(part.high for part in group) for group in groups]
        self.begins = [min(part.begin for part in group) for group in groups]
        self.lengths = [max(part.end for part in group) - min(part.begin for part in group) + 1 for group in groups]
        self.pressures = self._pressures()
        """For each group, the largest number of bytes occupied at once during its lifetime."""
        self.best: Array = np.zeros(0, np.int64)
        """The first byte of each rectangle's group in the best placement so far."""
        self.top = 0
        """Height of the best placement so far."""

    @property
    def offsets(self) -> list[int]:
        """First byte of each group in the best placement so far."""
        return [int(self.best[parts[0]]) for parts in self.parts]

    @property
    def done(self) -> bool:
        """Whether the bound is met."""
        return len(self.best) == len(self.begin) and self.top <= self.least

    def _keep(self, offsets: Array) -> None:
        top = int((offsets + self.high).max(initial=0))
        if len(self.best) < len(offsets) or top < self.top:
            self.best, self.top = offsets, top

    def attempt(self) -> None:
        """Steps 1 and 2."""
        for order, both_ends in self._orders():
            if self.done:
                return
            offsets = np.full(len(self.begin), -1, np.int64)
            self._place(order, offsets, both_ends)
            self._keep(offsets)

    def climb(self, seed: int = 0, steps: int = STEPS) -> None:
        """Step 3.

        Args:
            seed: Seed for the moves.
            steps: See `STEPS`.
        """
        generator = random.Random(seed)  # noqa: S311  # a deterministic search, not a secret
        offsets = self.best
        while steps > 0 and not self.done:
            tops = offsets + self.high
            top = int(tops.max())
            group = int(self.owners[generator.choice((tops == top).nonzero()[0])])
            order = self._moved(group, offsets, generator)
            steps -= len(order)
            new = offsets.copy()
            for other in order:
                new[self.parts[other]] = -1
            self._place(order, new, both_ends=False)
            if int((new + self.high).max()) <= top or generator.random() < ACCEPT:
                offsets = new
                self._keep(offsets)

    def _moved(self, group: int, offsets: Array, generator: random.Random) -> list[int]:
        """The groups around `group` in time from the bottom up, with one or two of them moved down."""
        begin, end = self.begins[group], self.begins[group] + self.lengths[group] - 1
        there = self._alive(begin, end)
        pile = list(dict.fromkeys(self.owners[there].tolist()))
        for _ in range(generator.choice((0, 1, 2))):
            begin, end = int(self.begin[there].min()), int(self.end[there].max())
            there = self._alive(begin, end)
        there = there[offsets[there].argsort(kind="stable")]
        order = list(dict.fromkeys(self.owners[there].tolist()))
        for _ in range(generator.choice((1, 1, 2))):
            place = order.index(group if generator.random() < 0.5 else generator.choice(pile))
            # Sometimes to the very bottom, which a random choice among many would rarely select.
            to = 0 if generator.random() < 0.25 else generator.randrange(place + 1)
            order.insert(to, order.pop(place))
        return order

    def _alive(self, begin: int, end: int) -> Array:
        """Rectangles that are alive at any time from `begin` to `end`."""
        first = int(np.searchsorted(self.reach, begin, "left"))
        last = int(np.searchsorted(self.begin, end, "right"))
        return (self.end[first:last] >= begin).nonzero()[0] + first

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

    def _place(self, order: Sequence[int], offsets: Array, both_ends: bool) -> None:
        """Place one group after the other.

        Args:
            order: The groups.
            offsets: For each rectangle, the offset of its group; negative for unplaced groups.
            both_ends: Whether a group that does not fit at the bottom is placed at the top of the array, if possible.
        """
        for group in order:
            low, high = self._excluded(group, offsets)
            offset = _lowest(low, high)
            at_the_top = self.least - self.heights[group]
            if both_ends and 0 < offset != at_the_top >= 0 and not ((low < at_the_top) & (at_the_top < high)).any():
                offset = at_the_top
            offsets[self.parts[group]] = offset

    def _excluded(self, group: int, offsets: Array) -> tuple[Array, Array]:
        """Open intervals that the first byte of `group` cannot be in, because of rectangles of placed groups."""
        low, high = [], []
        for part in self.parts[group]:
            window = self.windows[part]
            there = ((self.end[window] >= self.begin[part]) & (offsets[window] >= 0)).nonzero()[0] + window.start
            taken = offsets[there]
            low.append(taken + self.low[there] - self.high[part])
            high.append(taken + self.high[there] - self.low[part])
        return (low[0], high[0]) if len(low) == 1 else (np.concatenate(low), np.concatenate(high))

    def _pressures(self) -> list[int]:
        change = np.zeros(int(self.end.max(initial=-1)) + 2, np.int64)
        np.add.at(change, self.begin, self.high - self.low)
        np.subtract.at(change, self.end + 1, self.high - self.low)
        taken = change.cumsum()
        most = [int(taken[b : e + 1].max()) for b, e in zip(self.begin.tolist(), self.end.tolist(), strict=True)]
        return [max(most[part] for part in parts) for parts in self.parts]


def _lowest(low: Array, high: Array) -> int:
    """The smallest number of at least 0 that is in none of the open intervals."""
    if not len(low):
        return 0
    order = low.argsort(kind="stable")
    # Running maximum of interval ends: an interval that begins after it leaves a gap.
    reached = np.maximum(np.maximum.accumulate(high[order]), 0)
    gaps = (low[order][1:] >= reached[:-1]).nonzero()[0]
    if low[order[0]] >= 0:
        return 0
    return int(reached[gaps[0] if len(gaps) else -1])
