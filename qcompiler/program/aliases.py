"""Aliases: tensors that may share bytes during overlapping lifetimes, and the check of a memory plan.

    op                                                 the result may lie
    in place (`Kernel.in_place`)                       on an operand of equal shape that is not read afterwards
    reshape, permute                                   on the operand, if no byte has to move
    slice                                              in the operand, if the slice is contiguous
    concat                                             around the operands, if each is contiguous within the result

The first kind runs from the first to the last element: operand and result begin at the same byte, and an element of
the result is no larger than an element of the operand. The other three, the views, then do nothing, and their operand
may stay alive. An operand of `concat` is written directly to its place, which exists in one result only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.errors import ArtifactError, UnsupportedError
from qcompiler.ir.registry import Trait, op
from qcompiler.program.kernels import KERNELS
from qcompiler.program.liveness import Shape, Tensors, rooms

if TYPE_CHECKING:
    from qcompiler.program.program import Instruction, Memory, Program

MOST_VIEWS = 256
"""Most views of one tensor; others are copies, because the readers of a region grow with the square of this."""

Homes = dict[str, tuple[str, int]]
"""Tensor -> the tensor that it aliases (itself if it is not a view), and the offset from the first byte in bytes."""


def overwritable(tensors: Tensors, homes: Homes, instruction: Instruction) -> list[str]:
    """Operands on which the result of `instruction` may lie, if they are not read afterwards."""
    positions = _in_place(instruction)
    if not positions:
        return []
    result = instruction.output
    fitting = {
        name
        for position, name in enumerate(instruction.inputs)
        if position in positions
        and name in homes
        and tensors.shapes[name] == tensors.shapes[result]
        and tensors.item_bytes[name] >= tensors.item_bytes[result]
    }
    # An operand used twice must be read in the same order both times.
    read = [name for name in dict.fromkeys(instruction.inputs) if name in homes]
    return [
        name
        for name in read
        if name in fitting
        and all(homes[x] == homes[name] and x in fitting for x in read if homes[x][0] == homes[name][0])
    ]


def shown(tensors: Tensors, homes: Homes) -> frozenset[str]:
    """Results that alias, wholly or in part, an operand that may stay alive: writing one changes both."""
    return frozenset(
        item.output
        for item in tensors.core.instructions
        if not _in_place(item)
        and any(name in homes and homes[name][0] == homes[item.output][0] for name in item.inputs)
    )


def _in_place(instruction: Instruction) -> tuple[int, ...]:
    """Operands on which the result may lie under the conditions of the module text; none of a float island."""
    return KERNELS[instruction.op].in_place if instruction.op in KERNELS else ()


def find_homes(tensors: Tensors, alignment: int) -> Homes:
    """Find the tensors that the plan can make views of other tensors.

    Args:
        tensors: Tensors of the core.
        alignment: Alignment of the first byte of every tensor, in bytes; a view elsewhere is not allowed.
    """
    homes: Homes = {name: (name, 0) for name in tensors.core.given}
    views: Counter[str] = Counter()
    for instruction in tensors.core.instructions:
        homes.update((name, (name, 0)) for name in instruction.outputs)
        result = instruction.output
        if instruction.op == "concat":
            for name, begin in _parts(tensors, instruction):
                root, distance = _resolve(homes, name)
                whole = distance == 0 and tensors.bytes(root) == tensors.bytes(name)
                count = views[root] + 1
                fits = views[result] + count <= MOST_VIEWS
                if begin % alignment == 0 and whole and homes[root] == (root, 0) and fits:
                    homes[root] = (result, begin)
                    views[result] += count
        else:
            distance_or_none = _begin(tensors, instruction)
            if distance_or_none is None or distance_or_none % alignment or instruction.inputs[0] not in homes:
                continue
            root, _ = _resolve(homes, instruction.inputs[0])
            if views[root] < MOST_VIEWS:
                homes[result] = (instruction.inputs[0], distance_or_none)
                views[root] += 1
    return {name: _resolve(homes, name) for name in homes}


def _resolve(homes: Homes, name: str) -> tuple[str, int]:
    """Follow links to their end and shorten them."""
    path = [name]
    while homes[path[-1]][0] != path[-1]:
        path.append(homes[path[-1]][0])
    distance = 0
    for item in reversed(path[:-1]):
        distance += homes[item][1]
        homes[item] = (path[-1], distance)
    return path[-1], distance


def _begin(tensors: Tensors, instruction: Instruction) -> int | None:
    """Offset in bytes of a view within its operand; None if bytes have to move."""
    if not op(instruction.op).has(Trait.VIEW) or instruction.inputs[0] in tensors.constants:
        return None
    name = instruction.inputs[0]
    old, new = tensors.shapes[name], tensors.shapes[instruction.output]
    if instruction.op == "reshape":
        return 0 if _runs(tensors, old) == _runs(tensors, new) else None
    before, after = tensors.strides(old), tensors.strides(new)
    if instruction.op == "permute":
        axes = instruction.integers("axes")
        same = all(size == 1 or after[to] == before[axes[to]] for to, size in enumerate(new))
        return 0 if same else None
    axis, start, step = (instruction.integer(key) for key in ("axis", "start", "step"))
    if _outermost(tensors, old, axis) and (step == 1 or new[axis] == 1):
        return start * before[axis] * tensors.item_bytes[name]
    return None


def _runs(tensors: Tensors, shape: Shape) -> list[tuple[int, int]]:
    """Sizes and strides in logical order, with contiguous neighbours joined; equal if no byte moves."""
    result: list[tuple[int, int]] = []
    for size, stride in zip(shape, tensors.strides(shape), strict=True):
        if size == 1:
            continue
        if result and result[-1][1] == size * stride:
            result[-1] = (result[-1][0] * size, stride)
        else:
            result.append((size, stride))
    return result


def _outermost(tensors: Tensors, shape: Shape, axis: int) -> bool:
    """Whether the slices along `axis` follow one another in memory."""
    order = tensors.axes(len(shape))
    return all(shape[other] == 1 for other in order[: order.index(axis)])


def _parts(tensors: Tensors, instruction: Instruction) -> Iterator[tuple[str, int]]:
    """Operands of a `concat` that can be written directly to their place, and its offset in the result in bytes."""
    axis = instruction.attributes["axis"]
    assert isinstance(axis, int)
    shape = tensors.shapes[instruction.output]
    if not _outermost(tensors, shape, axis):
        return
    step = tensors.strides(shape)[axis] * tensors.item_bytes[instruction.output]
    begin = 0
    for name in instruction.inputs:
        if name not in tensors.constants:
            yield name, begin
        begin += tensors.shape(name)[axis] * step


def check_memory(program: Program, memory: Memory) -> None:
    """Check a plan against the program.

    Raises:
        ArtifactError: A tensor has no place or is unknown, lies outside the array or across a boundary, or overlaps a
            tensor with an overlapping lifetime that it must not alias.
    """
    try:
        tensors = Tensors(program, memory.batch)
    except UnsupportedError as error:
        raise ArtifactError(
            f"there is no plan for a batch of {memory.batch}: {error}", where=_WHERE, fix=_FIX
        ) from error
    homes = find_homes(tensors, memory.alignment)
    room = rooms(tensors, memory.alignment)
    offsets = memory.offsets
    for name in (*tensors.shapes, *offsets):
        if name not in offsets or name not in tensors.shapes:
            found = (
                "has no place in memory" if name in tensors.shapes else "has a place but is not a tensor of the core"
            )
            raise ArtifactError(f"{name!r} {found}", where=_WHERE, fix=_FIX)
    for name, offset in offsets.items():
        if offset % memory.alignment or not 0 <= offset <= memory.bytes - room[name]:
            raise ArtifactError(
                f"{name!r} is at {_span(name, offsets, room)}",
                where=_WHERE,
                expected=f"multiples of {memory.alignment} in 0 to {memory.bytes}",
                fix=_FIX,
            )
    names = list(tensors.shapes)
    begins = np.array([offsets[name] for name in names], np.int64)
    ends = np.array([offsets[name] + room[name] for name in names], np.int64)
    lives = tensors.core.lives()
    dying: dict[int, list[int]] = {}
    for index, name in enumerate(names):
        dying.setdefault(lives[name][1], []).append(index)
    alive = np.zeros(len(names), np.bool_)
    under: list[str] = []
    time = -1
    for index, new in enumerate(names):  # in the order in which they are written
        while time < lives[new][0]:
            alive[dying.get(time, [])] = False
            time += 1
            under = overwritable(tensors, homes, tensors.core.instructions[time])
        for place in (alive & (begins < ends[index]) & (ends > begins[index])).nonzero()[0]:
            old = names[place]
            replaced = old in under and lives[old][1] == time and offsets[old] == offsets[new]
            if not replaced and not shows_same(homes, offsets, old, new):
                raise ArtifactError(
                    f"{old!r} at {_span(old, offsets, room)} and {new!r} at {_span(new, offsets, room)} overlap and "
                    "are alive at the same time",
                    where=_WHERE,
                    fix=_FIX,
                )
        alive[index] = True


def shows_same(homes: Homes, offsets: dict[str, int], a: str, b: str) -> bool:
    """Whether the shared bytes of two tensors hold equal contents, because both are views of one tensor."""
    (root, distance), (other_root, other_distance) = homes[a], homes[b]
    return root == other_root and offsets[a] - distance == offsets[b] - other_distance


def _span(name: str, offsets: dict[str, int], room: Mapping[str, int]) -> str:
    return f"bytes {offsets[name]} to {offsets[name] + room[name]}"


_WHERE = "program.json, memory"
_FIX = "Compile the model again."
