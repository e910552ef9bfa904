"""Elementwise instructions: each code is computed from codes at the same position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qcompiler.backends.integer.c.library import RAW, mode_of
from qcompiler.backends.integer.c.memory import SIZES
from qcompiler.backends.integer.c.shapes import broadcast, check_rank, merged, physical_axes
from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import (
    Scale,
    Step,
    Writer,
    accumulator,
    dtype_limits,
    requantizer,
    scale_in,
    scale_of,
)
from qcompiler.errors import ArtifactError, UnsupportedError
from qcompiler.program.kernels import Call


def _types(writer: Writer, step: Step) -> dict[str, str]:
    a, b = step.item.inputs
    call = writer.call_of(step.item)
    types = {"A": writer.ctype(a), "B": writer.ctype(b), "Y": writer.ctype(step.item.output)}
    return {**types, "MODE": str(call["mode"]), "ACC": "int64_t"}


def _of_bytes(types: dict[str, str]) -> bool:
    """Whether vectors compute it, where there are some."""
    return types["MODE"] == "single" and {types["A"], types["B"], types["Y"]} <= {"int8_t", "uint8_t"}


def _walk(writer: Writer, step: Step, operands: Sequence[str]) -> dict[str, Value]:
    """Members that say which elements of both operands meet."""
    shape = writer.shapes[step.item.output]
    distances = []
    for name in operands:
        own = writer.shapes[name]
        padded = (1,) * (len(shape) - len(own)) + own
        # An operand of fewer axes keeps the order that it has in memory.
        steps = (0,) * (len(shape) - len(own)) + writer.steps(name)
        distances.append([0 if size == 1 else step for size, step in zip(padded, steps, strict=True)])
    axes = physical_axes(len(shape), writer.layout)
    box = merged([shape[a] for a in axes], *([steps[a] for a in axes] for steps in distances)) or [(1, 0, 0)]
    check_rank(box, step.item)
    *outer, (inner, a_next, b_next) = box
    return {
        "outer": math.prod(size for size, *_ in outer),
        "inner": inner,
        "rank": len(outer),
        "size": [size for size, *_ in outer] or [0],
        "a_step": [a for _, a, _ in outer] or [0],
        "a_next": a_next,
        "b_step": [b for *_, b in outer] or [0],
        "b_next": b_next,
    }


def add(writer: Writer, step: Step) -> None:
    """`int_add`."""
    step.elementwise = True
    item, call, types = step.item, writer.call_of(step.item), _types(writer, step)
    if types["MODE"] == "f32":
        _in_float32(writer, step, call, {**types, "OPERATION": "sub" if call.get("subtract") else "add"})
        return
    form = mode_of(types["MODE"]).form
    if form == "float":
        _add_float(writer, step, call, types)
        return
    left, right, out = (scale_in(call, side) for side in ("left", "right", "out"))
    step.notes += [f"{side}: {scale.text()}" for side, scale in (("a", left), ("b", right), ("sum", out))]
    writer.emit(
        step,
        ("add_bytes" if _of_bytes(types) else "add") if form == "integer" else "add_shift",
        types,
        item.inputs,
        {
            **_walk(writer, step, item.inputs),
            "a_zero_point": call.zero_point(0),
            "b_zero_point": call.zero_point(1),
            "shift": int(call["shift"]),
            **left.members("a_"),
            **right.members("b_"),
            "sign": -1 if call.get("subtract") else 1,
            "to": requantizer(call, out),
        },
    )


def _add_float(writer: Writer, step: Step, call: Call, types: dict[str, str]) -> None:
    sides, offset, operands = ("left", "right"), call["offset"], step.item.inputs
    if _left_is_scalar(call.inputs[0].shape, call.inputs[1].shape):
        sides, offset, operands = ("right", "left"), call["scalar_left_offset"], (operands[1], operands[0])
        types = {**types, "A": types["B"], "B": types["A"]}
    low, high = call.limits
    first, second = (float(call[f"{side}_multiplier"]) for side in sides)
    step.notes.append(f"{first:.6g} a + {second:.6g} b + {float(offset):.6g}")
    writer.emit(
        step,
        "add_f32_rne",
        types,
        operands,
        {
            **_walk(writer, step, operands),
            "a_multiplier": first,
            "b_multiplier": second,
            "offset": float(offset),
            "low": int(low),
            "high": int(high),
        },
    )


def _in_float32(writer: Writer, step: Step, call: Call, types: dict[str, str]) -> None:
    low, high = call.limits
    scales = [float(tensor.scale[0]) for tensor in (*call.inputs, call.output)]
    step.notes.append("scales {:.6g} and {:.6g} to {:.6g}".format(*scales))
    members = {
        **_walk(writer, step, step.item.inputs),
        "a_zero_point": call.zero_point(0),
        "b_zero_point": call.zero_point(1),
        **dict(zip(("a_scale", "b_scale", "scale"), scales, strict=True)),
        "zero_point": call.output.zero_point[0],
        "low": int(low),
        "high": int(high),
    }
    writer.emit(step, "elementwise_f32", types, step.item.inputs, members)


def _left_is_scalar(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether ONNX Runtime's kernels exchange the operands."""
    rank = len(broadcast(tuple(left), tuple(right)))
    pairs = zip((1,) * (rank - len(left)) + tuple(left), (1,) * (rank - len(right)) + tuple(right), strict=True)
    wide = [a for a, b in pairs if (a, b) != (1, 1)]
    return not wide or wide[-1] == 1


