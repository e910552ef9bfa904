"""Functions of one number in ONNX operators of opset 13.

Newer opsets have operators for some of them, but older runtimes would refuse the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

Tensor: TypeAlias = Any
"""A tensor of onnx-graphsurgeon, which has no type annotations."""
Compute: TypeAlias = Callable[..., Tensor]
"""(operator, operands, attributes) -> result; numbers among the operands become float32 constants."""
Rule: TypeAlias = Callable[..., Tensor]
"""(compute, x, parameters of the function in the order of its attributes) -> the function of x."""


def _silu(compute: Compute, x: Tensor) -> Tensor:
    return compute("Mul", x, compute("Sigmoid", x))


def _hardsigmoid(compute: Compute, x: Tensor) -> Tensor:
    return compute("HardSigmoid", x, alpha=1.0 / 6.0, beta=0.5)


def _hardswish(compute: Compute, x: Tensor) -> Tensor:
    return compute("Mul", x, _hardsigmoid(compute, x))


def _gelu(compute: Compute, x: Tensor, approximate: str) -> Tensor:
    """x / 2 * (1 + erf(x / sqrt 2)), or with tanh(sqrt(2 / pi) * (x + 0.044715 x^3)) in its place."""
    if approximate == "tanh":
        cube = compute("Mul", x, compute("Mul", x, x))
        inner = compute("Add", x, compute("Mul", cube, 0.044715))
        shape = compute("Tanh", compute("Mul", inner, math.sqrt(2.0 / math.pi)))
    else:
        shape = compute("Erf", compute("Mul", x, math.sqrt(0.5)))
    return compute("Mul", compute("Mul", x, 0.5), compute("Add", shape, 1.0))


def _positive(compute: Compute, x: Tensor) -> Tensor:
    """x inside the domain of a function of positive numbers; 0 elsewhere, as in its table."""
    return compute("Max", x, 0.0)


def _mish(compute: Compute, x: Tensor) -> Tensor:
    return compute("Mul", x, compute("Tanh", compute("Softplus", x)))


FUNCTIONS: dict[str, Rule] = {
    "sigmoid": lambda compute, x: compute("Sigmoid", x),
    "tanh": lambda compute, x: compute("Tanh", x),
    "abs": lambda compute, x: compute("Abs", x),
    "atan": lambda compute, x: compute("Atan", x),
    "celu": lambda compute, x, alpha: compute("Celu", x, alpha=alpha),
    "cos": lambda compute, x: compute("Cos", x),
    "erf": lambda compute, x: compute("Erf", x),
    "exp": lambda compute, x: compute("Exp", x),
    "expm1": lambda compute, x: compute("Sub", compute("Exp", x), 1.0),
    "hardshrink": lambda compute, x, lambd: compute("Shrink", x, lambd=lambd),
    "log": lambda compute, x: compute("Log", _positive(compute, x)),
    "log1p": lambda compute, x: compute("Log", _positive(compute, compute("Add", x, 1.0))),
    "log_sigmoid": lambda compute, x: compute("Neg", compute("Softplus", compute("Neg", x))),
    "power": lambda compute, x, exponent: compute("Pow", _positive(compute, x) if exponent % 1 else x, exponent),
    "reciprocal": lambda compute, x: compute("Reciprocal", x),
    "rsqrt": lambda compute, x: compute("Reciprocal", compute("Sqrt", _positive(compute, x))),
    "selu": lambda compute, x: compute("Selu", x),
    "sin": lambda compute, x: compute("Sin", x),
    "softshrink": lambda compute, x, lambd: compute("Shrink", x, bias=lambd, lambd=lambd),
    "softsign": lambda compute, x: compute("Softsign", x),
    "sqrt": lambda compute, x: compute("Sqrt", _positive(compute, x)),
    "tanhshrink": lambda compute, x: compute("Sub", x, compute("Tanh", x)),
    "softplus": lambda compute, x: compute("Softplus", x),
    "leaky_relu": lambda compute, x, slope: compute("LeakyRelu", x, alpha=slope),
    "elu": lambda compute, x, alpha: compute("Elu", x, alpha=alpha),
    "silu": _silu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "gelu": _gelu,
    "mish": _mish,
}
