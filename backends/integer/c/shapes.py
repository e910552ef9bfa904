"""Sizes of all tensors for a known batch, and the places of their elements in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from qcompiler.errors import UnsupportedError
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Instruction

Shape: TypeAlias = tuple[int, ...]

MAX_RANK = 8
"""Axes that the kernels which walk boxes can take, neighbours that lie side by side being one."""


def shapes_for_batch(files: ProgramFiles, batch: int) -> dict[str, Shape]:
    """Sizes of every tensor, where the program says -1 those of `batch` images.

    Raises:
        UnsupportedError: They do not follow from the sizes of the inputs.
    """
    program = files.program
    shapes: dict[str, Shape] = {name: tuple(array.shape) for name, array in files.constants.items()}
    for name in files.constants:
        shapes[name] = program.tensors[name].shape  # images of weights may lie otherwise
    for name in program.inputs:
        shapes[name] = tuple(batch if size == -1 else size for size in program.tensors[name].shape)
    for item in program.instructions:
        declared = program.tensors[item.output].shape
        if -1 not in declared:
            shapes[item.output] = declared
            continue
        rule = _RULES.get(item.op, _same)
        found = rule([shapes[name] for name in item.inputs], item.attributes, declared)
        if len(found) != len(declared) or any(
            want not in (-1, have) for want, have in zip(declared, found, strict=False)
        ):
            raise UnsupportedError(
                f"%{item.output} has the sizes {list(found)} for a batch of {batch}", expected=str(list(declared))
            )
        shapes[item.output] = found
    return shapes


_Rule: TypeAlias = Callable[[Sequence[Shape], Mapping[str, Any], Shape], Shape]


def _same(operands: Sequence[Shape], attributes: Mapping[str, Any], declared: Shape) -> Shape:
    return operands[0]


def _batch_in_front(operands: Sequence[Shape], attributes: Mapping[str, Any], declared: Shape) -> Shape:
    return (operands[0][0], *declared[1:])


def _linear(operands: Sequence[Shape], attributes: Mapping[str, Any], declared: Shape) -> Shape:
    return (*operands[0][:-1], declared[-1])


def broadcast(*operands: Shape) -> Shape:
    """The sizes of what operands of these sizes give together."""
    rank = max(map(len, operands))
    padded = [(1,) * (rank - len(shape)) + shape for shape in operands]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


def _broadcast(operands: Sequence[Shape], attributes: Mapping[str, Any], declared: Shape) -> Shape:
    return broadcast(*operands)


def _mean(operands: Sequence[Shape], attributes: Mapping[str, Any], declared: Shape) -> Shape:
    axes, keep = attributes["axes"], attributes.get("keepdim")
    kept = [1 if axis in axes else size for axis, size in enumerate(operands[0]) if keep or axis not in axes]
    return tuple(kept)


def _reshape(operands: Sequence[Shape], attributes: Mapping[str, Any], declared: Shape) -> Shape:
    known = math.prod(size for size in declared if size != -1)
    return tuple(math.prod(operands[0]) // known if size == -1 else size for size in declared)


def _permute(operands: Sequence[Shape], attributes: Mapping[str, Any], declared: Shape) -> Shape:
    return tuple(operands[0][axis] for axis in attributes["axes"])


def _concat(operands: Sequence[Shape], attributes: Mapping[str, Any], declared: Shape) -> Shape:
    axis = int(attributes["axis"])
    return (*operands[0][:axis], sum(shape[axis] for shape in operands), *operands[0][axis + 1 :])


def _slice(operands: Sequence[Shape], attributes: Mapping[str, Any], declared: Shape) -> Shape:
    axis = int(attributes["axis"])
    return (*operands[0][:axis], declared[axis], *operands[0][axis + 1 :])


def _pad(operands: Sequence[Shape], attributes: Mapping[str, Any], declared: Shape) -> Shape:
    amounts, rank = attributes["pad"], len(declared)
    return tuple(size + amounts[axis] + amounts[rank + axis] for axis, size in enumerate(operands[0]))


_IMAGES = (
    *(f"int_conv{transposed}{rank}d" for transposed in ("", "_transpose") for rank in (1, 2, 3)),
    "int_avg_pool2d",
    "int_resample2d",
    "max_pool2d",
)
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_IMAGES, _batch_in_front),
    "int_linear": _linear,
    "int_add": _broadcast,
    "int_mul": _broadcast,
    "int_mean": _mean,
    "reshape": _reshape,
    "permute": _permute,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
}


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
            f"{item.op} walks {len(box)} axes", where=f"%{item.output}", expected=f"{MAX_RANK} at most"
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
