"""The rules of exact evaluation, gathered from the families of operators."""

from __future__ import annotations

from qcompiler.ir.table import Table
from qcompiler.validation.exact import (
    averages,
    elementwise,
    mac,
    movement,
    normalization,
    places,
    quantizers,
    softmax,
    tables,
)
from qcompiler.validation.exact.values import Rule

QUANTIZERS = quantizers.exact
"""Rules that take real numbers: all other operators on real numbers are evaluated as at earlier stages."""

RULES: Table[Rule] = Table(
    QUANTIZERS,
    mac.exact,
    elementwise.exact,
    averages.exact,
    normalization.exact,
    softmax.exact,
    tables.exact,
    movement.exact,
    places.exact,
)
