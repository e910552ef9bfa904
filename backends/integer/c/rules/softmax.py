"""Softmax and its logarithm in C."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qcompiler.backends.integer.c.shapes import check_rank, merged
from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.errors import UnsupportedError
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()

INVERSES = 513
"""Entries of the reciprocal at the beginning of a table of the mode `lut16`."""
_KINDS = {"table": "int32_t", "f32": "float", "gemmlowp": "int32_t", "lut16": "int16_t"}
"""Element type of the table of each mode."""


@emits("int_softmax")
def softmax(writer: Writer, step: Step) -> None:
    """`int_softmax`: rows by strides; the mask is a constant or computed."""
    item, call = step.item, writer.call_of(step.item)
    mode = str(call["mode"])
    if mode not in _KINDS:
        raise UnsupportedError(f"C has no softmax of the mode {mode!r}", expected=", ".join(_KINDS))
    table = writer.operand(item, 1)
    mask, mask_steps = _mask(writer, step)
    first = INVERSES if mode == "lut16" else 0
    over = _rows(writer, step, mask_steps)
    over |= {"numerator": int(call["numerator"]), "first": first, "entries": len(table) - first}
    symbol = writer.constant(item.inputs[1], table, _KINDS[mode], f"exponentials of %{item.output}")
    types = {"X": writer.ctype(item.inputs[0]), "Y": writer.ctype(item.output), "SOFTMAX": mode, "TABLE": _KINDS[mode]}
    members: dict[str, Value] = {"over": over, "table": symbol}
    writer.emit(step, "softmax", types, item.inputs[:1], members, extra=[mask])


@emits("int_log_softmax")
def log_softmax(writer: Writer, step: Step) -> None:
    """`int_log_softmax`: rows by strides."""
    item, call = step.item, writer.call_of(step.item)
    names = ("exponentials", "logarithms")
    tables = [writer.operand(item, index) for index in (1, 2)]
    over = _rows(writer, step, [0] * len(call.output.shape))
    over |= {"numerator": int(call["multiplier"]), "first": 0, "entries": len(tables[0])}
    members: dict[str, Value] = {"over": over, "rise": int(call["rise"])}
    for name, source, table in zip(names, item.inputs[1:], tables, strict=True):
        members[name] = writer.constant(source, table, "int32_t", f"{name} of %{item.output}")
    types = {"X": writer.ctype(item.inputs[0]), "Y": writer.ctype(item.output)}
    writer.emit(step, "log_softmax", types, item.inputs[:1], members)


def _rows(writer: Writer, step: Step, mask_steps: Sequence[int]) -> dict[str, Value]:
    """Members of `softmax_rows` that describe the rows and the result."""
    item, call = step.item, writer.call_of(step.item)
    axis, shape, distances = int(call["axis"]), call.output.shape, writer.steps(item.inputs[0])
    outer = [a for a in range(len(shape)) if a != axis]
    box = merged(*([values[a] for a in outer] for values in (shape, distances, mask_steps)))
    check_rank(box, item)
    low, high = call.limits
    return {
        "rows": math.prod(shape[a] for a in outer),
        "rank": len(box),
        "size": [size for size, *_ in box] or [0],
        "x_step": [x for _, x, _ in box] or [0],
        "mask_step": [m for *_, m in box] or [0],
        "count": shape[axis],
        "x_next": distances[axis],
        "mask_next": mask_steps[axis],
        "zero_point": call.output.zero_point[0],
        "low": int(low),
        "high": int(high),
        "shift": int(call["shift"]),
    }


def _mask(writer: Writer, step: Step) -> tuple[str, list[int]]:
    """The expression of the mask, and the distance of neighbours along each axis of the input."""
    item, rank = step.item, len(writer.shapes[step.item.output])
    if len(item.inputs) < 3:
        return "0", [0] * rank
    name = item.inputs[2]
    if name not in writer.files.constants:
        own, steps = writer.shapes[name], writer.steps(name)
        found = [0 if size == 1 else distance for size, distance in zip(own, steps, strict=True)]
        return writer.pointer(name), [0] * (rank - len(own)) + found
    array = writer.operand(item, 2)
    padded = array.reshape((1,) * (rank - array.ndim) + array.shape)
    distances = [math.prod(padded.shape[a + 1 :]) if size > 1 else 0 for a, size in enumerate(padded.shape)]
    note = f"elements that take part in %{item.output}"
    return writer.constant(item.inputs[2], padded.astype(np.uint8), "uint8_t", note), distances
