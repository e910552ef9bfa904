"""One definition per operator: signature, type inference and evaluation. Importing this package fills the registry."""

from qcompiler.ops import (
    custom,
    elementwise,
    integer,
    leaves,
    mac,
    movement,
    normalization,
    pooling,
    quantization,
    resampling,
)
from qcompiler.ops.elementwise import UNARY, UnaryFunction, prelu_function

__all__ = [
    "UNARY",
    "UnaryFunction",
    "custom",
    "elementwise",
    "integer",
    "leaves",
    "mac",
    "movement",
    "normalization",
    "pooling",
    "prelu_function",
    "quantization",
    "resampling",
]