def mul(writer: Writer, step: Step) -> None:
    """`int_mul`."""
    step.elementwise = True
    item, call, types = step.item, writer.call_of(step.item), _types(writer, step)
    if types["MODE"] == "f32":
        _in_float32(writer, step, call, {**types, "OPERATION": "mul"})
        return
    scale = scale_in(call, "product")
    step.notes.append(scale.text())
    members: dict[str, Value] = {
        **_walk(writer, step, item.inputs),
        "a_zero_point": call.zero_point(0),
        "b_zero_point": call.zero_point(1),
    }
    if mode_of(types["MODE"]).form == "float":
        writer.emit(step, "mul_f32_rne", types, item.inputs, {**members, **requantizer(call, scale)})
        return
    template = "mul_bytes" if _of_bytes(types) else "mul"
    writer.emit(step, template, types, item.inputs, {**members, "to": requantizer(call, scale)})


def rescale(writer: Writer, step: Step) -> None:
    """`rescale`."""
    step.elementwise = True
    item, call = step.item, writer.call_of(step.item)
    scale = _scalar(writer, step, call, 1)
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


def _scalar(writer: Writer, step: Step, call: Call, first: int) -> Scale:
    """The one multiplier in the operands from `first` on; notes it."""
    parts = scale_of(writer, call, first)
    multiplier, exponent = (None if p is None else p.reshape(-1)[:1] for p in (parts.multiplier, parts.exponent))
    scale = Scale(parts.mode, multiplier, exponent)
    step.notes.append(scale.text())
    return scale


def channel_box(writer: Writer, tensor: str, axis: int) -> dict[str, Value]:
    """Sizes in memory in front of, along and behind an axis."""
    shape = writer.shapes[tensor]
    order = physical_axes(len(shape), writer.layout)
    at = order.index(axis)
    return {
        "outer": math.prod(shape[a] for a in order[:at]),
        "channels": shape[axis],
        "inner": math.prod(shape[a] for a in order[at + 1 :]),
    }


def lookup(writer: Writer, step: Step) -> None:
    """`lookup`: a table of 8-bit codes has an entry for each of the 256, so that none reads beside it."""
    step.elementwise = True
    item, call = step.item, writer.call_of(step.item)
    x, first, axis = item.inputs[0], int(call["offset"]), call.get("axis")
    table = np.atleast_2d(writer.operand(item, 1))
    ctype = writer.ctype(x)
    if SIZES[ctype] == 1:
        low, high = dtype_limits("i8" if ctype == "int8_t" else "u8")
        table = np.pad(table, ((0, 0), (first - low, high + 1 - first - table.shape[1])), mode="edge")
        first = low
    count = math.prod(call.output.shape)
    box: dict[str, Value] = {"outer": 1, "channels": 1, "inner": count}
    rows: Value = "0"
    if axis is not None:
        box = channel_box(writer, x, int(axis))
        if len(item.inputs) > 2:
            named = writer.operand(item, 2)
            rows = writer.constant(item.inputs[2], named, "int32_t", f"tables of the channels of %{item.output}")
    result = writer.ctype(item.output)
    symbol = writer.constant(item.inputs[1], table, result, f"table for %{item.output}")
    members = {**box, "table": symbol, "first": first, "entries": table.shape[1], "rows": rows}
    writer.emit(step, "lookup", {"X": ctype, "Y": result}, [x], members)


def clamp(writer: Writer, step: Step) -> None:
    """`int_clamp`."""
    step.elementwise = True
    item, call = step.item, writer.call_of(step.item)
    axis = int(call["axis"])
    members = channel_box(writer, item.inputs[0], axis)
    for key, end in zip(("low", "high"), call.limits, strict=True):
        values = np.broadcast_to(np.asarray(end, np.int64), (call.output.shape[axis],))
        members[key] = writer.constant(f"{item.output}.{key}", values, "int32_t", f"{key}s of %{item.output}")
    types = {"X": writer.ctype(item.inputs[0]), "Y": writer.ctype(item.output)}
    writer.emit(step, "clamp_channels", types, item.inputs[:1], members)


