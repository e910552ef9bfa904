"""The rules that write each integer op in ONNX, gathered from the families of operators."""

from __future__ import annotations

from qcompiler.backends.onnx_qdq.emitter import Rule
from qcompiler.backends.onnx_qdq.rules import (
    averages,
    elementwise,
    exact,
    islands,
    mac,
    movement,
    normalization,
    places,
    quantizers,
    softmax,
    tables,
)
from qcompiler.ir.table import Table

RULES: Table[Rule] = Table(
    quantizers.emits,
    islands.emits,
    mac.emits,
    elementwise.emits,
    averages.emits,
    normalization.emits,
    places.emits,
    softmax.emits,
    tables.emits,
    movement.emits,
    exact.emits,
)
"""The rule that writes each integer op."""
