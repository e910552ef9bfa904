"""Number of products of the layers of a program."""

from __future__ import annotations

import math

from qcompiler.program.files import ProgramFiles
from qcompiler.program.kernels import LAYERS

__all__ = ["products"]


def products(files: ProgramFiles) -> dict[str, int]:
    """Multiply-accumulates of one sample, by the result of each layer."""
    found = {}
    for item in files.program.instructions:
        if item.op in LAYERS:
            # Each weight is used once per output position; in a transposed convolution, once per input position.
            pixels = files.program.tensors[item.inputs[0] if "transpose" in item.op else item.output].shape
            positions = pixels[1:-1] if item.op == "int_linear" else pixels[2:]
            found[item.output] = files.constants[item.inputs[1]].size * math.prod(positions)
    return found
