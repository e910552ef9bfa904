"""The rules of lowering, gathered from the families of operators."""

from __future__ import annotations

from qcompiler.ir.table import Table
from qcompiler.passes.lower_to_integer import (
    averages,
    elementwise,
    mac,
    movement,
    normalization,
    quantizers,
    softmax,
    tables,
)
from qcompiler.passes.lower_to_integer.lowering import Keep, Lower

LOWERS: Table[Lower] = Table(
    mac.lowers,
    elementwise.lowers,
    averages.lowers,
    normalization.lowers,
    softmax.lowers,
    tables.lowers,
    movement.lowers,
    quantizers.lowers,
)
"""Rules of operators whose result is rounded to the grid of the following quantizer."""

KEEPS: Table[Keep] = Table(averages.keeps, movement.keeps)
"""Rules of operators that keep the grid of their first operand."""
