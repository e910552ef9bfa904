"""Executor memory in one array of bytes, with each tensor at its planned offset.

It is as unkind as a machine may be. The bytes of a result are overwritten with 0xAA before its operands are read, but
for operands on which it may lie; those of a tensor as soon as nothing reads it any more. So a plan that lets two living
tensors overlap, or gives a place away too early, leads to wrong codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.program.aliases import find_homes, overwritable, shows_same
from qcompiler.program.liveness import NUMPY_TYPES, Tensors, rooms
from qcompiler.program.program import Memory, Program

POISON = 0xAA
Array: TypeAlias = npt.NDArray[Any]
Span: TypeAlias = tuple[int, int]


class Plan:
    """Tracks overwritten parts of the arena. Plans are not checked here: a wrong plan runs and returns wrong codes.

    Args:
        program: Program whose instructions run in order.
        memory: Memory plan of its tensors.
    """

    def __init__(self, program: Program, memory: Memory) -> None:
        self.memory = memory
        tensors = self.tensors = Tensors(program, memory.batch)
        homes, room = find_homes(tensors, memory.alignment), rooms(tensors, memory.alignment)
        self.spans = {name: (offset, offset + room[name]) for name, offset in memory.offsets.items()}
        lives = tensors.core.lives()
        self.before: dict[str, list[Span]] = {}
        """Regions that are overwritten before an instruction reads, by its first result."""
        self.after: dict[str, list[Span]] = {}
        """The same for after it has written."""
        related: dict[str, list[str]] = {}
        for name, (root, _) in homes.items():
            related.setdefault(root, []).append(name)
        for time, instruction in enumerate(tensors.core.instructions):
            under = overwritable(tensors, homes, instruction)
            read = [name for name in dict.fromkeys(instruction.inputs) if name in homes]

            def may_share(
                old: str, new: str, under: list[str] = under, results: tuple[str, ...] = instruction.outputs
            ) -> bool:
                replaced = new in results and old in under and memory.offsets[old] == memory.offsets[new]
                return replaced or shows_same(homes, memory.offsets, old, new)

            self.before[instruction.output] = [
                span
                for new in instruction.outputs
                for span in _without(self.spans[new], (self.spans[old] for old in read if may_share(old, new)))
            ]
            self.after[instruction.output] = [
                span
                for old in (*read, *instruction.outputs)
                if lives[old][1] == time
                for span in _without(
                    self.spans[old],
                    (
                        self.spans[new]
                        for new in dict.fromkeys((*related[homes[old][0]], *instruction.outputs))
                        if lives[new][0] <= time < lives[new][1] and may_share(old, new)
                    ),
                )
            ]


class Arena:
    """The array of one run.

    Args:
        plan: Memory plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.bytes = np.full(plan.memory.bytes, POISON, np.uint8)
        self.outside: dict[str, Array] = {}
        """Tensors that are no part of the core."""

    def begin(self, instruction: str) -> None:
        """Before the instruction of that first result reads."""
        self._overwrite(self.plan.before.get(instruction, ()))

    def end(self, instruction: str) -> None:
        """After it has written."""
        self._overwrite(self.plan.after.get(instruction, ()))

    def read(self, name: str) -> Array:
        """A copy of a tensor in its physical order."""
        if name not in self.plan.spans:
            return self.outside[name]
        tensors = self.plan.tensors
        begin, shape = self.plan.spans[name][0], tensors.shapes[name]
        dtype = NUMPY_TYPES[tensors.program.tensors[name].dtype]
        # A copy also begins at a multiple of the size of its elements, as torch requires.
        found = self.bytes[begin : begin + tensors.bytes(name)].copy()
        return found.view(dtype).reshape([shape[axis] for axis in tensors.axes(len(shape))])

    def write(self, name: str, array: Array) -> None:
        """Put a tensor in its physical order to its place."""
        if name not in self.plan.spans:
            self.outside[name] = array
            return
        begin = self.plan.spans[name][0]
        self.bytes[begin : begin + array.nbytes] = np.asarray(array, order="C").reshape(-1).view(np.uint8)

    def _overwrite(self, spans: Iterable[Span]) -> None:
        for begin, end in spans:
            self.bytes[begin:end] = POISON


def _without(span: Span, holes: Iterable[Span]) -> list[Span]:
    """The rest of `span`."""
    rest = [span]
    for low, high in holes:
        rest = [
            part
            for begin, end in rest
            for part in ((begin, min(end, low)), (max(begin, high), end))
            if part[0] < part[1]
        ]
    return rest
