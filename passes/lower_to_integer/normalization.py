"""Lower layer normalization."""

from __future__ import annotations

import math

import torch

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.table import Table
from qcompiler.ir.types import DType, QuantParams, TensorType
from qcompiler.ops.normalization import normalized_axes
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.lower_to_integer.lowering import Lower, Lowering, Output
from qcompiler.quant.layer_norm import layer_norm_parameters

lowers: Table[Lower] = Table()


@lowers("layer_norm")
def layer_norm(lowering: Lowering, node: Node, out: Output) -> Value:
    """A layer normalization: its weight, bias and epsilon in integers."""
    x = lowering.lowered[node.inputs[0]]
    weight, bias = (leaf_tensor(value) for value in node.inputs[1:])
    eps, largest = node.number("eps"), max(map(abs, lowering.steps(x)))
    axes = normalized_axes(node)
    count = math.prod(x.type.size(axis) for axis in axes)
    proofs = lowering.proofs(node)
    try:
        constants = layer_norm_parameters(
            lowering.params(x), weight, bias, eps, out.params, proofs.arithmetic, largest=largest, count=count
        )
    except InputError as error:
        raise UnsupportedError(error.found, where=node.where, expected=error.expected, fix=error.fix) from None
    proofs.bounded(2**31 - 1, constants.out)
    operands = [x]
    for name, codes, scale, dtype in (
        ("weight", constants.weight, constants.weight_scale, DType.I16),
        ("bias", constants.bias, constants.bias_scale, DType.I32),
    ):
        type = TensorType(dtype, tuple(codes.shape), QuantParams.of(scale, torch.tensor(0), None))
        operands.append(lowering.leaf(codes.to(dtype.torch), f"{out.quantizer.name}.{name}", out.quantizer, type))
    attributes = {
        "epsilon": constants.epsilon,
        "fraction": constants.fraction,
        "dims": len(axes),
        "centered": node.flag("centered"),
        "mode": str(constants.out.mode),
    }
    return lowering.insert(
        "int_layer_norm", [*operands, *lowering.multiplier(constants.out, out)], attributes, out, node
    )
