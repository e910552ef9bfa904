"""One definition per operator: signature, type inference and evaluation. Importing this package fills the registry."""

from qcompiler.ops import (
    contraction,
    custom,
    dropout,
    elementwise,
    exact,
    gradients,
    integer,
    leaves,
    mac,
    movement,
    normalization,
    places,
    pooling,
    quantization,
    resampling,
    softmax,
)
from qcompiler.ops.elementwise import prelu_function
from qcompiler.ops.unary import SCALED, UNARY, UnaryFunction, register_unary, scaled_values, unary_of

__all__ = [
    "SCALED",
    "UNARY",
    "UnaryFunction",
    "contraction",
    "custom",
    "dropout",
    "elementwise",
    "exact",
    "gradients",
    "integer",
    "leaves",
    "mac",
    "movement",
    "normalization",
    "places",
    "pooling",
    "prelu_function",
    "quantization",
    "register_unary",
    "resampling",
    "scaled_values",
    "softmax",
    "unary",
    "unary_of",
]
