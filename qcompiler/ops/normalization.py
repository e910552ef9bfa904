"""Layer normalization, on real numbers and on codes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, integer, number
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import DType, TensorType
from qcompiler.ops.common import FLOAT_STAGES, INTEGER_ONLY, check_float
from qcompiler.ops.integer import REQUANTIZED, REQUANTIZES, apply, check_requantized, steps
from qcompiler.quant.layer_norm import layer_norm_accumulator


def _check_shapes(types: Sequence[TensorType]) -> int:
    """The number of axes that are normalized together: the rank of the weight."""
    x, weight, bias = types
    dims = weight.rank
    if not 0 < dims <= x.rank or x.shape[x.rank - dims :] != weight.shape or bias.shape != weight.shape:
        raise GraphError(
            f"the input is {x}, the weight {weight} and the bias {bias}",
            expected="both with the last sizes of the input",
        )
    return dims


def _infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    _check_shapes(types)
    if number(attributes, "eps") < 0:
        raise GraphError(f"eps is {attributes['eps']}", expected="at least 0")
    return (types[0],)


def _evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, weight, bias = operands
    return (functional.layer_norm(x, weight.shape, weight, bias, node.number("eps")),)


register(
    OpDef(
        name="layer_norm",
        operands=("x", "weight", "bias"),
        attributes={"eps": 1e-5},
        infer=_infer,
        evaluate=_evaluate,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.PARAMETRIC, Trait.NORMALIZATION}),
        kind="normalization",
        summary="(x - mean) / sqrt(variance + eps) * weight + bias over the last axes, as many as the weight has.",
    )
)


def _infer_integer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    dtype = check_requantized(types, attributes, 3)
    _check_shapes(types[:3])
    if (types[1].dtype, types[2].dtype) != (DType.I16, DType.I32):
        raise GraphError(f"the weight is {types[1]} and the bias {types[2]}", expected="i16 and i32")
    epsilon, fraction = integer(attributes, "epsilon"), integer(attributes, "fraction")
    if not 0 <= epsilon < 2**60 or not 0 <= fraction <= 15:
        raise GraphError(f"epsilon is {epsilon} and fraction {fraction}", expected="0..2^60 and 0..15")
    return (TensorType(dtype, types[0].shape),)


def _evaluate_integer(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    attributes = node.attributes
    weight, bias = (operand.long() for operand in operands[1:3])
    epsilon, fraction = integer(attributes, "epsilon"), integer(attributes, "fraction")
    acc = layer_norm_accumulator(steps(node, operands, 0), weight, bias, epsilon, fraction)
    return apply(node, operands, acc, 1, 3)


register(
    OpDef(
        name="int_layer_norm",
        operands=("x", "weight", "bias", "multiplier", "exponent?"),
        attributes={"epsilon": REQUIRED, "fraction": REQUIRED, **REQUANTIZED},
        infer=_infer_integer,
        evaluate=_evaluate_integer,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="requantize(d / sqrt(v + epsilon) 2^fraction w + b), halves up; see quant.layer_norm.",
    )
)
