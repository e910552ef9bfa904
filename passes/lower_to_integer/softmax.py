"""Lower softmax and its logarithm."""

from __future__ import annotations

import torch

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.table import Table
from qcompiler.ir.types import DType, TensorType
from qcompiler.passes.lower_to_integer.lowering import Lower, Lowering, Output
from qcompiler.quant.log_softmax import log_softmax_parameters
from qcompiler.quant.softmax import softmax_parameters

lowers: Table[Lower] = Table()


@lowers("softmax")
def softmax(lowering: Lowering, node: Node, out: Output) -> Value:
    """A softmax: its table of exponentials."""
    x, axis = lowering.lowered[node.inputs[0]], node.integer("axis")
    low, high = lowering.limits[x]
    bits = 16 if max(abs(out.qmin), abs(out.qmax)) > 255 else 8
    mode = lowering.arithmetic.softmax_mode(max(bits, x.type.dtype.bits))
    try:
        constants = softmax_parameters(
            lowering.params(x), out.params, mode, count=x.type.size(axis), distance=high - low, bits=bits
        )
    except InputError as error:
        raise UnsupportedError(error.found, where=node.where, expected=error.expected, fix=error.fix) from None
    dtype = DType.F32 if constants.table.dtype is torch.float32 else DType.I32
    type = TensorType(dtype, tuple(constants.table.shape))
    table = lowering.leaf(constants.table.to(dtype.torch), f"{out.quantizer.name}.table", out.quantizer, type)
    attributes = {
        "axis": axis,
        "mode": str(mode),
        "numerator": constants.numerator,
        "shift": constants.shift,
    }
    return lowering.insert("int_softmax", [x, table, *node.inputs[1:]], attributes, out, node)


@lowers("log_softmax")
def log_softmax(lowering: Lowering, node: Node, out: Output) -> Value:
    """The logarithm of a softmax: its tables of exponentials and of logarithms."""
    x = lowering.lowered[node.inputs[0]]
    low, high = lowering.limits[x]
    try:
        constants = log_softmax_parameters(lowering.params(x), out.params, distance=high - low)
    except InputError as error:
        raise UnsupportedError(error.found, where=node.where, expected=error.expected, fix=error.fix) from None
    tables = [
        lowering.leaf(
            table.to(torch.int32), f"{out.quantizer.name}.{name}", out.quantizer, TensorType(DType.I32, (len(table),))
        )
        for name, table in (("exponentials", constants.exponentials), ("logarithms", constants.logarithms))
    ]
    attributes = {
        "axis": node.integer("axis"),
        "multiplier": constants.multiplier,
        "shift": constants.shift,
        "rise": constants.rise,
    }
    return lowering.insert("int_log_softmax", [x, *tables], attributes, out, node)
