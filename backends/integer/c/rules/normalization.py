"""Normalizations in C."""

from __future__ import annotations

import math

import numpy as np

from qcompiler.backends.integer.c.scales import requantizer, scalar_scale_of
from qcompiler.backends.integer.c.shapes import check_rank, merged
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.errors import UnsupportedError
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()


@emits("int_layer_norm")
def layer_norm(writer: Writer, step: Step) -> None:
    """`int_layer_norm`."""
    item, call = step.item, writer.call_of(step.item)
    shape, distances = call.output.shape, writer.steps(item.output)
    weight, bias = writer.operand(item, 1), writer.operand(item, 2)
    front = len(shape) - int(call.get("dims") or weight.ndim)
    lead = len(shape) - weight.ndim
    own = [math.prod(weight.shape[axis + 1 :]) if size > 1 else 0 for axis, size in enumerate(weight.shape)]
    of_weight = [0] * lead + own
    rows, inner = (merged(shape[part], distances[part], of_weight[part]) for part in (slice(front), slice(front, None)))
    for box in (rows, inner):
        check_rank(box, item)
    if int(np.abs(weight.astype(np.int64)).max(initial=0)) >= 2**15:
        raise UnsupportedError("a weight of a normalization exceeds 16 bits", where=f"%{item.output}")
    scale = scalar_scale_of(writer, step, call, 3)
    types = {"X": writer.ctype(item.inputs[0]), "Y": writer.ctype(item.output), "MODE": scale.mode}
    writer.emit(
        step,
        "layer_norm",
        {**types, "ACC": "int64_t", "ROUNDING": "rhup"},
        item.inputs[:1],
        {
            "rows": math.prod(shape[:front]),
            "rank": len(rows),
            "size": [size for size, *_ in rows] or [0],
            "step": [distance for _, distance, _ in rows] or [0],
            "weight_step": [distance for *_, distance in rows] or [0],
            "count": math.prod(shape[front:]),
            "inner_rank": len(inner),
            "inner_size": [size for size, *_ in inner] or [0],
            "inner_step": [distance for _, distance, _ in inner] or [0],
            "inner_weight_step": [distance for *_, distance in inner] or [0],
            "centered": int(call.get("centered") is not False),
            "x_zero_point": call.zero_point(0),
            "epsilon": int(call["epsilon"]),
            "fraction": int(call["fraction"]),
            "weight": writer.constant(item.inputs[1], weight, "int16_t", f"weights of %{item.output}"),
            "bias": writer.constant(item.inputs[2], bias, "int32_t", f"bias of %{item.output}"),
            "to": requantizer(call, scale),
        },
    )
