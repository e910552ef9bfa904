"""Functions of one number, element by element. An integer program holds each as a lookup table, computed in float64.

Outside the domain of a function (the root of a negative number) the table holds the value at the border of the domain:
the float model never goes there, but codes at the end of a grid may.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attribute, Attributes, integer, text
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import TensorType
from qcompiler.ops.common import FLOAT_STAGES, check_float, same_real_type
from qcompiler.quant.affine import along_axis

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class UnaryFunction:
    """A real function in a torch and a NumPy form.

    Args:
        torch: Torch function that takes the attributes as keyword arguments.
        numpy: The same function in float64, from which lookup tables are built; returns a number or an infinity for
            every number.
        attributes: Names and default values of the attributes.
        straight: Whether the function continues like a straight line at an end, as silu does, so that f(s x) / s is as
            wide as f(x): equalization then passes through, with a lookup table per channel. Where both ends are
            bounded, all channels of f(x) already share one range, and a factor could only separate them.
        traits: Facts about the op in addition to `Trait.UNARY`.
    """

    torch: Callable[..., Tensor]
    numpy: Callable[..., Array]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    straight: bool = False
    traits: frozenset[Trait] = frozenset()

    def parameters(self, node: Node) -> tuple[Attribute, ...]:
        """The attributes of the function in their order, from its own op or from a `scaled_unary`."""
        if node.op == SCALED:
            given = node.attributes["parameters"]
            return given if isinstance(given, tuple) else (given,)
        return tuple(node.attributes[name] for name in self.attributes)

    def table(self, node: Node, scale: float = 1.0) -> Callable[[Array], Array]:
        """The float64 form with the attributes of `node` filled in: f(x * scale) / scale."""
        keywords: dict[str, Any] = dict(zip(self.attributes, self.parameters(node), strict=True))
        return lambda x: self.numpy(x * scale, **keywords) / scale


SCALED = "scaled_unary"
"""Op name of a function between two per-channel scales."""

UNARY: dict[str, UnaryFunction] = {}
"""Functions of one number by op name; see `register_unary`."""


def register_unary(name: str, function: UnaryFunction) -> None:
    """Register a function of one number as an operator.

    Args:
        name: Name of the op in descriptors and front-end rules.
        function: The function that the op computes.

    Raises:
        PluginError: The name is taken.
    """

    def evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        keywords: dict[str, Any] = {key: node.attributes[key] for key in function.attributes}
        return (function.torch(operands[0], **keywords),)

    register(
        OpDef(
            name=name,
            operands=("x",),
            attributes=function.attributes,
            infer=same_real_type,
            evaluate=evaluate,
            stages=FLOAT_STAGES,
            traits=frozenset({Trait.UNARY}) | function.traits,
            summary=f"{name}(x), element by element.",
        )
    )
    UNARY[name] = function


def _gelu(x: Array, approximate: str) -> Array:
    if approximate == "tanh":
        inner: Array = np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1.0 + np.tanh(inner))
    from scipy import special  # half a second to import, needed for lookup tables only

    found: Array = x * special.ndtr(x)
    return found


def _sigmoid(x: Array) -> Array:
    from scipy import special

    found: Array = special.expit(x)
    return found


def _erf(x: Array) -> Array:
    from scipy import special

    found: Array = special.erf(x)
    return found


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, 0.0)


def _relu6(x: Array) -> Array:
    return np.clip(x, 0.0, 6.0)


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0.0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def _celu(x: Array, alpha: float) -> Array:
    return np.where(x > 0.0, x, alpha * np.expm1(np.minimum(x, 0.0) / alpha))


def _reciprocal(x: Array) -> Array:
    with np.errstate(divide="ignore"):
        return 1.0 / (x + 0.0)  # -0.0 becomes 0.0, so that the reciprocal is positive


def _rsqrt(x: Array) -> Array:
    return _reciprocal(np.sqrt(np.maximum(x, 0.0)))


def _power(x: Array, exponent: float) -> Array:
    if not exponent.is_integer():
        x = np.maximum(x, 0.0)
    with np.errstate(divide="ignore"):
        found: Array = np.power(x + 0.0, exponent)  # -0.0 becomes 0.0, so that negative powers are positive
    return found


def _log(x: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(x, 0.0))


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
"""Klambauer et al. 2017, arXiv:1706.02515, with the digits of torch."""

_NOT_NEGATIVE = frozenset({Trait.NOT_NEGATIVE})

for _name, _function in {
    "sigmoid": UnaryFunction(torch.sigmoid, _sigmoid, traits=_NOT_NEGATIVE),
    "tanh": UnaryFunction(torch.tanh, np.tanh),
    "silu": UnaryFunction(functional.silu, lambda x: x * _sigmoid(x), straight=True),
    "hardswish": UnaryFunction(functional.hardswish, lambda x: x * _relu6(x + 3.0) / 6.0, straight=True),
    "hardsigmoid": UnaryFunction(functional.hardsigmoid, lambda x: _relu6(x + 3.0) / 6.0, traits=_NOT_NEGATIVE),
    "gelu": UnaryFunction(functional.gelu, _gelu, {"approximate": "none"}, straight=True),
    "leaky_relu": UnaryFunction(
        functional.leaky_relu,
        lambda x, negative_slope: np.where(x >= 0.0, x, negative_slope * x),
        {"negative_slope": 0.01},
        traits=frozenset({Trait.RECTIFIER, Trait.COMMUTES_WITH_SCALE}),
    ),
    "elu": UnaryFunction(functional.elu, _elu, {"alpha": 1.0}, straight=True),
    "celu": UnaryFunction(functional.celu, _celu, {"alpha": 1.0}, straight=True),
    "selu": UnaryFunction(functional.selu, lambda x: _SELU_SCALE * _elu(x, _SELU_ALPHA), straight=True),
    "softplus": UnaryFunction(functional.softplus, _softplus, straight=True, traits=_NOT_NEGATIVE),
    "log_sigmoid": UnaryFunction(functional.logsigmoid, lambda x: -_softplus(-x), straight=True),
    "mish": UnaryFunction(functional.mish, lambda x: x * np.tanh(_softplus(x)), straight=True),
    "softsign": UnaryFunction(functional.softsign, lambda x: x / (1.0 + np.abs(x))),
    "tanhshrink": UnaryFunction(functional.tanhshrink, lambda x: x - np.tanh(x), straight=True),
    "softshrink": UnaryFunction(
        functional.softshrink,
        lambda x, lambd: np.sign(x) * np.maximum(np.abs(x) - lambd, 0.0),
        {"lambd": 0.5},
        straight=True,
    ),
    "hardshrink": UnaryFunction(
        functional.hardshrink, lambda x, lambd: np.where(np.abs(x) > lambd, x, 0.0), {"lambd": 0.5}, straight=True
    ),
    "abs": UnaryFunction(torch.abs, np.abs, traits=_NOT_NEGATIVE),
    "exp": UnaryFunction(torch.exp, np.exp, traits=_NOT_NEGATIVE),
    "expm1": UnaryFunction(torch.expm1, np.expm1),
    "log": UnaryFunction(torch.log, _log),
    "log1p": UnaryFunction(torch.log1p, lambda x: _log(x + 1.0)),
    "sqrt": UnaryFunction(torch.sqrt, lambda x: np.sqrt(np.maximum(x, 0.0)), traits=_NOT_NEGATIVE),
    "rsqrt": UnaryFunction(torch.rsqrt, _rsqrt, traits=_NOT_NEGATIVE),
    "reciprocal": UnaryFunction(torch.reciprocal, _reciprocal),
    "power": UnaryFunction(torch.pow, _power, {"exponent": 3.0}),
    "erf": UnaryFunction(torch.erf, _erf),
    "sin": UnaryFunction(torch.sin, np.sin),
    "cos": UnaryFunction(torch.cos, np.cos),
    "atan": UnaryFunction(torch.atan, np.arctan),
}.items():
    register_unary(_name, _function)


def unary_of(node: Node) -> UnaryFunction:
    """The function that a `scaled_unary` node applies between its scales."""
    return UNARY[node.text("function")]


def _infer_scaled(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    (x, scale), axis, name = types, integer(attributes, "axis"), text(attributes, "function")
    if not 0 < axis < x.rank or scale.shape != (x.shape[axis],):
        raise GraphError(
            f"the input is {x} and the scales {scale} along axis {axis}",
            expected="a scale for each index of an axis after the first",
        )
    parameters = attributes["parameters"]
    if name not in UNARY:
        raise GraphError(f"the function is {name!r}", expected="the name of a unary function")
    wanted = tuple(UNARY[name].attributes)
    if not isinstance(parameters, tuple) or len(parameters) != len(wanted):
        raise GraphError(f"the parameters of {name} are {parameters}", expected=f"values for {wanted}")
    return (x,)


def scaled_values(node: Node, x: Tensor, scale: Tensor, axis: int) -> Tensor:
    """The values of a `scaled_unary` node for a tensor with channels along `axis`, maybe not the node's own axis."""
    function = unary_of(node)
    keywords: dict[str, Any] = dict(zip(function.attributes, function.parameters(node), strict=True))
    factors = along_axis(scale, x.dim(), axis)
    return function.torch(x * factors, **keywords) / factors


def _scaled(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (scaled_values(node, operands[0], operands[1], node.integer("axis")),)


register(
    OpDef(
        name=SCALED,
        operands=("x", "scale"),
        attributes={"function": REQUIRED, "parameters": (), "axis": REQUIRED},
        infer=_infer_scaled,
        evaluate=_scaled,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.PARAMETRIC}),
        summary="f(x * scale) / scale with a positive scale for each channel along `axis`.",
    )
)
