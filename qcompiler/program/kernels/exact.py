"""Kernels of integers and booleans without a grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qcompiler.program.kernels.call import Array, Call, Kernels
from qcompiler.program.liveness import NUMPY_TYPES

kernel = Kernels()

FUNCTIONS: Mapping[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


@kernel("exact")
def exact(call: Call, arrays: Sequence[Array]) -> Array:
    """A function of two integers or booleans."""
    return FUNCTIONS[call["compute"]](arrays[0], arrays[1])


@kernel("not")
def not_(call: Call, arrays: Sequence[Array]) -> Array:
    """True where the operand is false."""
    return np.logical_not(arrays[0])


@kernel("cast")
def cast(call: Call, arrays: Sequence[Array]) -> Array:
    """Integers and booleans as another type of such."""
    return arrays[0].astype(NUMPY_TYPES[call.output.dtype])


@kernel("cumsum")
def cumsum(call: Call, arrays: Sequence[Array]) -> Array:
    """Sums from the first element of an axis to each element."""
    return np.cumsum(arrays[0], axis=call["axis"], dtype=arrays[0].dtype)
