"""Matrix products of two activations, on codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import OpDef, Trait, register
from qcompiler.ir.types import TensorType
from qcompiler.ops.common import INTEGER_ONLY
from qcompiler.ops.integer import REQUANTIZED, REQUANTIZES, apply, check_requantized, steps
from qcompiler.ops.mac import matmul_shape
from qcompiler.ops.quantization import grid


def _infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    shape = matmul_shape(types)
    return (TensorType(check_requantized(types, attributes, 2), shape),)


def _largest(node: Node, index: int) -> int:
    """Largest magnitude of a code of an operand, zero point removed."""
    zero_point = int(grid(node, index).zero_point)
    return max(abs(limit - zero_point) for limit in node.inputs[index].type.dtype.limits)


def _evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if operands[0].shape[-1] * _largest(node, 0) * _largest(node, 1) >= 2**53:
        raise GraphError("a sum of products may exceed float64", where=node.where, expected="less than 2^53")
    a, b = (steps(node, operands, index).to(torch.float64) for index in (0, 1))
    acc = torch.matmul(a, b).to(torch.int64)
    return apply(node, operands, acc, acc.dim() - 1, 2)


register(
    OpDef(
        name="int_matmul",
        operands=("a", "b", "multiplier", "exponent?"),
        attributes={"factor": 1.0, **REQUANTIZED},
        infer=_infer,
        evaluate=_evaluate,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES | {Trait.CONTRACTION},
        summary="requantize(sum (a - z_a)(b - z_b)) over the last axis of a and the last but one of b.",
    )
)
