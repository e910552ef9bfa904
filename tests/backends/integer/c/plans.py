"""Memory plans that a test can read: every tensor in a place of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qcompiler.backends.integer.c.memory import CTYPES, SIZES
from qcompiler.backends.integer.c.shapes import shapes_for_batch
from qcompiler.program.files import ProgramFiles


@dataclass(frozen=True)
class Plan:
    """A memory plan."""

    batch: int
    bytes: int
    alignment: int
    offsets: Mapping[str, int]
    lower_bound: int = 0


def separate(files: ProgramFiles, batch: int = 1, alignment: int = 16) -> Plan:
    """Each tensor directly after the previous one."""
    shapes = shapes_for_batch(files, batch)
    offsets, end = {}, 0
    for name, tensor in files.program.tensors.items():
        if tensor.dtype in CTYPES and name not in files.constants:
            offsets[name] = end
            size = math.prod(shapes[name]) * SIZES[CTYPES[tensor.dtype]]
            end += -(-size // alignment) * alignment
    return Plan(batch, end, alignment, offsets)
