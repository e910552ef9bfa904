"""The kernels of all instructions, gathered from the families of operators."""

from __future__ import annotations

from qcompiler.ir.table import Table
from qcompiler.program.kernels import (
    averages,
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
from qcompiler.program.kernels.call import Kernel, Sums

LAYERS: Table[Sums] = mac.sums
"""Instructions that sum products: their accumulators."""

KERNELS: Table[Kernel] = Table(
    mac.kernel,
    elementwise.kernel,
    averages.kernel,
    normalization.kernel,
    places.kernel,
    softmax.kernel,
    tables.kernel,
    movement.kernel,
    exact.kernel,
    quantizers.kernel,
)
"""Every instruction that a program may hold, except calls of float islands."""
