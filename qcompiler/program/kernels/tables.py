"""Kernels of lookup tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.program.kernels.call import Array, Call, Kernels

kernel = Kernels()


@kernel("lookup", in_place=(0,))
def lookup(call: Call, arrays: Sequence[Array]) -> Array:
    """A table entry per code; with an axis, from the row of the channel, or from the row named for the channel."""
    index, table, axis = arrays[0].astype(np.int64) - call["offset"], arrays[1], call.get("axis")
    if axis is None:
        entries: Array = table[index]
        return entries
    chosen = arrays[2] if len(arrays) > 2 else np.arange(len(table))
    rows = chosen.reshape([-1 if a == axis else 1 for a in range(index.ndim)])
    per_channel: Array = table[rows, index]
    return per_channel
