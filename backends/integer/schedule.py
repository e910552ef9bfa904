"""Finds the order of instructions with the lowest peak of live bytes.

Instructions whose position is fixed in every order cut the program into independent segments. A segment is searched
best first over the sets of instructions that have run: the live bytes depend only on the set, so of all orders that
lead to a set only the one with the smallest peak is continued. The search ends at the optimum or at a work limit; then
the best of three orders is used: the given order, a depth-first order, and the result of a beam search. Segments that
do not determine the peak of the program keep their order, as do segments without a better order.

Source: Ahn et al. 2020, arXiv:2003.02369, section 3: the search over sets, and cuts. The rule that an instruction
which frees at least as much as it writes never has to wait is ours: the bytes alive after a set are a submodular
function of the set, so running such an instruction earlier makes no later moment worse.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from qcompiler.backends.integer.bound import Regions
from qcompiler.program.liveness import Core

WORK = 300_000
"""Work limit of the exact search of one segment, about a second: each step to a set of instructions, and each region
that it may free, counts as one."""
WIDEST_BEAM, MOST_CANDIDATES = 32, 64
"""Limits of the beam search: sets of equal size that are continued within the same work, and instructions that may
follow each of them, the first ones of the given order."""


@dataclass(frozen=True)
class Schedule:
    """An order of instructions.

    Args:
        order: Numbers of the instructions.
        lower_bound: Largest number of bytes alive at once.
        exact: Whether no order has a smaller bound.
    """

    order: tuple[int, ...]
    lower_bound: int
    exact: bool


def schedule(regions: Regions, work: int = WORK) -> Schedule:
    """Find an order whose bound is not above that of the given order.

    Args:
        regions: Regions of the program.
        work: See `WORK`.
    """
    core = regions.tensors.core
    order = list(range(len(core.instructions)))
    alive = regions.alive(order)
    before = _before(core)
    segments = [_Segment(regions, before, span, alive) for span in _segments(before)]
    loose = {time for segment in segments for time in segment.span}
    # The same in every order: both ends, and the instructions that cut.
    proven = max(alive[0], alive[-1], *(alive[time + 1] for time in order if time not in loose))
    proven = max((proven, *(segment.least for segment in segments)))
    reached = proven
    for segment in sorted(segments, key=lambda segment: segment.peak, reverse=True):
        if segment.peak <= reached:
            break
        found = segment.search(reached, work)
        order[segment.span.start : segment.span.stop] = found.order
        reached = max(reached, found.lower_bound)
        if found.exact:
            proven = max(proven, found.lower_bound)
    return Schedule(tuple(order), reached, reached == proven)


def _before(core: Core) -> list[list[int]]:
    """For each instruction, the instructions that write its operands."""
    writers = {name: time for time, item in enumerate(core.instructions) for name in item.outputs}
    return [sorted({writers[name] for name in item.inputs if name in writers}) for item in core.instructions]


def _segments(before: list[list[int]]) -> Iterator[range]:
    """Runs of at least two instructions between instructions whose position is the same in all orders.

    The position of an instruction is fixed if all instructions before it are its ancestors, that is, if each of them is
    read by another one up to it, and if all instructions after it are its descendants, which is the mirrored condition.
    """
    count = len(before)
    soonest, latest = [count] * count, [-1] * count
    for time, sources in enumerate(before):
        for source in sources:
            soonest[source] = min(soonest[source], time)
            latest[time] = max(latest[time], source)
    cuts = [True] * count
    limit = -1
    for time in range(count):
        cuts[time] &= limit <= time
        limit = max(limit, soonest[time])
    limit = count
    for time in reversed(range(count)):
        cuts[time] &= limit >= time
        limit = min(limit, latest[time])
    begin = 0
    for time in (*(time for time, cut in enumerate(cuts) if cut), count):
        if time - begin > 1:
            yield range(begin, time)
        begin = time + 1


@dataclass(frozen=True)
class _State:
    """The state after a set of instructions has run in the best order.

    Args:
        done: The set; bit i is the instruction number i of the segment.
        ready: Instructions that can run next.
        alive: Live bytes.
        peak: Peak memory of the order so far, bytes.
    """

    done: int
    ready: int
    alive: int
    peak: int


class _Segment:
    """Instructions with several possible orders."""

    def __init__(self, regions: Regions, before: list[list[int]], span: range, alive: list[int]) -> None:
        self.span = span
        self.peak = max(alive[time + 1] for time in span)
        """The peak of the given order."""
        first = span.start
        self.after: list[list[int]] = [[] for _ in span]
        """Instructions that read the results of each instruction."""
        self.needs = [0] * len(span)
        """Instructions that have to run before each instruction, as bits."""
        for time in span:
            for source in before[time]:
                if source in span:
                    self.needs[time - first] |= 1 << (source - first)
                    self.after[source - first].append(time - first)
        self.writes = [sum(regions.size[region] for region in regions.writes[time]) for time in span]
        self.saving = [regions.saving[time] for time in span]
        self.frees: list[list[tuple[int, int]]] = [[] for _ in span]
        """For each instruction, the regions that it may free: users as bits, and bytes."""
        self.reuses: list[list[int]] = [[] for _ in span]
        """For each instruction, the users of an operand whose place the result may take, itself included."""
        users: dict[int, int] = {}
        """For each region that can die here, its users as bits."""
        for time in span:
            for region in (*regions.writes[time], *regions.reads[time]):
                if region not in users and not regions.kept[region] and regions.users[region][-1:] < (span.stop,):
                    users[region] = sum(1 << (user - first) for user in regions.users[region] if user in span)
                if region in users:
                    self.frees[time - first].append((users[region], regions.size[region]))
            for reuse in regions.reuses[time]:
                if all(region in users for region in reuse.regions):
                    union = 0
                    for region in reuse.regions:
                        union |= users[region]
                    self.reuses[time - first].append(union)
        self.work = 0
        """Counts the work of the search so far."""
        self.alive = self._alive_before(regions, alive)
        self.least = self._least(regions, users)

    def _alive_before(self, regions: Regions, alive: list[int]) -> int:
        """Bytes alive before the first instruction."""
        time = self.span.start
        last = any(not users & ~1 for users in self.reuses[0])
        return alive[time + 1] - self.writes[0] + self.saving[0] * last

    def _least(self, regions: Regions, users: dict[int, int]) -> int:
        """A bound for all orders: operands and results are alive while an instruction runs."""
        here = {region for time in self.span for region in regions.writes[time]}
        read = {region for time in self.span for region in regions.reads[time]}
        staying = self.alive - sum(regions.size[region] for region in read if region in users and region not in here)
        return staying + max(
            self.writes[place]
            - (self.saving[place] if self.reuses[place] else 0)
            + sum(regions.size[region] for region in regions.reads[time] if region in users or region in here)
            for place, time in enumerate(self.span)
        )

    def start(self, reached: int) -> _State:
        """The state before the first instruction; a peak below `reached` has no advantage."""
        ready = sum(1 << place for place, needs in enumerate(self.needs) if not needs)
        return _State(0, ready, self.alive, max(reached, self.alive))

    def following(self, state: _State, most: int) -> list[tuple[int, _State]]:
        """At most `most` instructions that may run next, with the resulting states; only one if it need not wait."""
        found: list[tuple[int, _State]] = []
        ready = state.ready
        while ready and len(found) < most:
            bit = ready & -ready
            ready ^= bit
            place = bit.bit_length() - 1
            new = self._after(state, place)
            found.append((place, new))
            if new.peak == state.peak and new.alive <= state.alive:
                return found[-1:]
        return found

    def _after(self, state: _State, place: int) -> _State:
        """The state after one more instruction."""
        self.work += 1 + len(self.frees[place])
        done = state.done | 1 << place
        alive = state.alive + self.writes[place]
        last = any(not users & ~done for users in self.reuses[place])
        peak = max(state.peak, alive - self.saving[place] * last)
        alive -= sum(size for users, size in self.frees[place] if not users & ~done)
        opened = sum(1 << other for other in self.after[place] if not self.needs[other] & ~done)
        return _State(done, state.ready & ~(1 << place) | opened, alive, peak)

    def search(self, reached: int, work: int) -> Schedule:
        """The best order, or within the work limit one that is not worse than the given order."""
        start = self.start(reached)
        found = self._follow(start, self._depth_first())
        limit = min(self.peak, found.lower_bound)
        if limit <= reached:
            return dataclasses.replace(found, exact=True)
        best = {0: start.peak}
        came: dict[int, tuple[int, int]] = {}
        heap = [(start.peak, 0, 0, start)]
        pushed = 0  # the first of equal states, so that the result is deterministic
        while heap:
            peak, depth, _, state = heapq.heappop(heap)
            if peak > best[state.done]:
                continue
            if -depth == len(self.span):
                return Schedule(self._order(came, state.done), peak, exact=True)
            for place, new in self.following(state, len(self.span)):
                if new.peak < min(limit, best.get(new.done, limit)):
                    best[new.done] = new.peak
                    came[new.done] = (state.done, place)
                    pushed += 1
                    heapq.heappush(heap, (new.peak, depth - 1, pushed, new))
            if self.work > work:
                found = self._beam(start, work, limit) or found
                break
        given = Schedule(tuple(self.span), self.peak, exact=False)
        return dataclasses.replace(min(given, found, key=lambda item: item.lower_bound), exact=not heap)

    def _follow(self, start: _State, places: list[int]) -> Schedule:
        """Run in a given order."""
        state = start
        for place in places:
            state = self._after(state, place)
        return Schedule(tuple(self.span.start + place for place in places), state.peak, exact=False)

    def _depth_first(self) -> list[int]:
        """An order that runs the producers of operands right before their consumer, largest extra memory first.

        Source: Sethi and Ullman 1970, doi:10.1145/321607.321620, which is exact for a tree of equal results.
        """
        room = [0] * len(self.span)
        """Bytes that each instruction needs together with its ancestors, treated as a tree."""
        before: list[list[int]] = [[] for _ in self.span]
        for place in range(len(self.span)):
            for other in self.after[place]:
                before[other].append(place)
        for place, sources in enumerate(before):
            sources.sort(key=lambda other: (self.writes[other] - room[other], other))
            there = 0
            for other in sources:
                room[place] = max(room[place], there + room[other])
                there += self.writes[other]
            room[place] = max(room[place], there + self.writes[place])
        result: dict[int, None] = {}
        waiting = [(place, iter(before[place])) for place in reversed(range(len(self.span))) if not self.after[place]]
        while waiting:
            place, sources_left = waiting[-1]
            coming = next((other for other in sources_left if other not in result), None)
            if coming is None:
                result[waiting.pop()[0]] = None
            else:
                waiting.append((coming, iter(before[coming])))
        return list(result)

    def _beam(self, start: _State, work: int, limit: int) -> Schedule | None:
        """The best order of a beam search over sets; None if its peak reaches `limit`."""
        came: dict[int, tuple[int, int]] = {}
        level = [start]
        begun = self.work
        for size in range(len(self.span)):
            before = self.work
            best: dict[int, _State] = {}
            for state in level:
                for place, new in self.following(state, MOST_CANDIDATES):
                    if new.peak < min(limit, best[new.done].peak if new.done in best else limit):
                        best[new.done] = new
                        came[new.done] = (state.done, place)
            if not best:
                return None
            each = (self.work - before) / len(level)
            left = (work - (self.work - begun)) / (len(self.span) - size)
            width = max(1, min(WIDEST_BEAM, int(left / each)))
            level = sorted(best.values(), key=lambda state: (state.peak, state.alive))[:width]
        return Schedule(self._order(came, level[0].done), level[0].peak, exact=False)

    def _order(self, came: dict[int, tuple[int, int]], done: int) -> tuple[int, ...]:
        """The order that led to a set."""
        places = []
        while done:
            done, place = came[done]
            places.append(self.span.start + place)
        return tuple(reversed(places))
