"""Groups of rectangles in time and bytes: nothing overlaps, nothing lies below the bound, easy puzzles are solved."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.backends.integer.placement import Placement, Rectangle

Groups = list[list[Rectangle]]


def taken(groups: Groups, offsets: list[int]) -> int:
    """Height of a placement, cell by cell; each is taken once."""
    cells: set[tuple[int, int]] = set()
    for group, offset in zip(groups, offsets, strict=True):
        assert offset >= 0
        here = {
            (time, offset + byte)
            for part in group
            for time in range(part.begin, part.end + 1)
            for byte in range(part.low, part.high)
        }
        assert not cells & here
        cells |= here
    return max((byte for _, byte in cells), default=-1) + 1


def least(groups: Groups) -> int:
    """The most bytes that are taken at once, of groups whose own rectangles do not overlap."""
    parts = [part for group in groups for part in group]
    times = range(max((part.end for part in parts), default=-1) + 1)
    return max(
        (sum(part.high - part.low for part in parts if part.begin <= time <= part.end) for time in times), default=0
    )


@st.composite
def rectangles(draw: st.DrawFn) -> Groups:
    """Single rectangles, and groups of rectangles on or next to one another."""
    groups: Groups = []
    for _ in range(draw(st.integers(0, 12))):
        begin, low, group = draw(st.integers(0, 12)), 0, []
        for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
            end = begin + draw(st.integers(0, 4))
            group.append(Rectangle(begin, end, low, low + draw(st.integers(1, 9))))
            begin, low = end + 1, draw(st.sampled_from((0, 0, 2)))
        groups.append(group)
    return groups


@settings(max_examples=200)
@given(groups=rectangles())
def test_nothing_overlaps(groups: Groups) -> None:
    placement = Placement(groups, least(groups))
    placement.attempt()
    assert taken(groups, placement.offsets) == placement.top
    assert least(groups) <= placement.top
    before = placement.top
    placement.climb(steps=500)
    assert taken(groups, placement.offsets) == placement.top <= before


def cut(seed: int, count: int, size: int) -> Groups:
    """A square of time and bytes, cut up at random: there is a placement without a gap."""
    generator = random.Random(seed)
    pieces = [(0, size, 0, size)]
    while len(pieces) < count:
        begin, end, low, high = pieces.pop(generator.randrange(len(pieces)))
        if end - begin > 1 and (high - low < 2 or generator.random() < 0.5):
            middle = generator.randrange(begin + 1, end)
            pieces += [(begin, middle, low, high), (middle, end, low, high)]
        elif high - low > 1:
            middle = generator.randrange(low + 1, high)
            pieces += [(begin, end, low, middle), (begin, end, middle, high)]
        else:
            pieces.append((begin, end, low, high))
    return [[Rectangle(begin, end - 1, 0, high - low)] for begin, end, low, high in pieces]


def test_squares_that_are_cut_up_are_put_together_again() -> None:
    tops = []
    for seed in range(20):
        placement = Placement(cut(seed, 16, 40), 40)
        placement.attempt()
        placement.climb()
        tops.append(placement.top)
    assert tops == [40] * 20


def test_the_climb_lowers_what_the_attempts_leave_high() -> None:
    before, after = [], []
    for seed in (0, 2, 3, 5, 7, 9, 11):
        placement = Placement(cut(seed, 60, 100), 100)
        placement.attempt()
        before.append(placement.top)
        placement.climb(steps=20_000)
        after.append(placement.top)
    assert sum(before) / len(before) > 115, "puzzles that the attempts do not solve"
    assert sum(after) / len(after) < 106
    assert all(new < old for new, old in zip(after, before, strict=True))


def test_the_same_groups_get_the_same_bytes() -> None:
    found = []
    for _ in range(2):
        placement = Placement(cut(3, 60, 60), 60)
        placement.attempt()
        placement.climb(steps=2000)
        found.append(placement.offsets)
    assert found[0] == found[1]


def test_a_chain_alternates_between_the_ends() -> None:
    heights = [3, 8, 2, 9, 1, 7, 4]
    groups = [[Rectangle(time, time + 1, 0, height)] for time, height in enumerate(heights)]
    placement = Placement(groups, 11)
    placement.attempt()
    assert placement.top == 11
    assert placement.offsets == [0, 3, 0, 2, 0, 4, 0]
