"""Sums, products and clamps in C: each code is computed from codes at the same position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qcompiler.backends.integer.c.library import mode_of
from qcompiler.backends.integer.c.scales import requantizer, scale_in
from qcompiler.backends.integer.c.shapes import broadcast, check_rank, merged, physical_axes
from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.ir.table import Table
from qcompiler.program.kernels import Call

emits: Table[Rule] = Table()


@emits("int_add")
def add(writer: Writer, step: Step) -> None:
    """`int_add`."""
    step.elementwise = True
    item, call, types = step.item, writer.call_of(step.item), _types(writer, step)
    if types["MODE"] == "f32":
        _in_float32(writer, step, types, "sub" if call.get("subtract") else "add")
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


@emits("int_mul")
def mul(writer: Writer, step: Step) -> None:
    """`int_mul`."""
    step.elementwise = True
    item, call, types = step.item, writer.call_of(step.item), _types(writer, step)
    if types["MODE"] == "f32":
        _in_float32(writer, step, types, "mul")
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


_SIGNS = {"add": "+", "sub": "-", "mul": "*"}
"""Operations of float32, and how C writes them."""


def _in_float32(writer: Writer, step: Step, types: dict[str, str], operation: str) -> None:
    call = writer.call_of(step.item)
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
    types = {**types, "OPERATION": operation, "SIGN": _SIGNS[operation]}
    writer.emit(step, "elementwise_f32", types, step.item.inputs, members)


def _left_is_scalar(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether ONNX Runtime's kernels exchange the operands."""
    rank = len(broadcast(tuple(left), tuple(right)))
    pairs = zip((1,) * (rank - len(left)) + tuple(left), (1,) * (rank - len(right)) + tuple(right), strict=True)
    wide = [a for a, b in pairs if (a, b) != (1, 1)]
    return not wide or wide[-1] == 1


@emits("maximum")
def maximum(writer: Writer, step: Step) -> None:
    """`maximum`."""
    _extreme(writer, step, ">")


@emits("minimum")
def minimum(writer: Writer, step: Step) -> None:
    """`minimum`."""
    _extreme(writer, step, "<")


def _extreme(writer: Writer, step: Step, order: str) -> None:
    step.elementwise = True
    item = step.item
    types = {"X": writer.ctype(item.output), "OPERATION": item.op, "ORDER": order}
    writer.emit(step, "extreme", types, item.inputs, _walk(writer, step, item.inputs))


@emits("int_clamp")
def clamp(writer: Writer, step: Step) -> None:
    """`int_clamp`."""
    step.elementwise = True
    item, call = step.item, writer.call_of(step.item)
    axis = int(call["axis"])
    members = writer.channel_box(item.inputs[0], axis)
    for key, end in zip(("low", "high"), call.limits, strict=True):
        values = np.broadcast_to(np.asarray(end, np.int64), (call.output.shape[axis],))
        members[key] = writer.constant(f"{item.output}.{key}", values, "int32_t", f"{key}s of %{item.output}")
    types = {"X": writer.ctype(item.inputs[0]), "Y": writer.ctype(item.output)}
    writer.emit(step, "clamp_channels", types, item.inputs[:1], members)


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
