"""Layer, group, instance and root-mean-square normalization, on real numbers and on codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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

__all__ = ["normalized_axes"]


def normalized_axes(node: Node) -> tuple[int, ...]:
    """The last axes, whose elements a node normalizes together."""
    rank = node.inputs[0].type.rank
    return tuple(range(rank - _dims(node.attributes, node.inputs[1].type), rank))


def _dims(attributes: Attributes, weight: TensorType) -> int:
    return weight.rank if attributes.get("dims") is None else integer(attributes, "dims")


def _check_shapes(types: Sequence[TensorType], attributes: Attributes) -> None:
    x, weight, bias = types
    dims, last = _dims(attributes, weight), x.shape[x.rank - weight.rank :]
    fits = weight.rank <= x.rank and all(own in (1, size) for own, size in zip(weight.shape, last, strict=False))
    if not 0 < dims <= x.rank or not fits or bias.shape != weight.shape:
        raise GraphError(
            f"the input is {x}, the weight {weight} and the bias {bias}, for {dims} axes",
            expected="both with the last sizes of the input, or 1 in their place",
        )
    if not all(isinstance(size, int) for size in x.shape[x.rank - dims :]):
        raise GraphError(f"{dims} axes of {x} are normalized", expected="axes of known size")


def _infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    _check_shapes(types, attributes)
    if number(attributes, "eps") < 0:
        raise GraphError(f"eps is {attributes['eps']}", expected="at least 0")
    return (types[0],)


def _evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, weight, bias = operands
    axes, eps = normalized_axes(node), node.number("eps")
    if not node.flag("centered"):
        return (x * torch.rsqrt(x.square().mean(axes, keepdim=True) + eps) * weight + bias,)
    sizes = [x.shape[axis] for axis in axes]
    if list(weight.shape) == sizes:
        return (functional.layer_norm(x, sizes, weight, bias, eps),)
    return (functional.layer_norm(x, sizes, eps=eps) * weight + bias,)


register(
    OpDef(
        name="layer_norm",
        operands=("x", "weight", "bias"),
        attributes={"eps": 1e-5, "dims": None, "centered": True},
        infer=_infer,
        evaluate=_evaluate,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.PARAMETRIC, Trait.NORMALIZATION}),
        kind="normalization",
        summary="(x - mean) / sqrt(variance + eps) * weight + bias over `dims` last axes, by default as many as the "
        "weight has; not centered: x / sqrt(mean x^2 + eps) * weight + bias.",
    )
)


def _infer_integer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    dtype = check_requantized(types, attributes, 3)
    _check_shapes(types[:3], attributes)
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
    dims, centered = len(normalized_axes(node)), node.flag("centered")
    acc = layer_norm_accumulator(steps(node, operands, 0), weight, bias, epsilon, fraction, dims, centered=centered)
    return apply(node, operands, acc, 1, 3)


register(
    OpDef(
        name="int_layer_norm",
        operands=("x", "weight", "bias", "multiplier", "exponent?"),
        attributes={"epsilon": REQUIRED, "fraction": REQUIRED, "dims": None, "centered": True, **REQUANTIZED},
        infer=_infer_integer,
        evaluate=_evaluate_integer,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="requantize(d / sqrt(v + epsilon) 2^fraction w + b), halves up; see quant.layer_norm.",
    )
)
