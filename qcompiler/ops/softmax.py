"""Softmax and its logarithm, on real numbers and on codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, integer
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import DType, TensorType
from qcompiler.ops.common import FLOAT_STAGES, INTEGER_ONLY, broadcast, check_float, check_integer, result_dtype
from qcompiler.ops.integer import REQUANTIZES
from qcompiler.ops.quantization import codes_limits, grid
from qcompiler.quant.log_softmax import INDEX_BITS, LogSoftmaxParameters, log_softmax_codes
from qcompiler.quant.modes import SoftmaxMode
from qcompiler.quant.softmax import SoftmaxParameters, softmax_codes


def _check_operands(types: Sequence[TensorType], attributes: Attributes, mask: TensorType | None) -> None:
    x, axis = types[0], integer(attributes, "axis")
    if not 0 <= axis < x.rank:
        raise GraphError(f"the axis is {axis}", expected=f"0 to {x.rank - 1}, for {x}")
    if mask is not None and (mask.dtype is not DType.BOOL or broadcast(x.shape, mask.shape) != x.shape):
        raise GraphError(f"the mask is {mask}", expected=f"booleans that broadcast with {x}")


def _infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types[:1])
    _check_operands(types, attributes, types[1] if len(types) > 1 else None)
    return (types[0],)


def _evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, axis = operands[0], node.integer("axis")
    if len(operands) < 2:
        return (torch.softmax(x, axis),)
    kept = operands[1]
    result = torch.softmax(x.masked_fill(~kept, -torch.inf), axis)
    return (torch.where(kept, result, torch.zeros((), dtype=x.dtype, device=x.device)),)


register(
    OpDef(
        name="softmax",
        operands=("x", "mask?"),
        attributes={"axis": 1},
        infer=_infer,
        evaluate=_evaluate,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.NOT_NEGATIVE}),
        kind="softmax",
        summary="exp(x) / sum exp(x) along an axis, over the elements where the mask is true; the others give 0.",
    )
)


def _infer_log(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    _check_operands(types, attributes, None)
    return (types[0],)


register(
    OpDef(
        name="log_softmax",
        operands=("x",),
        attributes={"axis": 1},
        infer=_infer_log,
        evaluate=lambda node, operands: (torch.log_softmax(operands[0], node.integer("axis")),),
        stages=FLOAT_STAGES,
        kind="softmax",
        summary="x - log sum exp(x) along an axis.",
    )
)


def _infer_integer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    x, table = types[:2]
    check_integer([x])
    if attributes["mode"] not in set(SoftmaxMode):
        raise GraphError(f"the mode is {attributes['mode']!r}", expected="one of " + ", ".join(SoftmaxMode))
    wanted = DType.F32 if attributes["mode"] == SoftmaxMode.FLOAT32 else DType.I32
    if table.rank != 1 or table.dtype is not wanted:
        raise GraphError(f"the table is {table}", expected=f"{wanted} of one axis")
    _check_operands(types, attributes, types[2] if len(types) > 2 else None)
    return (TensorType(result_dtype(attributes), x.shape),)


def _evaluate_integer(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    codes, table, *mask = operands
    mode = SoftmaxMode(node.text("mode"))
    table = table if mode is SoftmaxMode.FLOAT32 else table.to(torch.int64)
    parameters = SoftmaxParameters(mode, table, node.integer("numerator"), node.integer("shift"))
    qmin, qmax = codes_limits(node)
    zero_point = int(grid(node).zero_point)
    result = softmax_codes(
        codes.to(torch.int64),
        node.integer("axis"),
        parameters,
        mask[0] if mask else None,
        out_zero_point=zero_point,
        qmin=qmin,
        qmax=qmax,
    )
    return (result.to(node.output.type.dtype.torch),)


register(
    OpDef(
        name="int_softmax",
        operands=("x", "table", "mask?"),
        attributes={
            "axis": REQUIRED,
            "mode": REQUIRED,
            "numerator": 1,
            "shift": 0,
            "dtype": REQUIRED,
            "qmin": None,
            "qmax": None,
        },
        infer=_infer_integer,
        evaluate=_evaluate_integer,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="table[max - x], divided by the sum along an axis as the mode says; see quant.softmax.",
    )
)


def _infer_integer_log(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    x, *tables = types
    check_integer([x])
    for table, length in zip(tables, (None, 2**INDEX_BITS + 1), strict=True):
        if table.rank != 1 or table.dtype is not DType.I32 or (length is not None and table.shape != (length,)):
            raise GraphError(f"the table is {table}", expected=f"i32 of one axis{f' of {length}' if length else ''}")
    _check_operands(types, attributes, None)
    return (TensorType(result_dtype(attributes), x.shape),)


def _evaluate_integer_log(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    codes, exponentials, logarithms = (operand.to(torch.int64) for operand in operands)
    multiplier, shift, rise = (node.integer(name) for name in ("multiplier", "shift", "rise"))
    parameters = LogSoftmaxParameters(exponentials, logarithms, multiplier, shift, rise)
    qmin, qmax = codes_limits(node)
    zero_point = int(grid(node).zero_point)
    result = log_softmax_codes(codes, node.integer("axis"), parameters, out_zero_point=zero_point, qmin=qmin, qmax=qmax)
    return (result.to(node.output.type.dtype.torch),)


register(
    OpDef(
        name="int_log_softmax",
        operands=("x", "exponentials", "logarithms"),
        attributes={
            "axis": REQUIRED,
            "multiplier": REQUIRED,
            "shift": REQUIRED,
            "rise": REQUIRED,
            "dtype": REQUIRED,
            "qmin": None,
            "qmax": None,
        },
        infer=_infer_integer_log,
        evaluate=_evaluate_integer_log,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="The distance from the largest code and the logarithm of a sum, in steps; see quant.log_softmax.",
    )
)
