"""Operators that move codes in TensorFlow Lite."""

from __future__ import annotations

import numpy as np

from qcompiler.backends.tflite.writer import CODES, NHWC, Rule, Writer
from qcompiler.errors import UnsupportedError
from qcompiler.ir.table import Table
from qcompiler.program.program import Instruction

emits: Table[Rule] = Table()


@emits("reshape")
def reshape(writer: Writer, item: Instruction) -> None:
    """Other sizes of the codes in logical order."""
    tensor, source = writer.declared(item.output), writer.declared(item.inputs[0])
    place = writer.stored(item.inputs[0])
    if len(source.shape) == 4 and source.shape[2:] != (1, 1):
        place = writer.logical(item.inputs[0])
    if len(tensor.shape) == 4 and tensor.shape[2:] == (1, 1):
        shape = [tensor.shape[axis] for axis in NHWC]
        writer.places[item.output] = writer.reshaped(place, shape, item.output, tensor)
        return
    writer.from_logical(item, writer.reshaped(place, tensor.shape, item.output, tensor))


@emits("permute")
def permute(writer: Writer, item: Instruction) -> None:
    """Axes in another order; the orders in which both sides are stored are part of it."""
    tensor, axes = writer.declared(item.output), item.integers("axes")
    rank = len(axes)
    before = NHWC if rank == 4 else tuple(range(rank))
    order = [axes[axis] for axis in (NHWC if rank == 4 else range(rank))]
    stored = [before.index(axis) for axis in order]
    place = writer.stored(item.inputs[0])
    if stored == list(range(rank)):
        writer.places[item.output] = place
        return
    writer.places[item.output] = writer.transposed(place, stored, item.output, tensor)


def _axis(item: Instruction, rank: int) -> int:
    axis = item.integer("axis") % rank
    return NHWC.index(axis) if rank == 4 else axis


@emits("concat")
def concat(writer: Writer, item: Instruction) -> None:
    """Operands side by side."""
    axis = _axis(item, len(writer.declared(item.output).shape))
    sources = [writer.stored(name) for name in item.inputs]
    writer.operator("CONCATENATION", sources, [writer.result(item)], "ConcatenationOptions", axis=axis)


@emits("slice")
def slice_(writer: Writer, item: Instruction) -> None:
    """A part of an axis."""
    place = writer.stored(item.inputs[0])
    rank = len(writer.shape(place))
    axis = _axis(item, rank)
    start, stop, step = (item.integer(name) for name in ("start", "stop", "step"))
    mask = sum(1 << other for other in range(rank) if other != axis)
    ends = [
        [value if other == axis else neutral for other in range(rank)]
        for value, neutral in ((start, 0), (stop, 0), (step, 1))
    ]
    operands = [place, *(writer.numbers(values) for values in ends)]
    writer.operator(
        "STRIDED_SLICE", operands, [writer.result(item)], "StridedSliceOptions", begin_mask=mask, end_mask=mask
    )


@emits("gather")
def gather(writer: Writer, item: Instruction) -> None:
    """Elements of an axis at known places."""
    place = writer.stored(item.inputs[0])
    axis = _axis(item, len(writer.shape(place)))
    indices = writer.numbers(item.integers("indices"))
    writer.operator("GATHER", [place, indices], [writer.result(item)], "GatherOptions", axis=axis)


@emits("pad")
def pad(writer: Writer, item: Instruction) -> None:
    """A border of one code."""
    name = item.inputs[0]
    tensor, amounts = writer.declared(name), item.integers("pad")
    half = len(amounts) // 2
    if min(amounts) < 0:
        raise UnsupportedError(
            "a TensorFlow Lite file has no border that cuts off", where=item.where, expected="slices"
        )
    pairs = list(zip(amounts[:half], amounts[half:], strict=True))
    pairs = [pairs[axis] for axis in NHWC] if half == 4 else pairs
    widths = writer.constant("border", np.array(pairs, np.int32))
    code = writer.constant(f"{item.output}.border", np.array(int(item.number("value")), CODES[tensor.dtype]), tensor)
    writer.operator("PADV2", [writer.stored(name), widths, code], [writer.result(item)], "PadV2Options")
