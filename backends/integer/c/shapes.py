"""Sizes of all tensors for a known batch, and the places of their elements in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from qcompiler.errors import UnsupportedError
from qcompiler.program.files import ProgramFiles
from qcompiler.program.liveness import Tensors
from qcompiler.program.program import Instruction

Shape: TypeAlias = tuple[int, ...]

MAX_RANK = 8
"""Axes that the kernels which walk boxes can take, neighbours that lie side by side being one."""


def shapes_for_batch(files: ProgramFiles, batch: int) -> dict[str, Shape]:
    """Sizes of every tensor, where the program says -1 those of `batch` images.

    Raises:
        UnsupportedError: They do not follow from the sizes of the inputs.
    """
    program, tensors = files.program, Tensors(files.program, batch)
    shapes = {name: program.tensors[name].shape for name in files.constants}  # kernels may lie otherwise
    shapes |= tensors.shapes
    shapes |= {item.inputs[0]: shapes[item.output] for item in tensors.core.entry}
    return shapes | {item.output: shapes[item.inputs[0]] for item in tensors.core.exit}


def broadcast(*operands: Shape) -> Shape:
    """The sizes of what operands of these sizes give together."""
    rank = max(map(len, operands))
    padded = [(1,) * (rank - len(shape)) + shape for shape in operands]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


def physical_axes(rank: int, layout: str) -> tuple[int, ...]:
    """The axes in the order in which memory holds them: tensors of four axes are images."""
    return (0, 2, 3, 1) if rank == 4 and layout == "NHWC" else tuple(range(rank))


def steps_of(shape: Shape, layout: str) -> tuple[int, ...]:
    """The distance in memory, in elements, of neighbours along each axis in the order of the graph."""
    steps, distance = [0] * len(shape), 1
    for axis in reversed(physical_axes(len(shape), layout)):
        steps[axis] = distance
        distance *= shape[axis]
    return tuple(steps)


def merged(shape: Sequence[int], *steps: Sequence[int]) -> list[tuple[int, ...]]:
    """Size and steps of each axis of a box, axes that are walked like one being one, and those of one element none.

    Args:
        shape: Sizes, the axis that is walked fastest last.
        steps: For each tensor that is walked, the distance of neighbours along each axis.
    """
    box: list[tuple[int, ...]] = []
    for size, *distances in zip(shape, *steps, strict=True):
        if size == 1:
            continue
        if box and all(before == size * distance for before, distance in zip(box[-1][1:], distances, strict=True)):
            box[-1] = (box[-1][0] * size, *distances)
        else:
            box.append((size, *distances))
    return box


def check_rank(box: Sequence[object], item: Instruction) -> None:
    """Refuse a box with more axes than kernels walk.

    Raises:
        UnsupportedError: It has.
    """
    if len(box) > MAX_RANK:
        raise UnsupportedError(
            f"{item.op} has {len(box)} axes", where=f"%{item.output}", expected=f"at most {MAX_RANK}"
        )


def reshaped(x: Shape, y: Shape, layout: str) -> list[tuple[int, ...]] | None:
    """The box that a `reshape` moves: size, step in x and step in y of each axis; None where axes cross.

    Both are walked in the order of the graph, from the innermost axis on, in the largest parts that both have. Where no
    byte moves, the runs of bytes are the box, even if axes cross, as from [4, 6] to [6, 4] row by row: the plan may
    make that a view.
    """
    runs = [merged(shape, steps_of(shape, layout)) for shape in (x, y)]
    if runs[0] == runs[1]:
        return [(size, step, step) for size, step in runs[0]]
    walks = [
        [(size, step) for size, step in zip(shape, steps_of(shape, layout), strict=True) if size != 1]
        for shape in (x, y)
    ]
    box: list[tuple[int, ...]] = []
    while walks[0] and walks[1]:
        (a, x_step), (b, y_step) = walks[0].pop(), walks[1].pop()
        part = min(a, b)
        if max(a, b) % part:
            return None
        box.insert(0, (part, x_step, y_step))
        for walk, size, step in ((walks[0], a, x_step), (walks[1], b, y_step)):
            if size > part:
                walk.append((size // part, step * part))
    sizes, x_steps, y_steps = zip(*box, strict=True) if box else ((), (), ())
    return merged(sizes, x_steps, y_steps)
