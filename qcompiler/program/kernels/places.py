"""Kernels of places that are computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.program.kernels.call import Array, Call, Kernels

kernel = Kernels()


@kernel("top_places")
def top_places(call: Call, arrays: Sequence[Array]) -> Array:
    """Places of the largest or smallest elements; of equal ones, the first first."""
    numbers = arrays[0].astype(np.int64)
    order = np.argsort(~numbers if call["largest"] else numbers, axis=call["axis"], kind="stable")
    found: Array = np.take(order, np.arange(call["count"]), axis=call["axis"]).astype(np.int64)
    return found


@kernel("take_along", moves=True)
def take_along(call: Call, arrays: Sequence[Array]) -> Array:
    """Elements at places; one outside of the axis reads the nearest element."""
    x, places = arrays
    found: Array = np.take_along_axis(x, np.clip(places, 0, x.shape[call["axis"]] - 1), call["axis"])
    return found
