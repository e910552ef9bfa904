"""Instructions that move codes without changing them, in C."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qcompiler.backends.integer.c.rules.windows import images, window_of
from qcompiler.backends.integer.c.shapes import Shape, check_rank, merged, physical_axes, reshaped, steps_of
from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()


@emits("max_pool2d")
def max_pool(writer: Writer, step: Step) -> None:
    """`max_pool2d`."""
    item, call = step.item, writer.call_of(step.item)
    sizes, distances = images(writer, step, call)
    ctype = writer.ctype(item.inputs[0])
    lowest = {"int8_t": -(2**7), "int16_t": -(2**15)}.get(ctype, 0)
    dilation = call["dilation"]
    members = {**sizes, **window_of(call), "dilation_y": dilation[0], "dilation_x": dilation[1]}
    writer.emit(step, "max_pool", {"X": ctype}, item.inputs, {**members, **distances, "lowest": lowest})


@emits("reshape")
def reshape(writer: Writer, step: Step) -> None:
    """`reshape`."""
    item = step.item
    (source,), result = item.inputs, item.output
    x, y = writer.shapes[source], writer.shapes[result]
    box = reshaped(x, y, writer.layout)
    if box is None:
        # Sizes that cross: [4, 6] to [6, 4]. Both are walked element by element.
        boxes = [merged(shape, steps_of(shape, writer.layout)) for shape in (x, y)]
        members: dict[str, Value] = {"count": math.prod(y)}
        for letter, found in zip("xy", boxes, strict=True):
            check_rank(found, item)
            members[f"{letter}_rank"] = len(found)
            members[f"{letter}_size"] = [size for size, _ in found] or [0]
            members[f"{letter}_step"] = [distance for _, distance in found] or [0]
        writer.emit(step, "reorder", {"X": writer.ctype(result)}, [source], members)
        return
    _move(writer, step, source, box)


@emits("permute")
def permute(writer: Writer, step: Step) -> None:
    """`permute`."""
    (source,), result = step.item.inputs, step.item.output
    axes = [int(axis) for axis in writer.call_of(step.item)["axes"]]
    distances = writer.steps(source)
    box = box_of(writer, writer.shapes[result], [distances[axis] for axis in axes], writer.steps(result))
    _move(writer, step, source, box)


@emits("concat")
def concat(writer: Writer, step: Step) -> None:
    """`concat`: one call for each operand."""
    item, axis = step.item, int(writer.call_of(step.item)["axis"])
    distances, begin = writer.steps(item.output), 0
    parts: list[slice] = []
    for source in item.inputs:
        shape, calls = writer.shapes[source], len(step.lines)
        first = begin * distances[axis]
        box = box_of(writer, shape, writer.steps(source), distances)
        _move(writer, step, source, box, y_first=first)
        if len(step.lines) > calls:
            parts.append(writer.bytes_of(item.output, first, math.prod(shape)))
        begin += shape[axis]
    # Operands that are already in the result are consecutive, and so are the others.
    step.writes = None if len(parts) == len(item.inputs) else parts


@emits("slice")
def slice_(writer: Writer, step: Step) -> None:
    """`slice`."""
    (source,), result, call = step.item.inputs, step.item.output, writer.call_of(step.item)
    axis, start, stride = (int(call[key]) for key in ("axis", "start", "step"))
    distances = writer.steps(source)
    strides = [distance * (stride if a == axis else 1) for a, distance in enumerate(distances)]
    box = box_of(writer, writer.shapes[result], strides, writer.steps(result))
    _move(writer, step, source, box, x_first=start * distances[axis])


@emits("gather")
def gather(writer: Writer, step: Step) -> None:
    """`gather`: one call for each run of indices with equal distances, or for all if runs themselves repeat."""
    (source,), result, call = step.item.inputs, step.item.output, writer.call_of(step.item)
    axis, indices = int(call["axis"]), [int(index) for index in call["indices"]]
    x_steps, y_steps = writer.steps(source), writer.steps(result)
    shape = writer.shapes[result]
    begin = 0
    for first, (count, outer), (length, inner) in runs_of(indices):
        sizes, left, right = list(shape), list(x_steps), list(y_steps)
        sizes[axis : axis + 1] = [count, length]
        left[axis : axis + 1] = [outer * x_steps[axis], inner * x_steps[axis]]
        right[axis : axis + 1] = [length * y_steps[axis], y_steps[axis]]
        order = physical_axes(len(shape), writer.layout)
        axes = [a + (a > axis) + part for a in order for part in ((0, 1) if a == axis else (0,))]
        box = merged([sizes[a] for a in axes], [left[a] for a in axes], [right[a] for a in axes])
        _move(writer, step, source, box, first * x_steps[axis], begin * y_steps[axis])
        begin += count * length
    step.writes = None


def runs_of(indices: Sequence[int]) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Indices as grids: index (i, j) of a grid is first + i * outer + j * inner.

    Returns:
        One grid if all indices are one, such as repeated or reversed ranges; otherwise runs, with one row each.
        For each: the first index, rows and their distance, columns and their distance.
    """
    count = len(indices)
    for columns in (columns for columns in range(1, count + 1) if not count % columns):
        rows = count // columns
        inner = indices[1] - indices[0] if columns > 1 else 0
        outer = indices[columns] - indices[0] if rows > 1 else 0
        grid = [indices[0] + i * outer + j * inner for i in range(rows) for j in range(columns)]
        if grid == list(indices):
            return [(indices[0], (rows, outer), (columns, inner))]
    runs, begin = [], 0
    while begin < count:
        distance = indices[begin + 1] - indices[begin] if begin + 1 < count else 0
        end = begin + 1
        while end < count and indices[end] - indices[end - 1] == distance:
            end += 1
        runs.append((indices[begin], (1, 0), (end - begin, distance)))
        begin = end
    return runs


