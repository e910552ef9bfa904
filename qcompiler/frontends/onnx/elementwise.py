"""Elementwise operators of ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.frontends.onnx.reading import dtype_of
from qcompiler.frontends.onnx.symbolic import Operand, apply
from qcompiler.frontends.onnx.table import At, translates

UNARY: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,  # noqa: TID251  # ONNX rounds halves to even, as torch does
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
BINARY: Mapping[str, Callable[..., Any]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}


def _unary(function: Callable[..., Any]) -> Callable[[At], Any]:
    return lambda at: apply(function, at.tensor(0))


def _binary(function: Callable[..., Any]) -> Callable[[At], Any]:
    return lambda at: apply(function, at.tensor(0), at.tensor(1))


for name, function in UNARY.items():
    translates(name)(_unary(function))
for name, function in BINARY.items():
    translates(name)(_binary(function))


@translates("Identity", "Dropout")
def _same(at: At) -> Any:
    """The operand; the mask of a dropout that does nothing is true everywhere."""
    if at.op == "Dropout" and at.has(2) and bool(at.known(2)):
        raise at.refusal("a Dropout in training mode", "Export the model for inference.")
    held = at.operands[0]
    if at.results < 2:
        return held
    return [held, apply(torch.ones_like, at.tensor(0), dtype=torch.bool)]


@translates("Div")
def _div(at: At) -> Operand:
    left, right = at.tensor(0), at.tensor(1)
    if left.dtype.is_floating_point:
        return apply(torch.div, left, right)
    return apply(torch.div, left, right, rounding_mode="trunc")


@translates("Mod")
def _mod(at: At) -> Operand:
    return apply(torch.fmod if at.attribute("fmod", 0) else torch.remainder, at.tensor(0), at.tensor(1))


@translates("Pow")
def _pow(at: At) -> Operand:
    base, exponent = at.tensor(0), at.tensor(1)
    power: Any = exponent
    if isinstance(exponent, Tensor) and exponent.numel() == 1 and exponent.dim() <= base.dim():
        power = float(exponent) if base.dtype.is_floating_point else exponent.item()
        if isinstance(power, float) and power == int(power):
            power = int(power)
    result = apply(torch.pow, base, power)
    return result if result.dtype == base.dtype else apply(torch.Tensor.to, result, base.dtype)


@translates("BitShift")
def _shift(at: At) -> Operand:
    left = at.attribute("direction") == "LEFT"
    return apply(torch.bitwise_left_shift if left else torch.bitwise_right_shift, at.tensor(0), at.tensor(1))


@translates("Max", "Min", "Sum", "Mean")
def _several(at: At) -> Operand:
    function = {"Max": torch.maximum, "Min": torch.minimum}.get(at.op, torch.add)
    items = at.tensors()
    if function is not torch.add:  # limits, which no training changes
        items = [
            at.recording.name(item.clone(), "constant", at.recording.names.get(id(item), (item, "", ""))[2])
            if isinstance(item, Tensor)
            else item
            for item in items
        ]
    result = items[0]
    for item in items[1:]:
        result = apply(function, result, item)
    return apply(torch.div, result, len(items)) if at.op == "Mean" else result


@translates("Where")
def _where(at: At) -> Operand:
    return apply(torch.where, at.tensor(0), at.tensor(1), at.tensor(2))


@translates("Clip")
def _clip(at: At) -> Operand:
    low: Any = at.attribute("min")
    high: Any = at.attribute("max")
    x = at.tensor(0)
    if at.has(1):
        low = _scalar(at.tensor(1))
    if at.has(2):
        high = _scalar(at.tensor(2))
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        low = high  # as ONNX defines it: the upper limit wins
    if low is None and high is None:
        return x
    if low == 0 and high == 6 and x.dtype.is_floating_point:
        return apply(F.relu6, x)
    return apply(torch.clamp, x, min=low, max=high)


def _scalar(item: Operand) -> Any:
    """A known number as a number of Python."""
    return item.reshape(-1)[0].item() if isinstance(item, Tensor) else item


@translates("LeakyRelu")
def _leaky(at: At) -> Operand:
    return apply(F.leaky_relu, at.tensor(0), at.attribute("alpha", 0.01))


@translates("PRelu")
def _prelu(at: At) -> Operand:
    x, slope = at.tensor(0), at.tensor(1)
    if isinstance(slope, Tensor):
        sizes = [1] * (x.dim() - slope.dim()) + list(slope.shape)
        per_channel = x.dim() > 1 and sizes[1] == x.shape[1] and slope.numel() == sizes[1]
        if slope.numel() == 1 or per_channel:
            return apply(F.prelu, x, at.derived(slope.reshape(-1), 1))
    return apply(torch.where, apply(torch.ge, x, 0), x, apply(torch.mul, x, slope))


@translates("Elu")
def _elu(at: At) -> Operand:
    return apply(F.elu, at.tensor(0), at.attribute("alpha", 1.0))


@translates("Celu")
def _celu(at: At) -> Operand:
    return apply(F.celu, at.tensor(0), at.attribute("alpha", 1.0))


@translates("Selu")
def _selu(at: At) -> Operand:
    alpha, gamma = at.attribute("alpha", 1.67326319217681884765625), at.attribute("gamma", 1.05070102214813232421875)
    x = at.tensor(0)
    if math.isclose(alpha, 1.6732632423543772, rel_tol=1e-6) and math.isclose(gamma, 1.0507009873554805, rel_tol=1e-6):
        return apply(F.selu, x)
    return apply(torch.mul, apply(F.elu, x, alpha), gamma)


@translates("HardSigmoid")
def _hard_sigmoid(at: At) -> Operand:
    alpha, beta = at.attribute("alpha", 0.2), at.attribute("beta", 0.5)
    x = at.tensor(0)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return apply(F.hardsigmoid, x)
    return apply(torch.clamp, apply(torch.add, apply(torch.mul, x, alpha), beta), 0.0, 1.0)


@translates("ThresholdedRelu")
def _thresholded(at: At) -> Operand:
    return apply(F.threshold, at.tensor(0), at.attribute("alpha", 1.0), 0.0)


@translates("Shrink")
def _shrink(at: At) -> Operand:
    bias, limit, x = at.attribute("bias", 0.0), at.attribute("lambd", 0.5), at.tensor(0)
    below = apply(
        torch.where, apply(torch.lt, x, -limit), apply(torch.add, x, bias), 0.0 if x.dtype.is_floating_point else 0
    )
    found = apply(torch.where, apply(torch.gt, x, limit), apply(torch.sub, x, bias), below)
    return apply(torch.Tensor.to, found, x.dtype) if found.dtype != x.dtype else found


@translates("Gelu")
def _gelu(at: At) -> Operand:
    return apply(F.gelu, at.tensor(0), approximate=at.attribute("approximate", "none"))


@translates("Swish")
def _swish(at: At) -> Operand:
    x, alpha = at.tensor(0), at.attribute("alpha", 1.0)
    if alpha == 1.0:
        return apply(F.silu, x)
    return apply(torch.mul, x, apply(torch.sigmoid, apply(torch.mul, x, alpha)))


@translates("IsInf")
def _is_inf(at: At) -> Operand:
    x = at.tensor(0)
    negative, positive = at.attribute("detect_negative", 1), at.attribute("detect_positive", 1)
    if negative and positive:
        return apply(torch.isinf, x)
    if not negative and not positive:
        return apply(torch.zeros_like, x, dtype=torch.bool)
    return apply(torch.isneginf if negative else torch.isposinf, x)


@translates("Cast")
def _cast(at: At) -> Operand:
    return _converted(at.tensor(0), dtype_of(at.attribute("to"), "the result of Cast", str(at.location)))


@translates("CastLike")
def _cast_like(at: At) -> Operand:
    return _converted(at.tensor(0), at.tensor(1).dtype)


def _converted(x: Operand, dtype: torch.dtype) -> Operand:
    return x if x.dtype == dtype else apply(torch.Tensor.to, x, dtype)


@translates("Softmax", "LogSoftmax")
def _softmax(at: At) -> Operand:
    function = F.softmax if at.op == "Softmax" else F.log_softmax
    x = at.tensor(0)
    if at.version >= 13:
        return apply(function, x, at.attribute("axis", -1))
    axis = at.attribute("axis", 1) % x.dim()
    if axis == x.dim() - 1 or all(size == 1 for size in x.shape[axis + 1 :]):
        return apply(function, x, axis)
    flat = apply(torch.flatten, x, axis)
    return apply(torch.reshape, apply(function, flat, axis), x.shape)


@translates("Hardmax")
def _hardmax(at: At) -> Operand:
    x = at.tensor(0)
    axis = at.attribute("axis", -1 if at.version >= 13 else 1) % x.dim()
    shape = x.shape
    if at.version < 13:
        x = apply(torch.flatten, x, axis)
    largest = apply(torch.argmax, x, axis, keepdim=True)
    places = torch.arange(_known(at, x.shape[axis])).reshape([-1] + [1] * (x.dim() - axis - 1))
    found = apply(torch.Tensor.to, apply(torch.eq, places, largest), x.dtype)
    return apply(torch.reshape, found, shape) if at.version < 13 else found


def _known(at: At, size: object) -> int:
    if not isinstance(size, int):
        raise at.refusal(f"{at.op} along an axis whose size depends on the batch size")
    return size


@translates("BitCast")
def _bit_cast(at: At) -> Operand:
    dtype = dtype_of(at.attribute("to"), "the result of BitCast", str(at.location))
    x = at.tensor(0)
    if dtype.itemsize != x.dtype.itemsize:
        raise at.refusal(f"BitCast from {x.dtype} to {dtype}", "Use types of one width.")
    return apply(torch.Tensor.view, x, dtype)
