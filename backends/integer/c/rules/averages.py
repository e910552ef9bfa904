"""Means over axes and windows in C. The kernels of windows take strides, so they serve both layouts."""

from __future__ import annotations

import math

import numpy as np

from qcompiler.backends.integer.c.library import RAW
from qcompiler.backends.integer.c.rules.windows import images, window_of
from qcompiler.backends.integer.c.scales import accumulator, requantizer, scalar_scale_of
from qcompiler.backends.integer.c.shapes import check_rank, merged, physical_axes
from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.errors import ArtifactError, UnsupportedError
from qcompiler.ir.table import Table
from qcompiler.program.kernels.call import largest_step, limits_of
from qcompiler.program.program import Array

emits: Table[Rule] = Table()


@emits("int_mean")
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
    bound = count * max(abs(limit - x.zero_point[0]) for limit in limits_of(x.dtype))
    scale = scalar_scale_of(writer, step, call, 1)
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


@emits("int_avg_pool2d")
def avg_pool(writer: Writer, step: Step) -> None:
    """`int_avg_pool2d`."""
    item, call = step.item, writer.call_of(step.item)
    sizes, distances = images(writer, step, call)
    kernel = call["kernel"]
    low, high = call.limits
    # Raw codes are averaged with the zero point times the divisor in the sum.
    bound = kernel[0] * kernel[1] * largest_step(call.inputs[0])
    if str(call["rounding"]).endswith(RAW):
        divisor = int(call.get("divisor_override") or kernel[0] * kernel[1])
        bound += divisor * abs(call.output.zero_point[0])
    types = {"X": writer.ctype(item.inputs[0]), "ACC": accumulator(bound), "ROUNDING": str(call["rounding"])}
    writer.emit(
        step,
        "avg_pool",
        types,
        item.inputs[:1],
        {
            **sizes,
            **window_of(call),
            "counts_padding": int(bool(call["count_include_pad"])),
            "divisor": int(call.get("divisor_override") or 0),
            **distances,
            "zero_point": call.output.zero_point[0],
            "low": int(low),
            "high": int(high),
        },
    )


@emits("int_resample2d")
def resample(writer: Writer, step: Step) -> None:
    """`int_resample2d`: of the matrices only the band in which there is something."""
    item, call = step.item, writer.call_of(step.item)
    sizes, distances = images(writer, step, call)
    rows, columns, divisor = (writer.operand(item, index).astype(np.int64) for index in (1, 2, 3))
    sums = rows.sum(axis=1), columns.sum(axis=1)
    if not np.array_equal(np.outer(*sums), divisor):
        raise UnsupportedError("the divisors are not the products of the sums of the weights", where=f"%{item.output}")
    members: dict[str, Value] = dict(sizes)
    for name, matrix, total, source in (
        ("line", rows, sums[0], item.inputs[1]),
        ("pixel", columns, sums[1], item.inputs[2]),
    ):
        first, band = _band(matrix)
        members[f"{name}_taps"] = band.shape[1]
        for key, array, what in (
            (name, first, f"first {name}"),
            (f"{name}_weight", band, f"weights of the {name}s"),
            (f"{name}_divisor", total, f"sums of the weights of the {name}s"),
        ):
            members[key] = writer.constant(f"{source}.{key}", array, "int32_t", f"{what} of %{item.output}")
    bound = int(np.abs(rows).sum(axis=1).max() * np.abs(columns).sum(axis=1).max()) * largest_step(call.inputs[0])
    if str(call["rounding"]).endswith(RAW):
        bound += int(divisor.max()) * abs(call.output.zero_point[0])
    low, high = call.limits
    types = {"X": writer.ctype(item.inputs[0]), "ACC": accumulator(bound), "ROUNDING": str(call["rounding"])}
    zero_point = call.output.zero_point[0]
    members |= {**distances, "zero_point": zero_point, "low": int(low), "high": int(high)}
    writer.emit(step, "resample", types, item.inputs[:1], members)


def _band(matrix: Array) -> tuple[Array, Array]:
    """For each row the first element of a band of one width that holds all of it, and the band."""
    rows, size = matrix.shape
    used = [np.flatnonzero(row) for row in matrix]
    width = max(int(found[-1] - found[0]) + 1 if found.size else 1 for found in used)
    first = np.array([min(int(found[0]) if found.size else 0, size - width) for found in used], np.int64)
    band = np.stack([matrix[row, first[row] : first[row] + width] for row in range(rows)])
    return first, band