@emits("expand")
def expand(writer: Writer, step: Step) -> None:
    """`expand`: the step along a repeated axis is 0."""
    source, result = step.item.inputs[0], step.item.output
    own = writer.shapes[source]
    steps = [0 if size == 1 else distance for size, distance in zip(own, writer.steps(source), strict=True)]
    _move(writer, step, source, box_of(writer, writer.shapes[result], steps, writer.steps(result)))


@emits("embedding")
def embedding(writer: Writer, step: Step) -> None:
    """`embedding`: one row for each id."""
    (rows, ids), result = step.item.inputs, step.item.output
    shape, steps = writer.shapes[result], writer.steps(result)
    box = merged(shape[:-1], writer.steps(ids), steps[:-1])
    check_rank(box, step.item)
    members: dict[str, Value] = {
        "count": math.prod(shape[:-1]),
        "rank": len(box),
        "size": [size for size, *_ in box] or [0],
        "id_step": [distance for _, distance, _ in box] or [0],
        "y_step": [distance for *_, distance in box] or [0],
        "width": shape[-1],
        "y_next": steps[-1],
        "rows": writer.shapes[rows][0],
    }
    types = {"X": writer.ctype(result), "IDS": writer.ctype(ids)}
    writer.emit(step, "embedding", types, [rows, ids], members)


@emits("masked")
def masked(writer: Writer, step: Step) -> None:
    """`masked`: the mask by its own strides."""
    (source, mask), result = step.item.inputs, step.item.output
    shape, own = writer.shapes[result], writer.shapes[mask]
    lead = len(shape) - len(own)
    distances = [0] * lead + [
        0 if size == 1 else distance for size, distance in zip(own, writer.steps(mask), strict=True)
    ]
    box = box_of(writer, shape, writer.steps(source), distances)
    check_rank(box, step.item)
    zero_point = writer.program.tensors[result].zero_point
    members: dict[str, Value] = {
        "count": math.prod(shape),
        "rank": len(box),
        "size": [size for size, *_ in box] or [0],
        "x_step": [x for _, x, _ in box] or [0],
        "mask_step": [m for *_, m in box] or [0],
        "zero": zero_point[0] if zero_point else 0,
    }
    writer.emit(step, "masked", {"X": writer.ctype(result)}, [source, mask], members)


@emits("pad")
def pad(writer: Writer, step: Step) -> None:
    """`pad`: the whole result is filled, then the inner part is copied; negative amounts crop."""
    (source,), result, call = step.item.inputs, step.item.output, writer.call_of(step.item)
    x, y = writer.shapes[source], writer.shapes[result]
    amounts = [int(amount) for amount in call["pad"]]
    begins, ends = amounts[: len(x)], amounts[len(x) :]
    ctype = writer.ctype(result)
    if any(amount > 0 for amount in amounts):
        function = writer.library.use("fill", X=ctype)
        step.lines.append(f"{function}({writer.pointer(result)}, {math.prod(y)}, {int(call['value'])});")
    inner = tuple(size + min(b, 0) + min(e, 0) for size, b, e in zip(x, begins, ends, strict=True))
    if min(inner) < 1:
        return
    x_steps, y_steps = writer.steps(source), writer.steps(result)
    x_first = sum(max(-b, 0) * distance for b, distance in zip(begins, x_steps, strict=True))
    y_first = sum(max(b, 0) * distance for b, distance in zip(begins, y_steps, strict=True))
    filled = bool(step.lines)
    _move(writer, step, source, box_of(writer, inner, x_steps, y_steps), x_first, y_first)
    step.writes = None if filled else step.writes


def _move(
    writer: Writer, step: Step, source: str, box: Sequence[tuple[int, ...]], x_first: int = 0, y_first: int = 0
) -> None:
    """A call that moves a box: size, step in x and step in y of each axis; none where all of it is there already."""
    if writer.same_place(source, step.item.output, x_first, y_first) and all(x == y for _, x, y in box):
        writer.pointer(source)
        writer.pointer(step.item.output)
        step.writes = step.writes or []
        return
    check_rank(box, step.item)
    *outer, (inner, x_next, y_next) = list(box) or [(1, 0, 0)]
    members: dict[str, Value] = {
        "x_first": x_first,
        "y_first": y_first,
        "outer": math.prod(size for size, *_ in outer),
        "inner": inner,
        "rank": len(outer),
        "size": [size for size, *_ in outer] or [0],
        "x_step": [x for _, x, _ in outer] or [0],
        "x_next": x_next,
        "y_step": [y for *_, y in outer] or [0],
        "y_next": y_next,
    }
    writer.emit(step, "move", {"X": writer.ctype(step.item.output)}, [source], members)


def box_of(writer: Writer, shape: Shape, x_steps: Sequence[int], y_steps: Sequence[int]) -> list[tuple[int, ...]]:
    """Sizes and steps of the axes of `shape` in the order in which memory holds a tensor of that shape."""
    axes = physical_axes(len(shape), writer.layout)
    return merged([shape[a] for a in axes], [x_steps[a] for a in axes], [y_steps[a] for a in axes])
