"""The rules of all instructions."""

from __future__ import annotations

from qcompiler.backends.tflite.rules import elementwise, layers, movement
from qcompiler.backends.tflite.writer import Rule
from qcompiler.ir.table import Table

__all__ = ["RULES"]

RULES: Table[Rule] = Table(layers.emits, elementwise.emits, movement.emits)
