"""One definition per operator: signature, type inference and evaluation. Importing this package fills the registry."""

from qcompiler.ops import custom, elementwise, integer, leaves, mac, movement, pooling, quantization, resampling
from qcompiler.ops.elementwise import UNARY, UnaryFunction

__all__ = [
    "UNARY",
    "UnaryFunction",
    "custom",
    "elementwise",
    "integer",
    "leaves",
    "mac",
    "movement",
    "pooling",
    "quantization",
    "resampling",
]
