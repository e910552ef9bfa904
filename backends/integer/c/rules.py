"""What writes the C of each instruction. A test fails when an instruction of the executor has no entry."""

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
"""By instruction, what writes its C."""

ENDS = ("quantize", "dequantize")
"""Where real numbers become codes and codes real numbers: beside the core, in the optional file of helpers."""

WITHOUT_C: Mapping[str, str] = {
    "call": "it runs a float island, and C is written for the integer core alone",
}
"""Instructions that no C is written for, and why: a program that has one is refused by name."""
