"""The rules that write the C of each instruction, gathered from the families of operators.

A test fails if an instruction of the executor has no rule.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.backends.integer.c.rules import (
    averages,
    contraction,
    elementwise,
    exact,
    mac,
    movement,
    normalization,
    places,
    quantizers,
    softmax,
    tables,
)
from qcompiler.backends.integer.c.writer import Rule
from qcompiler.ir.table import Table

RULES: Table[Rule] = Table(
    mac.emits,
    contraction.emits,
    elementwise.emits,
    averages.emits,
    normalization.emits,
    places.emits,
    softmax.emits,
    quantizers.emits,
    tables.emits,
    movement.emits,
    exact.emits,
)
"""The rule that writes the C of each instruction."""

ENDS = ("quantize", "dequantize")
"""Instructions that convert between real numbers and codes: not in the core but in the optional helper file."""

WITHOUT_C: Mapping[str, str] = {
    "call": "it runs a float island, and C is written only for the integer core",
}
"""Instructions without C, with the reason: a program with such an instruction is refused by name."""
