"""Elementwise functions: normalization, dropout, activations, arithmetic, and functions that change no values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from qcompiler.frontends.builder import Builder, Observed, Operand, Rule
from qcompiler.frontends.rules_exact import as_type, chosen_exactly, exact_binary
from qcompiler.frontends.rules_indexing import picked
from qcompiler.frontends.rules_reductions import extreme_of_one
from qcompiler.frontends.table import Number, axis_of, known_sizes, rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Value
from qcompiler.ops import UNARY


@rule("batch_norm")
def _batch_norm(
    b: Builder,
    input: Operand,
    running_mean: Operand | None,
    running_var: Operand | None,
    weight: Operand | None = None,
    bias: Operand | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Value:
    if running_mean is None or running_var is None:
        raise b.unsupported("a batch norm without running statistics", "Set track_running_stats=True.")
    if training:
        raise b.unsupported("a batch norm uses batch statistics", "Call model.eval() before tracing.")
    return b.node(
        "batch_norm",
        [
            input,
            _filled(running_mean, 1.0) if weight is None else weight,
            _filled(running_mean, 0.0) if bias is None else bias,
            running_mean,
            running_var,
        ],
        eps=float(eps),
        momentum=float(momentum or 0.0),
        training=False,
    )


def _filled(like: Operand, value: float) -> Leaf:
    device = like.tensor.device if isinstance(like, Leaf) else None
    return Leaf("constant", "", torch.full(known_sizes(like), value, dtype=like.type.dtype.torch, device=device))


@rule("aten_batch_norm")
def _aten_batch_norm(
    b: Builder,
    input: Operand,
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand | None,
    running_var: Operand | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> object:
    return _batch_norm(b, input, running_mean, running_var, weight, bias, training, momentum, eps)


@rule("native_batch_norm_legit_no_training")
def _core_batch_norm(
    b: Builder,
    input: Operand,
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand,
    running_var: Operand,
    momentum: float,
    eps: float,
) -> object:
    statistics = b.refusal("the model reads the statistics of a batch norm", "Use its first result only.")
    result = _batch_norm(b, input, running_mean, running_var, weight, bias, False, momentum, eps)
    return [result, statistics, statistics]


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def _dropout(b: Builder, input: Operand, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    if training:
        raise b.unsupported(
            f"{b.function} is active in a model in eval mode", "Pass training=self.training, or use nn.Dropout."
        )
    return b.node("dropout", [input], p=float(p), mode=_DROPOUT_MODES.get(b.function, "channels"), training=False)


_DROPOUT_MODES = {"dropout": "elements", "alpha_dropout": "alpha", "feature_alpha_dropout": "alpha_channels"}
"""Names of the dropout functions that do not drop whole channels."""


@rule("torchvision.ops.stochastic_depth.stochastic_depth")
def _stochastic_depth(b: Builder, input: Operand, p: float, mode: str, training: bool = True) -> Operand:
    if training:
        raise b.unsupported("stochastic_depth is active in a model in eval mode", "Pass training=self.training.")
    return b.node("dropout", [input], p=float(p), mode="rows" if mode == "row" else "batch", training=False)


@rule("contiguous", "clone", "detach", "data", "alias", "lift_fresh_copy", "lift_fresh", "requires_grad")
def _same(b: Builder, input: Operand, *arguments: object, **keywords: object) -> Operand:
    return input


@rule("relu")
def _relu(b: Builder, input: Operand, inplace: bool = False) -> Value:
    return b.node("relu", [input])


@rule("prelu")
def _prelu(b: Builder, input: Operand, weight: Operand) -> Value:
    return b.node("prelu", [input, weight])


@rule("relu6")
def _relu6(b: Builder, input: Operand, inplace: bool = False) -> Value:
    return b.node("clamp", [input], min=0.0, max=6.0)


@rule("hardtanh")
def _hardtanh(
    b: Builder, input: Operand, min_val: Number = -1.0, max_val: Number = 1.0, inplace: bool = False
) -> Value:
    return b.node("clamp", [input], min=float(min_val), max=float(max_val))


@rule("clamp")
def _clamp(b: Builder, input: Operand, min: object = None, max: object = None) -> Value:
    low, high = (_number_of(limit, default) for limit, default in ((min, -math.inf), (max, math.inf)))
    if isinstance(low, int | float) and isinstance(high, int | float):
        return b.node("clamp", [input], min=float(low), max=float(high))
    if not all(isinstance(limit, int | float | Leaf) for limit in (low, high)):
        raise b.unsupported("a clamp has limits that depend on the inputs", "Use constants of the model as limits.")
    result = input
    for op, limit in (("maximum", low), ("minimum", high)):
        if not isinstance(limit, int | float) or math.isfinite(limit):
            result = b.node(op, [result, limit])
    return cast("Value", result)


def _number_of(limit: object, default: float) -> object:
    """A limit as a number if it is one; a tensor of several numbers as it is."""
    if isinstance(limit, Leaf) and limit.kind == "constant" and limit.tensor.numel() == 1:
        return float(limit.tensor)
    return default if limit is None else limit


@rule("clamp_min")
def _clamp_min(b: Builder, input: Operand, min: object) -> object:
    return _clamp(b, input, min, None)


@rule("clamp_max")
def _clamp_max(b: Builder, input: Operand, max: object) -> object:
    return _clamp(b, input, None, max)


def unary_rule(op: str) -> Rule:
    """The rule of a torch function that maps to the unary operator `op`, with its attributes in order."""
    names = list(UNARY[op].attributes)

    def rule(b: Builder, input: Operand, *arguments: object, inplace: bool = False, **keywords: object) -> Value:
        given = {**dict(zip(names, arguments, strict=False)), **keywords}
        unknown = [name for name in keywords if name not in names]
        if unknown:
            raise TypeError(f"{unknown[0]}={keywords[unknown[0]]!r}")
        attributes: dict[str, Attribute] = {
            name: value if isinstance(value, str) else float(cast("float", value)) for name, value in given.items()
        }
        return b.node(op, [input], **attributes)

    return rule


@rule("softplus")
def _softplus(b: Builder, input: Operand, beta: Number = 1, threshold: Number = 20) -> Value:
    if beta != 1 or threshold != 20:
        raise b.unsupported(f"softplus with beta={beta} and threshold={threshold}", "Use the defaults, 1 and 20.")
    return b.node("softplus", [input])


@rule("elu")
def _elu(
    b: Builder,
    input: Operand,
    alpha: Number = 1.0,
    scale: Number = 1,
    input_scale: Number = 1,
    *,
    inplace: bool = False,
) -> Value:
    # torch.nn.functional.elu has inplace in the place of the aten operator's scale: False and True are no scales.
    if not isinstance(scale, bool) and (scale != 1 or input_scale != 1):
        raise b.unsupported(f"elu with scale={scale} and input_scale={input_scale}", "Multiply instead.")
    return b.node("elu", [input], alpha=float(alpha))


for _op in UNARY:
    if _op not in ("elu", "softplus", "power"):
        rule(_op)(unary_rule(_op))


@rule("log_sigmoid_forward")
def _log_sigmoid_forward(b: Builder, input: Operand) -> object:
    buffer = b.refusal("the model reads the buffer of a log_sigmoid", "Use its first result only.")
    return [b.node("log_sigmoid", [input]), buffer]


def _binary(op: str) -> Rule:
    def rule(b: Builder, input: object, other: object, *, alpha: Number = 1) -> Value:
        if alpha != 1:
            other = other * alpha if isinstance(other, int | float) else b.node("mul", [other, alpha])
        if isinstance(b.observed, Observed):
            if not b.observed.dtype.is_floating_point:
                return exact_binary(b, op, input, other)
            dtype = b.observed.dtype
            input, other = (_promoted(b, operand, dtype) for operand in (input, other))
        return b.node(op, [input, other])

    return rule


def _promoted(b: Builder, operand: object, dtype: torch.dtype) -> object:
    """An operand converted to the element type of the result: torch promotes types, operators do not."""
    if isinstance(operand, Leaf) and operand.kind == "constant" and operand.tensor.dtype != dtype:
        return Leaf("constant", operand.ref, operand.tensor.to(dtype))
    exact = isinstance(operand, Value) and not operand.type.dtype.is_float
    return as_type(b, operand, dtype) if exact else operand


for _op in ("add", "sub", "mul"):
    rule(_op)(_binary(_op))


def _extreme(op: str) -> Rule:
    def rule(b: Builder, input: Operand, other: object = None, keepdim: bool = False, **keywords: object) -> object:
        other = keywords.get("dim", other)
        if isinstance(other, Value | Leaf):
            return _binary(op)(b, input, other)
        return extreme_of_one(b, op, input, other, bool(keepdim))

    return rule


for _op in ("maximum", "minimum"):
    rule(_op, _op[:3], f"f{_op[:3]}")(_extreme(_op))


@rule("div")
def _div(b: Builder, input: object, other: object, *, rounding_mode: str | None = None) -> object:
    if rounding_mode is not None:
        raise b.unsupported(f"a division with rounding_mode={rounding_mode!r}", "Only true division is supported.")
    return _binary("div")(b, input, other)


@rule("rsub")
def _rsub(b: Builder, input: Operand, other: object, alpha: Number = 1) -> object:
    return _binary("sub")(b, other, input, alpha=alpha)


@rule("neg")
def _neg(b: Builder, input: Operand) -> Value:
    if not input.type.dtype.is_float:
        return exact_binary(b, "mul", input, -1)
    return b.node("mul", [input, -1])


@rule("square")
def _square(b: Builder, input: Operand) -> Value:
    return b.node("mul", [input, input])


_POWERS: Mapping[float, str] = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
"""Exponents that have a function of their own."""


@rule("pow")
def _pow(b: Builder, input: object, exponent: object) -> object:
    """A power with a constant exponent, or of a positive constant: base^x = exp(x ln base)."""
    if isinstance(input, int | float) and isinstance(exponent, Value):
        if input <= 0:
            raise b.unsupported(f"a power of {input}", "Only positive numbers have powers of all exponents.")
        return b.node("exp", [exponent if input == math.e else b.node("mul", [exponent, math.log(input)])])
    if isinstance(exponent, Leaf) and exponent.tensor.numel() == 1:
        exponent = exponent.tensor.item()
    if not isinstance(exponent, int | float):
        raise b.unsupported("a power whose exponent is a tensor", "Use a number as the exponent.")
    if exponent == 1:
        return input
    if exponent == 2:
        return b.node("mul", [input, input])
    if exponent in _POWERS:
        return b.node(_POWERS[exponent], [input])
    return b.node("power", [input], exponent=float(exponent))


@rule("addcmul")
def _addcmul(b: Builder, input: Operand, tensor1: Operand, tensor2: Operand, *, value: Number = 1) -> object:
    return _binary("add")(b, input, b.node("mul", [tensor1, tensor2]), alpha=value)


@rule("addcdiv")
def _addcdiv(b: Builder, input: Operand, tensor1: Operand, tensor2: Operand, *, value: Number = 1) -> object:
    return _binary("add")(b, input, b.node("div", [tensor1, tensor2]), alpha=value)


@rule("lerp")
def _lerp(b: Builder, input: Operand, end: Operand, weight: object) -> object:
    """input + weight * (end - input)."""
    return b.node("add", [input, b.node("mul", [b.node("sub", [end, input]), weight])])


@rule("copy")
def _copy(b: Builder, input: object, source: Operand, non_blocking: bool = False) -> Operand:
    """The new value of a tensor, or of a part of it."""
    if source.type.shape == b.shape:
        return source
    sizes = [size for size in b.shape[1:] if isinstance(size, int)]
    if not all(isinstance(size, int) for size in source.type.shape) or len(sizes) < len(b.shape) - 1:
        raise b.unsupported(
            f"a tensor of shape {list(source.type.shape)} is written to one of shape {list(b.shape)}",
            "Expand it to the shape of the part before.",
        )
    if isinstance(source, Leaf) and source.kind != "parameter":
        return Leaf("constant", "", source.tensor.expand(1, *sizes))
    lead = (1,) * (1 + len(sizes) - source.type.rank)
    one = b.node("reshape", [source], shape=(*lead, *source.type.shape)) if lead else source
    for axis, size in enumerate((1, *sizes)):
        one = picked(b, one, axis, [0] * size) if one.type.shape[axis] != size else one
    return one


@rule("fill", "zero")
def _fill(b: Builder, input: object, value: object = 0.0) -> Operand:
    """One sample of a number, which the tensors that hold it are padded with."""
    if isinstance(value, Leaf) and value.tensor.numel() == 1:
        value = value.tensor.item()
    sizes = [size for size in b.shape[1:] if isinstance(size, int)]
    if not isinstance(value, int | float) or not isinstance(b.observed, Observed) or len(sizes) < len(b.shape) - 1:
        raise b.unsupported(f"{b.function} with a value that depends on the inputs", "Build the tensor with torch.cat.")
    return Leaf("constant", "", torch.full((1, *sizes), value, dtype=b.observed.dtype, device=b.device))


@rule("where")
def _where(b: Builder, condition: Operand, input: object = None, other: object = None) -> object:
    """A choice by a constant: input * mask + other * (1 - mask)."""
    if input is None or other is None:
        raise b.unsupported("where without values", "Use where(condition, input, other).")
    if isinstance(input, Leaf) and input.tensor.dtype == torch.bool and condition.type.dtype.is_float:
        condition, input = input, condition  # the method: x.where(condition, other)
    if not isinstance(condition, Leaf) or _is_exact(b):
        return _chosen_by_value(b, condition, input, other)
    mask = condition.tensor.bool()
    return _chosen(b, mask, input, other)


@rule("masked_fill")
def _masked_fill(b: Builder, input: Operand, mask: Operand, value: object) -> object:
    if not isinstance(mask, Leaf) or _is_exact(b):
        return _chosen_by_value(b, mask, value, input)
    return _chosen(b, ~mask.tensor.bool(), input, value)


def _is_exact(b: Builder) -> bool:
    return isinstance(b.observed, Observed) and not b.observed.dtype.is_floating_point


def _chosen_by_value(b: Builder, mask: Operand, input: object, other: object) -> object:
    """A choice by a condition that depends on the inputs."""
    condition = as_type(b, mask, torch.bool)
    if _is_exact(b):
        return chosen_exactly(b, condition, input, other)
    assert isinstance(b.observed, Observed)
    dtype = b.observed.dtype
    return b.node("select", [condition, as_type(b, input, dtype), as_type(b, other, dtype)])


_FAR = -1e9
"""Largest number in whose neighbourhood float32 holds no other of usual size: x + m is m."""


def _chosen(b: Builder, mask: Tensor, input: object, other: object) -> object:
    """Elements of `input` where `mask` is true, and of `other` elsewhere. Terms of zeros are left out."""
    if not isinstance(b.observed, Observed) or not b.observed.dtype.is_floating_point:
        raise b.unsupported(f"{b.function} of integers", "Convert to float first.")
    dtype = b.observed.dtype
    if isinstance(other, int | float) and other <= _FAR and not isinstance(input, int | float | Leaf):
        far = torch.zeros(mask.shape, dtype=dtype, device=b.device).masked_fill(~mask, other)
        return b.node("add", [input, Leaf("constant", "", far)])
    terms: list[Operand] = []
    for operand, share in ((input, mask), (other, ~mask)):
        if isinstance(operand, Leaf) and operand.kind == "constant" and operand.tensor.numel() == 1:
            operand = float(operand.tensor)
        share = share.to(dtype)
        if isinstance(operand, int | float):
            if not math.isfinite(operand):
                raise b.unsupported(f"{b.function} by {operand}", "Fill with a finite number.")
            if operand:
                terms.append(Leaf("constant", "", share * operand))
        elif isinstance(operand, Value | Leaf):
            terms.append(_kept(b, operand, share))
    if not any(isinstance(term, Value) for term in terms):
        raise b.unsupported(f"{b.function} of two constants", "Compute it in __init__, and keep it as a buffer.")
    return terms[0] if len(terms) == 1 else b.node("add", [terms[0], terms[1]])


def _kept(b: Builder, operand: Operand, share: Tensor) -> Value:
    """An operand where `share` is 1, and 0 elsewhere; a product where that repeats the operand."""
    sizes, mine = operand.type.shape, share.shape
    fits = len(mine) <= len(sizes) and all(
        size in (1, own) for size, own in zip(reversed(mine), reversed(sizes), strict=False)
    )
    if fits and isinstance(operand, Value):
        return b.node("masked", [operand, Leaf("constant", "", share.bool())])
    return b.node("mul", [operand, Leaf("constant", "", share)])


@rule("glu")
def _glu(b: Builder, input: Operand, dim: int = -1) -> Value:
    """The first half times the sigmoid of the second."""
    axis = axis_of(input, dim)
    size = input.type.shape[axis]
    if not isinstance(size, int):
        raise b.unsupported("glu along the batch", "Use an axis of fixed size.")
    halves = [
        b.node("slice", [input], axis=axis, start=start, stop=start + size // 2, step=1) for start in (0, size // 2)
    ]
    return b.node("mul", [halves[0], b.node("sigmoid", [halves[1]])])
