"""Counts live bytes of the arena at each time, for any order of instructions.

The bytes of the core fall into regions: runs that are written together and shown by the same tensors. A region lives
from the instruction that writes it to the last that reads one of its tensors. An instruction may write its result over
an operand whose regions it is the last to read, so that for the time that it runs both count once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.program.aliases import find_homes, overwritable
from qcompiler.program.liveness import Tensors, rooms


@dataclass(frozen=True)
class Reuse:
    """An operand on which the result of an instruction may lie, if the instruction is the last to read it.

    Args:
        operand: Name of the operand.
        regions: Memory regions of the operand.
    """

    operand: str
    regions: tuple[int, ...]


class Regions:
    """The regions of a program. Instructions are numbered in the order of the core.

    Args:
        tensors: Tensors of the core.
        alignment: Alignment of every first byte; sizes are rounded up to its next multiple.
    """

    def __init__(self, tensors: Tensors, alignment: int) -> None:
        self.tensors = tensors
        self.homes = find_homes(tensors, alignment)
        self.room = rooms(tensors, alignment)
        self.size: list[int] = []
        """Bytes of each region."""
        self.users: list[tuple[int, ...]] = []
        """Instructions that read it."""
        self.kept: list[bool] = []
        """Whether the caller reads it in the end."""
        instructions = tensors.core.instructions
        self.writes: list[list[int]] = [[] for _ in instructions]
        """Regions that each instruction writes."""
        self.reads: list[list[int]] = [[] for _ in instructions]
        """Regions that each instruction reads."""
        self.given: list[int] = []
        """Regions that the caller writes."""
        self.of: dict[str, list[int]] = {name: [] for name in self.homes}
        """Regions of each tensor."""
        self._split()
        self.reuses = [self._reuses(time) for time in range(len(instructions))]
        """The operands over which the result of each instruction may be written."""
        self.saving = [
            self.room[item.output] if reuses else 0 for item, reuses in zip(instructions, self.reuses, strict=True)
        ]
        """Bytes that count once where it does."""

    def _split(self) -> None:
        """Cut each tree of views where one of its tensors begins or ends."""
        core = self.tensors.core
        members: dict[str, list[str]] = {}
        for name, (root, _) in self.homes.items():
            members.setdefault(root, []).append(name)
        writer = dict.fromkeys(core.given, -1)
        readers: dict[str, list[int]] = {name: [] for name in self.homes}
        for time, instruction in enumerate(core.instructions):
            writer.update(dict.fromkeys(instruction.outputs, time))
            for name in dict.fromkeys(instruction.inputs):
                if name in readers:
                    readers[name].append(time)
        taken = frozenset(core.taken)
        for names in members.values():
            ends = {name: self.homes[name][1] + self.room[name] for name in names}
            edges = sorted({*ends.values(), *(self.homes[name][1] for name in names)})
            coming = sorted(names, key=lambda name: self.homes[name][1], reverse=True)
            covering: list[str] = []
            for begin, end in itertools.pairwise(edges):
                covering = [name for name in covering if ends[name] > begin]
                while coming and self.homes[coming[-1]][1] == begin:
                    covering.append(coming.pop())
                region = len(self.size)
                self.size.append(end - begin)
                self.users.append(tuple(sorted({time for name in covering for time in readers[name]})))
                self.kept.append(any(name in taken for name in covering))
                for name in covering:
                    self.of[name].append(region)
                # The first of its tensors is the one that is computed; the others are views of it.
                time = min(writer[name] for name in covering)
                (self.given if time < 0 else self.writes[time]).append(region)
        for time, instruction in enumerate(core.instructions):
            names = [name for name in instruction.inputs if name in self.of]
            self.reads[time] = list(dict.fromkeys(region for name in names for region in self.of[name]))

    def _reuses(self, time: int) -> tuple[Reuse, ...]:
        instruction = self.tensors.core.instructions[time]
        # A result that has its place in another tensor already cannot have one on an operand as well.
        if self.homes[instruction.output] != (instruction.output, 0):
            return ()
        found = [Reuse(name, tuple(self.of[name])) for name in overwritable(self.tensors, self.homes, instruction)]
        return tuple(reuse for reuse in found if not any(self.kept[region] for region in reuse.regions))

    def alive(self, order: Sequence[int]) -> list[int]:
        """Bytes that are alive at each time.

        Args:
            order: Numbers of the instructions in the order in which they run.

        Returns:
            Before the first instruction, while each runs, and after the last.
        """
        waiting = [len(users) for users in self.users]
        now = sum(self.size[region] for region in self.given)
        result = [now]
        now -= sum(self.size[region] for region in self.given if not waiting[region] and not self.kept[region])
        for time in order:
            now += sum(self.size[region] for region in self.writes[time])
            for region in self.reads[time]:
                waiting[region] -= 1
            last = any(all(not waiting[region] for region in reuse.regions) for reuse in self.reuses[time])
            result.append(now - self.saving[time] * last)
            touched = (*self.reads[time], *self.writes[time])
            now -= sum(self.size[region] for region in touched if not waiting[region] and not self.kept[region])
        result.append(now)
        return result

    def lower_bound(self, order: Sequence[int]) -> int:
        """Largest number of bytes that are alive at once."""
        return max(self.alive(order))
