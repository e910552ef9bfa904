"""Lower means over axes and windows."""

from __future__ import annotations

import math
from typing import cast

import torch

from qcompiler.errors import UnsupportedError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.table import Table
from qcompiler.ops.quantizers import with_zero
from qcompiler.ops.resampling import resampling_weights
from qcompiler.passes.lower_to_integer.lowering import Keep, Lower, Lowering, Output
from qcompiler.quant.arithmetic import average_parameters

lowers: Table[Lower] = Table()
keeps: Table[Keep] = Table()


@lowers("mean")
def mean(lowering: Lowering, node: Node, out: Output) -> Value:
    """A mean over axes."""
    x = lowering.lowered[node.inputs[0]]
    axes = node.integers("axes")
    sizes = [x.type.shape[axis] for axis in axes]
    if not all(isinstance(size, int) for size in sizes):
        raise UnsupportedError("the mean is over an axis of symbolic size", where=node.where)
    count = math.prod(cast("list[int]", sizes))
    proofs = lowering.proofs(node)
    average = average_parameters(lowering.params(x).scale, out.params.scale, count, proofs.arithmetic)
    proofs.steps(lowering.steps(x), count, average.multiplier)
    attributes: dict[str, Attribute] = {
        "axes": axes,
        "keepdim": node.attributes["keepdim"],
        "mode": str(average.multiplier.mode),
    }
    if average.divisor is not None:
        attributes.update(divisor=average.divisor, rounding=str(average.rounding))
    return lowering.insert("int_mean", [x, *lowering.multiplier(average.multiplier, out)], attributes, out, node)


@keeps("avg_pool2d")
def avg_pool2d(lowering: Lowering, node: Node) -> Value:
    """Means of windows."""
    x = lowering.lowered[node.inputs[0]]
    low, high = with_zero(node, lowering.params(x), lowering.limits[x])
    proofs = lowering.proofs(node)
    proofs.steps(lowering.steps(x), math.prod(node.integers("kernel")))
    attributes = {**node.attributes, "rounding": str(proofs.arithmetic.average_rounding)}
    return lowering.keep_grid("int_avg_pool2d", [x], attributes, (low, high), node)


@keeps("adaptive_avg_pool2d", "resize")
def resample(lowering: Lowering, node: Node) -> Value:
    """Weighted means along both axes of an image."""
    x = lowering.lowered[node.inputs[0]]
    weights = resampling_weights(node)
    proofs = lowering.proofs(node)
    proofs.steps(lowering.steps(x), int(weights[2].max()))
    operands = [
        lowering.leaf(item.to(torch.int32), f"{node.name}.{name}", node)
        for name, item in zip(("rows", "columns", "divisor"), weights, strict=True)
    ]
    attributes: dict[str, Attribute] = {
        "rounding": str(proofs.arithmetic.average_rounding),
        "function": node.op,
        "parameters": tuple(value for key, value in node.attributes.items() if key in ("mode", "align_corners")),
    }
    return lowering.keep_grid("int_resample2d", [x, *operands], attributes, lowering.limits[x], node)
