"""Kernels of normalizations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qcompiler.program.arithmetic import Int, divide
from qcompiler.program.kernels.call import Array, Call, Kernels, multiplier_of, steps_of

kernel = Kernels()


@kernel("int_layer_norm", steps=(0,), requantizes=True)
def int_layer_norm(call: Call, arrays: Sequence[Array]) -> Array:
    """Distances from the mean or from 0, over the root of their squares: see `numerics`."""
    steps = steps_of(call, arrays, 0)
    weight, bias = arrays[1].astype(np.int64), arrays[2].astype(np.int64)
    axes = tuple(range(-int(call.get("dims") or weight.ndim), 0))
    count = math.prod(steps.shape[axis] for axis in axes)
    total: Int = steps.sum(axes, keepdims=True) * (call.get("centered") is not False)
    spread: Int = count * (steps * steps).sum(axes, keepdims=True) - total * total
    radicand = np.maximum(spread + call["epsilon"], 1)
    shift = np.zeros_like(radicand)
    for pairs in (16, 8, 4, 2, 1):
        small = radicand < 2 ** (60 - 2 * pairs)
        radicand = np.where(small, radicand << (2 * pairs), radicand)
        shift += pairs * small
    root = np.sqrt(radicand.astype(np.float64)).astype(np.int64)
    root -= root * root > radicand
    root += (root + 1) * (root + 1) <= radicand
    normalized = divide((count * steps - total) << (shift + call["fraction"] + 8), root, "rhup")
    return call.requantize(divide(normalized * weight, 256, "rhup") + bias, *multiplier_of(arrays, 3))
