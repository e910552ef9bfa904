"""Ops that work element by element: activations, sums and products, normalization of channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, flag, integer, number
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import Stage, TensorType
from qcompiler.ops.common import ANY_STAGE, FLOAT_STAGES, broadcast, check_float, same_type
from qcompiler.quant.affine import along_axis

Array = npt.NDArray[np.float64]
_Binary: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def _relu(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (functional.relu(operands[0]),)


def _clamp(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (operands[0].clamp(node.number("min"), node.number("max")),)


def _infer_clamp(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    if not number(attributes, "min") <= number(attributes, "max"):
        raise GraphError(f"the interval is {attributes['min']} to {attributes['max']}", expected="min <= max")
    return (types[0],)


register(
    OpDef(
        name="relu",
        operands=("x",),
        infer=same_type,
        evaluate=_relu,
        stages=FLOAT_STAGES,
        traits=frozenset(
            {Trait.CLAMP, Trait.ACTIVATION, Trait.RECTIFIER, Trait.NOT_NEGATIVE, Trait.COMMUTES_WITH_SCALE}
        ),
        summary="max(x, 0).",
    )
)
register(
    OpDef(
        name="clamp",
        operands=("x",),
        attributes={"min": -float("inf"), "max": float("inf")},
        infer=_infer_clamp,
        evaluate=_clamp,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.CLAMP, Trait.ACTIVATION}),
        summary="min(max(x, min), max).",
    )
)


def _infer_clamp_channels(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    (x, *limits), axis = types, integer(attributes, "axis")
    if not 0 < axis < x.rank or any(limit.shape != (x.shape[axis],) for limit in limits):
        raise GraphError(
            f"the input is {x} and the limits {limits[0]} and {limits[1]} along axis {axis}",
            expected="a lower and an upper limit for each index of an axis after the first",
        )
    return (x,)


def _clamp_channels(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, axis = operands[0], node.integer("axis")
    low, high = (along_axis(limit, x.dim(), axis) for limit in operands[1:])
    return (x.clamp(low, high),)


register(
    OpDef(
        name="clamp_channels",
        operands=("x", "low", "high"),
        attributes={"axis": REQUIRED},
        infer=_infer_clamp_channels,
        evaluate=_clamp_channels,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.CLAMP, Trait.PARAMETRIC}),
        summary="min(max(x, low), high) with a pair of limits for each channel along `axis`; limits may be infinite.",
    )
)


def _infer_binary(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    if types[0].dtype != types[1].dtype:
        raise GraphError(f"the operands are {types[0]} and {types[1]}", expected="one element type")
    return (TensorType(types[0].dtype, broadcast(types[0].shape, types[1].shape)),)


def _infer_div(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    return _infer_binary(types, attributes)


def _binary(function: _Binary) -> Callable[[Node, Sequence[Tensor]], tuple[Tensor, ...]]:
    return lambda node, operands: (function(operands[0], operands[1]),)


_SIGNED = frozenset({Trait.ELEMENTWISE})
_binaries: tuple[tuple[str, _Binary, frozenset[Trait]], ...] = (
    ("add", torch.add, _SIGNED | {Trait.KEEPS_SIGN}),
    ("sub", torch.sub, _SIGNED),
    ("mul", torch.mul, _SIGNED | {Trait.KEEPS_SIGN}),
    ("div", torch.div, frozenset()),
)
for _name, _torch, _traits in _binaries:
    register(
        OpDef(
            name=_name,
            operands=("a", "b"),
            infer=_infer_div if _name == "div" else _infer_binary,
            evaluate=_binary(_torch),
            stages=FLOAT_STAGES,
            traits=_traits,
            summary=f"{_name}(a, b) with broadcasting.",
        )
    )


def _infer_extreme(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    shape = broadcast(types[0].shape, types[1].shape)
    if types[0].with_shape(shape) != types[1].with_shape(shape):
        raise GraphError(f"the operands are {types[0]} and {types[1]}", expected="one element type and one grid")
    return (types[0].with_shape(shape),)


for _name, _torch in (("maximum", torch.maximum), ("minimum", torch.minimum)):
    register(
        OpDef(
            name=_name,
            operands=("a", "b"),
            infer=_infer_extreme,
            evaluate=_binary(_torch),
            stages=ANY_STAGE,
            traits=frozenset({Trait.ELEMENTWISE, Trait.MOVEMENT, Trait.KEEPS_SIGN}),
            summary=f"{_name}(a, b) with broadcasting, of numbers or of codes on one grid.",
        )
    )


def _batch_norm(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, weight, bias, mean, variance = operands
    a = node.attributes
    if a["training"]:
        # torch would update the running statistics in place; here `update` computes the new ones.
        mean, variance = mean.clone(), variance.clone()
    return (
        functional.batch_norm(
            x, mean, variance, weight, bias, flag(a, "training"), number(a, "momentum"), number(a, "eps")
        ),
    )


def _new_statistics(node: Node, operands: Sequence[Tensor]) -> dict[int, Tensor]:
    """Running mean and variance after a batch, as torch updates them."""
    if not node.attributes["training"]:
        return {}
    mean, variance = (tensor.detach().clone() for tensor in operands[3:])
    functional.batch_norm(operands[0].detach(), mean, variance, None, None, True, node.number("momentum"))
    return {3: mean, 4: variance}


def _infer_batch_norm(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    channels = types[0].shape[1] if types[0].rank > 1 else None
    for type in types[1:]:
        if type.shape != (channels,):
            raise GraphError(f"the input is {types[0]} and a parameter {type}", expected="one number per channel")
    return (types[0],)


register(
    OpDef(
        name="batch_norm",
        operands=("x", "weight", "bias", "mean", "variance"),
        attributes={"eps": 1e-5, "momentum": 0.1, "training": False},
        infer=_infer_batch_norm,
        evaluate=_batch_norm,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.NORMALIZATION}),
        summary="(x - mean) / sqrt(variance + eps) * weight + bias along axis 1.",
        update=_new_statistics,
    )
)


register(
    OpDef(
        name="identity",
        operands=("x",),
        infer=same_type,
        evaluate=lambda node, operands: (operands[0],),
        stages=frozenset({Stage.FLOAT, Stage.CANONICAL}),
        summary="x.",
    )
)


def _infer_prelu(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    x, weight = types
    channels = x.shape[1] if x.rank > 1 else 1
    if weight.shape not in ((1,), (channels,)):
        raise GraphError(f"the input is {x} and the slopes {weight}", expected="one slope, or one per channel")
    return (x,)


def _prelu(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (functional.prelu(operands[0], operands[1]),)


register(
    OpDef(
        name="prelu",
        operands=("x", "weight"),
        infer=_infer_prelu,
        evaluate=_prelu,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.PARAMETRIC, Trait.RECTIFIER, Trait.COMMUTES_WITH_SCALE}),
        kind="table",
        summary="max(x, 0) + weight * min(x, 0) with one weight, or one per channel along axis 1.",
    )
)


def prelu_function(slope: float) -> Callable[[Array], Array]:
    """`prelu` with one slope in float64, for a table."""
    return lambda x: np.where(x > 0.0, x, slope * x)
