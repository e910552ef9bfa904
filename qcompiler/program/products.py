"""Number of products of the layers of a program."""

from __future__ import annotations

from qcompiler.ir.registry import Trait, op
from qcompiler.ops.work import layer_products
from qcompiler.program.files import ProgramFiles

__all__ = ["products"]


def products(files: ProgramFiles) -> dict[str, int]:
    """Multiply-accumulates of one sample, by the result of each layer."""
    found = {}
    for item in files.program.instructions:
        layer = op(item.op)
        if layer.has(Trait.WEIGHTED, Trait.CONTRACTION):
            shapes = (files.program.tensors[name].shape for name in (*item.inputs[:2], item.output))
            x, weight, y = (tuple(1 if size < 0 else size for size in shape) for shape in shapes)
            found[item.output] = layer_products(layer, x, weight, y)
    return found
