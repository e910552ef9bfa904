"""The memory plan of a program: one arena, an offset for each tensor, and the order with the lowest peak.

    y = conv(x); z = lookup(y); s = add(z, x)      x  0..8  ──────────────► s  0..8     over x, which dies here
                                                   y  8..16 ──► z  8..16                over y

A plan is near the largest number of bytes that are alive at once, below which no plan can be in that order; where it
meets that bound it is as small as any. See `program.aliases` for what may lie on what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from qcompiler.backends.integer.bound import Regions
from qcompiler.backends.integer.placement import Placement, Rectangle
from qcompiler.backends.integer.schedule import schedule
from qcompiler.program.liveness import Tensors
from qcompiler.program.program import Memory, Program

ALIGNMENT = 16
"""Default alignment of offsets, bytes: the width of the vector registers of small machines."""


def plan_program(program: Program, batch: int = 1, alignment: int = ALIGNMENT) -> Program:
    """The same program with its instructions in the order that needs the least memory, and a plan for it.

    Args:
        program: With its instructions in any order that works.
        batch: Images that are in memory at a time.
        alignment: Alignment of every offset, bytes; larger for larger elements.

    Raises:
        UnsupportedError: The sizes of the program have no value for that batch.
    """
    tensors = Tensors(program, batch)
    found = schedule(Regions(tensors, _alignment(tensors, alignment)))
    core = tensors.core
    instructions = (*core.entry, *(core.instructions[index] for index in found.order), *core.exit)
    ordered = program.model_copy(update={"instructions": instructions})
    return ordered.model_copy(update={"memory": plan(ordered, batch, alignment)})


def plan(program: Program, batch: int = 1, alignment: int = ALIGNMENT) -> Memory:
    """A plan for `program` in the order that it has. The same program gives the same plan.

    Args:
        program: Program to plan.
        batch: See `plan_program`.
        alignment: See `plan_program`.

    Raises:
        UnsupportedError: See `plan_program`.
    """
    tensors = Tensors(program, batch)
    alignment = _alignment(tensors, alignment)
    regions = Regions(tensors, alignment)
    alive = regions.alive(range(len(tensors.core.instructions)))
    least = max(alive)
    best: tuple[Placement, _Groups] | None = None
    for wanted in _variants(regions, alive):
        groups = _Groups(regions, wanted)
        placement = Placement(groups.rectangles(), least)
        placement.attempt()
        if best is None or placement.top < best[0].top:
            best = placement, groups
        if placement.done:
            break
    assert best is not None
    placement, groups = best
    placement.climb()
    return Memory(
        batch=batch,
        bytes=placement.top,
        lower_bound=least,
        alignment=alignment,
        offsets=groups.offsets(placement.offsets),
    )


def sum_of_tensors(program: Program, batch: int = 1) -> int:
    """Bytes of all tensors of the core without sharing."""
    tensors = Tensors(program, batch)
    return sum(map(tensors.bytes, tensors.shapes))


def _alignment(tensors: Tensors, wanted: int) -> int:
    """Elements, too, begin at multiples of their size: those of islands have up to eight bytes."""
    return math.lcm(wanted, *tensors.item_bytes.values())


Wanted = Callable[[int], bool]


def _variants(regions: Regions, alive: list[int]) -> Iterator[Wanted]:
    """Which instructions write over an operand where they can: all, or fewer, which leaves more places for them."""
    least = max(alive)
    yield lambda time: True
    if any(regions.saving):
        yield lambda time: alive[time + 1] + regions.saving[time] > least


class _Groups:
    """Tensors that lie at fixed distances: views of one, and results on operands.

    Args:
        regions: Regions of the program, in execution order.
        wanted: Which instructions write over an operand where they can.
    """

    def __init__(self, regions: Regions, wanted: Wanted) -> None:
        self.regions = regions
        self.lives = regions.tensors.core.lives()
        self.homes = dict(regions.homes)
        """Tensor -> another one of its group, itself where it is the first, and the distance from that in bytes."""
        waiting = [len(users) for users in regions.users]
        for time, instruction in enumerate(regions.tensors.core.instructions):
            for region in regions.reads[time]:
                waiting[region] -= 1
            if wanted(time):
                dying = [
                    reuse.operand
                    for reuse in regions.reuses[time]
                    if all(not waiting[region] for region in reuse.regions)
                ]
                if dying:
                    # The oldest tensor stays, such as the trunk to which blocks add.
                    self.homes[instruction.output] = (min(dying, key=self._since), 0)
        self.members: dict[str, list[tuple[str, int]]] = {}
        """First tensor of a group -> all, and their distances from the lowest byte."""
        for name in self.homes:
            root, distance = self._resolve(name)
            self.members.setdefault(root, []).append((name, distance))
        for root, members in self.members.items():
            lowest = min(distance for _, distance in members)
            self.members[root] = [(name, distance - lowest) for name, distance in members]

    def _since(self, name: str) -> int:
        return self.lives[self._resolve(name)[0]][0]

    def _resolve(self, name: str) -> tuple[str, int]:
        """The first tensor of the group, and the distance from it."""
        path = [name]
        while self.homes[path[-1]][0] != path[-1]:
            path.append(self.homes[path[-1]][0])
        distance = 0
        for item in reversed(path[:-1]):
            distance += self.homes[item][1]
            self.homes[item] = (path[-1], distance)
        return path[-1], distance

    def rectangles(self) -> list[list[Rectangle]]:
        """The groups in the plane of time and bytes; time 0 is that before the first instruction."""
        result = []
        for members in self.members.values():
            lives: dict[tuple[int, int], list[tuple[int, int]]] = {}
            for name, low in members:
                lives.setdefault((low, low + self.regions.room[name]), []).append(self.lives[name])
            group = []
            for (low, high), spans in lives.items():
                begin, end = None, -1
                for first, last in sorted(spans):
                    if begin is None or first > end + 1:
                        if begin is not None:
                            group.append(Rectangle(begin + 1, end + 1, low, high))
                        begin = first
                    end = max(end, last)
                assert begin is not None
                group.append(Rectangle(begin + 1, end + 1, low, high))
            result.append(group)
        return result

    def offsets(self, first_bytes: list[int]) -> dict[str, int]:
        """Offset of each tensor, from the first bytes of the groups."""
        found = {
            name: first + distance
            for members, first in zip(self.members.values(), first_bytes, strict=True)
            for name, distance in members
        }
        return {name: found[name] for name in sorted(found)}
