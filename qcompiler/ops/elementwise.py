"""Ops that work element by element: activations, functions of one number, sums and products, normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy import special
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.graph import Attribute, Node
from qcompiler.ir.registry import Attributes, OpDef, Trait, register
from qcompiler.ir.types import Stage, TensorType
from qcompiler.ops.common import FLOAT_STAGES, broadcast, check_float, real, same_real_type, same_type

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class UnaryFunction:
    """A real function in two forms.

    Args:
        torch: In torch, with the attributes as keyword arguments.
        numpy: The same in float64, from which lookup tables are built.
        attributes: Names and defaults.
    """

    torch: Callable[..., Tensor]
    numpy: Callable[..., Array]
    attributes: dict[str, Attribute] = field(default_factory=dict)

    def table(self, node: Node) -> Callable[[Array], Array]:
        """The float64 form with the attributes of `node` filled in."""
        keywords: dict[str, Any] = {name: node.attributes[name] for name in self.attributes}
        return lambda x: self.numpy(x, **keywords)


def _gelu(x: Array, approximate: str) -> Array:
    if approximate == "tanh":
        inner: Array = np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1.0 + np.tanh(inner))
    return x * special.ndtr(x)


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, 0.0)


def _relu6(x: Array) -> Array:
    return np.clip(x, 0.0, 6.0)


UNARY: dict[str, UnaryFunction] = {
    "sigmoid": UnaryFunction(torch.sigmoid, special.expit),
    "tanh": UnaryFunction(torch.tanh, np.tanh),
    "silu": UnaryFunction(functional.silu, lambda x: x * special.expit(x)),
    "hardswish": UnaryFunction(functional.hardswish, lambda x: x * _relu6(x + 3.0) / 6.0),
    "hardsigmoid": UnaryFunction(functional.hardsigmoid, lambda x: _relu6(x + 3.0) / 6.0),
    "gelu": UnaryFunction(functional.gelu, _gelu, {"approximate": "none"}),
    "leaky_relu": UnaryFunction(
        functional.leaky_relu,
        lambda x, negative_slope: np.where(x >= 0.0, x, negative_slope * x),
        {"negative_slope": 0.01},
    ),
    "elu": UnaryFunction(
        functional.elu, lambda x, alpha: np.where(x > 0.0, x, alpha * np.expm1(np.minimum(x, 0.0))), {"alpha": 1.0}
    ),
    "softplus": UnaryFunction(functional.softplus, _softplus),
    "mish": UnaryFunction(functional.mish, lambda x: x * np.tanh(_softplus(x))),
    "exp": UnaryFunction(torch.exp, np.exp),
}
"""Functions of one number by op name. An integer program holds each as a table."""


def _unary(function: UnaryFunction) -> Callable[[Node, Sequence[Tensor]], tuple[Tensor, ...]]:
    def evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        keywords: dict[str, Any] = {name: node.attributes[name] for name in function.attributes}
        return (function.torch(operands[0], **keywords),)

    return evaluate


for _name, _function in UNARY.items():
    register(
        OpDef(
            name=_name,
            operands=("x",),
            attributes=_function.attributes,
            infer=same_real_type,
            evaluate=_unary(_function),
            stages=FLOAT_STAGES,
            traits=frozenset({Trait.UNARY}),
            summary=f"{_name}(x), element by element.",
        )
    )


def _relu(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (functional.relu(operands[0]),)


def _clamp(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (operands[0].clamp(real(node.attributes, "min"), real(node.attributes, "max")),)


def _infer_clamp(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    if not real(attributes, "min") <= real(attributes, "max"):
        raise GraphError(f"the interval is {attributes['min']} to {attributes['max']}", expected="min <= max")
    return (types[0],)


register(
    OpDef(
        name="relu",
        operands=("x",),
        infer=same_type,
        evaluate=_relu,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.ACTIVATION}),
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
        traits=frozenset({Trait.ACTIVATION}),
        summary="min(max(x, min), max).",
    )
)


def _infer_binary(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    if types[0].dtype != types[1].dtype:
        raise GraphError(f"the operands are {types[0]} and {types[1]}", expected="one element type")
    return (TensorType(types[0].dtype, broadcast(types[0].shape, types[1].shape)),)


def _infer_div(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    return _infer_binary(types, attributes)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Node, Sequence[Tensor]], tuple[Tensor, ...]]:
    return lambda node, operands: (function(operands[0], operands[1]),)


for _name, _torch in (("add", torch.add), ("sub", torch.sub), ("mul", torch.mul), ("div", torch.div)):
    register(
        OpDef(
            name=_name,
            operands=("a", "b"),
            infer=_infer_div if _name == "div" else _infer_binary,
            evaluate=_binary(cast("Callable[[Tensor, Tensor], Tensor]", _torch)),
            stages=FLOAT_STAGES,
            summary=f"{_name}(a, b) with broadcasting.",
        )
    )


def _batch_norm(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, weight, bias, mean, variance = operands
    a = node.attributes
    if a["training"]:
        # The statistics of the batch; the running ones are states that this op does not update.
        mean, variance = mean.clone(), variance.clone()
    return (
        functional.batch_norm(
            x, mean, variance, weight, bias, bool(a["training"]), real(a, "momentum"), real(a, "eps")
        ),
    )


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
        summary="(x - mean) / sqrt(variance + eps) * weight + bias along axis 1.",
    )
)


def _infer_dropout(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    if not 0.0 <= real(attributes, "p") <= 1.0:
        raise GraphError(f"p is {attributes['p']}", expected="a probability")
    return (types[0],)


def _dropout(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (functional.dropout(operands[0], real(node.attributes, "p"), bool(node.attributes["training"])),)


register(
    OpDef(
        name="dropout",
        operands=("x",),
        attributes={"p": 0.5, "training": False},
        infer=_infer_dropout,
        evaluate=_dropout,
        stages=FLOAT_STAGES,
        summary="Zeroes elements while training; the identity at inference.",
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
        traits=frozenset({Trait.PARAMETRIC}),
        summary="max(x, 0) + weight * min(x, 0), a weight for all or one per channel along axis 1.",
    )
)


def prelu_function(slope: float) -> Callable[[Array], Array]:
    """`prelu` with one slope in float64, for a table."""
    return lambda x: np.where(x > 0.0, x, slope * x)
