"""Lookup tables in C."""

from __future__ import annotations

import math

import numpy as np

from qcompiler.backends.integer.c.memory import SIZES
from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.ir.table import Table
from qcompiler.program.kernels.call import limits_of

emits: Table[Rule] = Table()


@emits("lookup")
def lookup(writer: Writer, step: Step) -> None:
    """`lookup`: a table for 8-bit codes has 256 entries, so that no code reads outside of it."""
    step.elementwise = True
    item, call = step.item, writer.call_of(step.item)
    x, first, axis = item.inputs[0], int(call["offset"]), call.get("axis")
    table = np.atleast_2d(writer.operand(item, 1))
    ctype = writer.ctype(x)
    if SIZES[ctype] == 1:
        low, high = limits_of("i8" if ctype == "int8_t" else "u8")
        table = np.pad(table, ((0, 0), (first - low, high + 1 - first - table.shape[1])), mode="edge")
        first = low
    count = math.prod(call.output.shape)
    box: dict[str, Value] = {"outer": 1, "channels": 1, "inner": count}
    rows: Value = "0"
    if axis is not None:
        box = writer.channel_box(x, int(axis))
        if len(item.inputs) > 2:
            named = writer.operand(item, 2)
            rows = writer.constant(item.inputs[2], named, "int32_t", f"tables of the channels of %{item.output}")
    result = writer.ctype(item.output)
    symbol = writer.constant(item.inputs[1], table, result, f"table for %{item.output}")
    members = {**box, "table": symbol, "first": first, "entries": table.shape[1], "rows": rows}
    writer.emit(step, "lookup", {"X": ctype, "Y": result}, [x], members)
