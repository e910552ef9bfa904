"""Instructions between grids in C."""

from __future__ import annotations

import math

from qcompiler.backends.integer.c.scales import requantizer, scalar_scale_of
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()


@emits("rescale")
def rescale(writer: Writer, step: Step) -> None:
    """`rescale`."""
    step.elementwise = True
    item, call = step.item, writer.call_of(step.item)
    scale = scalar_scale_of(writer, step, call, 1)
    types = {"X": writer.ctype(item.inputs[0]), "Y": writer.ctype(item.output), "MODE": scale.mode}
    writer.emit(
        step,
        "rescale",
        {**types, "ACC": "int32_t"},
        item.inputs[:1],
        {
            "count": math.prod(call.output.shape),
            "x_zero_point": call.zero_point(0),
            "to": requantizer(call, scale),
        },
    )
