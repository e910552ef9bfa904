"""Kernels of softmax and its logarithm, row by row of the formulas of each mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qcompiler.program.arithmetic import Int, divide, shift_right
from qcompiler.program.kernels.call import Array, Call, Kernels

kernel = Kernels()

INVERSES = 513
"""Entries of the reciprocal at the beginning of a table of the mode `lut16`."""
_MOST = 2**31 - 1


@kernel("int_softmax", requantizes=True)
def int_softmax(call: Call, arrays: Sequence[Array]) -> Array:
    """Entries of the table by the distance from the largest code, divided by their sum."""
    rows = np.moveaxis(arrays[0].astype(np.int64), call["axis"], -1)
    kept = np.ones(rows.shape, bool)
    if len(arrays) > 2:
        kept = np.moveaxis(np.broadcast_to(arrays[2], arrays[0].shape), call["axis"], -1)
    largest = np.max(rows, -1, keepdims=True, initial=-(2**40), where=kept)
    distance = np.where(kept, largest - rows, 0)
    quotient = np.where(kept, _QUOTIENTS[call["mode"]](call, arrays[1], distance, kept), 0)
    low, high = call.limits
    result: Int = np.clip(quotient + call.output.zero_point[0], low, high)
    return np.moveaxis(result, -1, call["axis"])


@kernel("int_log_softmax", requantizes=True)
def int_log_softmax(call: Call, arrays: Sequence[Array]) -> Array:
    """The distance from the largest code, and the logarithm of the sum of exponentials by its bits."""
    codes, table, logarithms = (array.astype(np.int64) for array in arrays)
    distance = np.max(codes, call["axis"], keepdims=True) - codes
    total = table[np.minimum(distance, len(table) - 1)].sum(call["axis"], keepdims=True)
    exponent = _bits(total >> 31)
    exponent = np.where(total >> 31 == 0, 0, exponent)
    part = (total >> exponent) & (2**30 - 1)
    index, rest = part >> 22, part & (2**22 - 1)
    between = (logarithms[index + 1] - logarithms[index]) * rest >> 22
    level = exponent * logarithms[256] + logarithms[index] + between
    steps = shift_right(-call["multiplier"] * distance - (level << call["rise"]), call["shift"], "up")
    low, high = call.limits
    result: Int = np.clip(steps + call.output.zero_point[0], low, high)
    return result


def _taken(table: Array, distance: Int, kept: Array) -> Array:
    entries: Array = np.where(kept, table[np.minimum(distance, len(table) - 1)], 0).astype(table.dtype)
    return entries


def _table(call: Call, table: Array, distance: Int, kept: Array) -> Int:
    entries = _taken(table.astype(np.int64), distance, kept)
    total = np.maximum(entries.sum(-1, keepdims=True), 1)
    return divide(entries * call["numerator"], total << call["shift"], "rhup")


def _float32(call: Call, table: Array, distance: Int, kept: Array) -> Int:
    entries = _taken(table, distance, kept)
    total = np.add.accumulate(entries, -1, dtype=np.float32)[..., -1:]
    total = np.maximum(total, np.finfo(np.float32).tiny)
    codes: Int = np.rint(entries * np.float32(call["numerator"]) / total).astype(np.int64)
    return codes


def _times(a: Array | int, b: Array | int) -> Int:
    return shift_right(np.asarray(a, np.int64) * np.asarray(b, np.int64), 31, "up")


def _bits(x: Int) -> Int:
    """Bits of a positive number."""
    count = np.zeros_like(x)
    for step in (16, 8, 4, 2, 1):
        wide = (x >> step) > 0
        count += step * wide
        x = np.where(wide, x >> step, x)
    return count + 1


def _gemmlowp(call: Call, table: Array, distance: Int, kept: Array) -> Int:
    entries = _taken(table.astype(np.int64), distance, kept)
    total = np.maximum(shift_right(entries, 12, "away").sum(-1, keepdims=True), 1)
    headroom = 32 - _bits(total)
    half = (total << headroom) >> 1
    x = 1515870810 + _times(half, -1010580540)
    for _ in range(3):
        x = x + np.clip(_times(x, 2**29 - _times(half, x)) << 2, -(2**31), _MOST)
    reciprocal = np.clip(x << 1, -(2**31), _MOST)
    return shift_right(_times(reciprocal, entries), 35 - headroom, "away")


def _lut16(call: Call, table: Array, distance: Int, kept: Array) -> Int:
    inverse, entries = table[:INVERSES].astype(np.int64), _taken(table[INVERSES:].astype(np.int64), distance, kept)
    total = np.maximum(entries.sum(-1, keepdims=True), 1)
    bits = _bits(total)
    place = np.clip(shift_right(total << (31 - bits), 14, "up") - 2**15 - 2**16, -(2**15), 2**15 - 1)
    index = 256 + (place >> 7)
    slope = (inverse[index + 1] - inverse[index]) * (place & 127)
    reciprocal = inverse[index] + shift_right(slope, 7, "up")
    return np.clip(shift_right(entries * reciprocal, bits - 1, "up"), 0, 2**15 - 1)


_QUOTIENTS: Mapping[str, Callable[[Call, Array, Int, Array], Int]] = {
    "table": _table,
    "f32": _float32,
    "gemmlowp": _gemmlowp,
    "lut16": _lut16,
}
