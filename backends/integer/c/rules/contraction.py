"""Matrix products of two activations in C."""

from __future__ import annotations

import math

from qcompiler.backends.integer.c.scales import accumulator, requantizer, scalar_scale_of
from qcompiler.backends.integer.c.shapes import check_rank, merged
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.ir.table import Table
from qcompiler.program.kernels.call import largest_step

emits: Table[Rule] = Table()


@emits("int_matmul")
def matmul(writer: Writer, step: Step) -> None:
    """`int_matmul`: the strides of each operand, so that any order of axes in memory is read in place."""
    item, call = step.item, writer.call_of(step.item)
    shape, names = call.output.shape, (*item.inputs[:2], item.output)
    outer = shape[:-2]
    distances = []
    for name in names:
        own, strides = writer.shapes[name], writer.steps(name)
        padded = (1,) * (len(shape) - len(own)) + own
        aligned = (0,) * (len(shape) - len(own)) + strides
        distances.append([0 if size == 1 else distance for size, distance in zip(padded, aligned, strict=True)])
    box = merged(outer, *(found[:-2] for found in distances))
    check_rank(box, item)
    a, b, y = distances
    terms = call.inputs[0].shape[-1]
    scale = scalar_scale_of(writer, step, call, 2)
    bound = terms * largest_step(call.inputs[0]) * largest_step(call.inputs[1])
    types = {name: writer.ctype(tensor) for name, tensor in zip("ABY", names, strict=True)}
    writer.emit(
        step,
        "matmul",
        {**types, "MODE": scale.mode, "ACC": accumulator(bound)},
        item.inputs[:2],
        {
            "batch": math.prod(outer),
            "rank": len(box),
            "size": [size for size, *_ in box] or [0],
            **{f"{letter}_step": [item[i] for item in box] or [0] for i, letter in enumerate("aby", start=1)},
            "rows": shape[-2],
            "columns": shape[-1],
            "terms": terms,
            "a_row": a[-2],
            "a_term": a[-1],
            "b_term": b[-2],
            "b_column": b[-1],
            "y_row": y[-2],
            "y_column": y[-1],
            "a_zero_point": call.zero_point(0),
            "b_zero_point": call.zero_point(1),
            "to": requantizer(call, scale),
        },
    )
