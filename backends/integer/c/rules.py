"""The rules that write the C of each instruction. A test fails if an instruction of the executor has no rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from qcompiler.backends.integer.c import elementwise, mac, movement, windows
from qcompiler.backends.integer.c.writer import Step, Writer

Rule: TypeAlias = Callable[[Writer, Step], None]

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("int_conv1d", "int_conv2d", "int_conv3d"), mac.conv),
    **dict.fromkeys(("int_conv_transpose1d", "int_conv_transpose2d", "int_conv_transpose3d"), mac.conv_transpose),
    "int_linear": mac.linear,
    "int_add": elementwise.add,
    "int_mul": elementwise.mul,
    "int_mean": elementwise.mean,
    "int_layer_norm": elementwise.layer_norm,
    "int_avg_pool2d": windows.avg_pool,
    "int_resample2d": windows.resample,
    "max_pool2d": windows.max_pool,
    "rescale": elementwise.rescale,
    "lookup": elementwise.lookup,
    "int_clamp": elementwise.clamp,
    "reshape": movement.reshape,
    "permute": movement.permute,
    "concat": movement.concat,
    "slice": movement.slice_,
    "pad": movement.pad,
}
"""The rule that writes the C of each instruction."""

ENDS = ("quantize", "dequantize")
"""Instructions that convert between real numbers and codes: not in the core but in the optional helper file."""

WITHOUT_C: Mapping[str, str] = {
    "call": "it runs a float island, and C is written for the integer core alone",
}
"""Instructions without C, with the reason: a program with such an instruction is refused by name."""