def mean(writer: Writer, step: Step) -> None:
    """`int_mean`."""
    item, call = step.item, writer.call_of(step.item)
    x, shape = call.inputs[0], call.inputs[0].shape
    axes = [int(axis) for axis in call["axes"]]
    distances = writer.steps(item.inputs[0])
    summed = merged([shape[a] for a in axes], [distances[a] for a in axes]) or [(1, 0)]
    # The axes of the result in the order of memory, each with the axis of x that it runs along.
    along = [a for a in range(len(shape)) if a not in axes] if not call.get("keepdim") else list(range(len(shape)))
    order = [along[a] for a in physical_axes(len(along), writer.layout)]
    kept = merged([1 if a in axes else shape[a] for a in order], [distances[a] for a in order])
    for box in (summed, kept):
        check_rank(box, item)
    *outer, (inner, next_one) = summed
    count = math.prod(shape[a] for a in axes)
    bound = count * max(abs(limit - x.zero_point[0]) for limit in dtype_limits(x.dtype))
    scale = _scalar(writer, step, call, 1)
    types = {"X": writer.ctype(item.inputs[0]), "Y": writer.ctype(item.output), "MODE": scale.mode}
    members: dict[str, Value] = {
        "count": math.prod(call.output.shape),
        "rank": len(kept),
        "size": [size for size, _ in kept] or [0],
        "step": [distance for _, distance in kept] or [0],
        "summed": math.prod(size for size, _ in outer),
        "sum_rank": len(outer),
        "sum_size": [size for size, _ in outer] or [0],
        "sum_step": [distance for _, distance in outer] or [0],
        "inner": inner,
        "next": next_one,
        "x_zero_point": x.zero_point[0],
    }
    if call.get("divisor") is None:
        members |= {"run": kept[-1][0] if kept and kept[-1][1] == 1 else 1, "to": requantizer(call, scale)}
        writer.emit(step, "mean", {**types, "ACC": accumulator(bound)}, item.inputs[:1], members)
        return
    if scale.multiplier is not None or scale.exponent is None:
        raise ArtifactError(f"a divisor with a multiplier of the mode {scale.mode!r}", where=f"%{item.output}")
    power, (low, high) = int(scale.exponent[0]), call.limits
    factor, divisor = 1 << max(power, 0), int(call["divisor"]) << max(-power, 0)
    members |= {"factor": factor, "divisor": divisor}
    members |= {"zero_point": call.output.zero_point[0], "low": int(low), "high": int(high)}
    largest = max(bound * factor, divisor)
    if str(call["rounding"]).endswith(RAW):
        largest += divisor * abs(call.output.zero_point[0])
    types |= {"ACC": accumulator(largest), "ROUNDING": str(call["rounding"])}
    writer.emit(step, "mean_divided", types, item.inputs[:1], members)


def layer_norm(writer: Writer, step: Step) -> None:
    """`int_layer_norm`."""
    item, call = step.item, writer.call_of(step.item)
    shape, distances = call.output.shape, writer.steps(item.output)
    weight, bias = writer.operand(item, 1), writer.operand(item, 2)
    front = len(shape) - weight.ndim
    rows, inner = (merged(shape[part], distances[part]) for part in (slice(front), slice(front, None)))
    for box in (rows, inner):
        check_rank(box, item)
    if int(np.abs(weight.astype(np.int64)).max(initial=0)) >= 2**15:
        raise UnsupportedError("a weight of a normalization leaves 16 bits", where=f"%{item.output}")
    scale = _scalar(writer, step, call, 3)
    types = {"X": writer.ctype(item.inputs[0]), "Y": writer.ctype(item.output), "MODE": scale.mode}
    writer.emit(
        step,
        "layer_norm",
        {**types, "ACC": "int64_t", "ROUNDING": "rhup"},
        item.inputs[:1],
        {
            "rows": math.prod(shape[:front]),
            "rank": len(rows),
            "size": [size for size, _ in rows] or [0],
            "step": [distance for _, distance in rows] or [0],
            "count": weight.size,
            "inner_rank": len(inner),
            "inner_size": [size for size, _ in inner] or [0],
            "inner_step": [distance for _, distance in inner] or [0],
            "x_zero_point": call.zero_point(0),
            "epsilon": int(call["epsilon"]),
            "fraction": int(call["fraction"]),
            "weight": writer.constant(item.inputs[1], weight, "int16_t", f"weights of %{item.output}"),
            "bias": writer.constant(item.inputs[2], bias, "int32_t", f"bias of %{item.output}"),
            "to": requantizer(call, scale),
        },
    )
