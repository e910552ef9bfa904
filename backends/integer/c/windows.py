"""Pooling and resampling in C. Their kernels take strides, so they serve both layouts."""

from __future__ import annotations

import numpy as np

from qcompiler.backends.integer.c.library import RAW
from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import Step, Writer, accumulator, largest_step
from qcompiler.errors import UnsupportedError
from qcompiler.program.kernels import Call
from qcompiler.program.program import Array


def _images(writer: Writer, step: Step, call: Call) -> tuple[dict[str, Value], dict[str, Value]]:
    """Members for the sizes of both images, and for the distances in them."""
    x, y = call.inputs[0].shape, call.output.shape
    sizes: dict[str, Value] = {"batch": x[0], "channels": x[1], "out_height": y[2], "out_width": y[3]}
    distances: dict[str, Value] = {}
    for letter, tensor in (("x", step.item.inputs[0]), ("y", step.item.output)):
        steps = writer.steps(tensor)
        for axis, name in ((0, "image"), (1, "channel"), (2, "line"), (3, "pixel")):
            distances[f"{letter}_{name}"] = steps[axis]
    return sizes, distances


def _window(call: Call) -> dict[str, Value]:
    kernel, stride, padding = call["kernel"], call["stride"], call["padding"]
    x = call.inputs[0].shape
    return {
        "height": x[2],
        "width": x[3],
        "kernel_height": kernel[0],
        "kernel_width": kernel[1],
        "stride_y": stride[0],
        "stride_x": stride[1],
        "top": padding[0],
        "left": padding[1],
    }


def avg_pool(writer: Writer, step: Step) -> None:
    """`int_avg_pool2d`."""
    item, call = step.item, writer.call_of(step.item)
    sizes, distances = _images(writer, step, call)
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
            **_window(call),
            "counts_padding": int(bool(call["count_include_pad"])),
            "divisor": int(call.get("divisor_override") or 0),
            **distances,
            "zero_point": call.output.zero_point[0],
            "low": int(low),
            "high": int(high),
        },
    )


def max_pool(writer: Writer, step: Step) -> None:
    """`max_pool2d`."""
    item, call = step.item, writer.call_of(step.item)
    sizes, distances = _images(writer, step, call)
    ctype = writer.ctype(item.inputs[0])
    lowest = {"int8_t": -(2**7), "int16_t": -(2**15)}.get(ctype, 0)
    dilation = call["dilation"]
    members = {**sizes, **_window(call), "dilation_y": dilation[0], "dilation_x": dilation[1]}
    writer.emit(step, "max_pool", {"X": ctype}, item.inputs, {**members, **distances, "lowest": lowest})


def resample(writer: Writer, step: Step) -> None:
    """`int_resample2d`: of the matrices only the band in which there is something."""
    item, call = step.item, writer.call_of(step.item)
    sizes, distances = _images(writer, step, call)
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
