"""What each torch function means in operators: one table under plain names.

Functions, methods, in-place forms and aten operators of one meaning share an entry: `relu_`, `Tensor.relu`,
`aten.relu.default` and `torch.nn.functional.relu` are all `relu`. Parameters are called as torch calls them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch._ops import OpOverload

from qcompiler.errors import UnsupportedError
from qcompiler.frontends.builder import Builder, Observed, Operand, Rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.dims import Dim, Shape, as_dim
from qcompiler.ir.graph import Attribute, Value
from qcompiler.ops import UNARY

_Ints: TypeAlias = "int | Sequence[int]"
_Number: TypeAlias = "bool | int | float"
RULES: dict[str, Rule] = {}

_ALIASES = {
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "itruediv": "div",
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "subtract_": "sub",
    "negative": "neg",
    "ipow": "pow",
    "concat": "cat",
    "concatenate": "cat",
    "adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "expit": "sigmoid",
    "special_expit": "sigmoid",
    "clip": "clamp",
    "split_with_sizes": "split",
    "unsafe_split": "split",
    "unsafe_chunk": "chunk",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "imatmul": "matmul",
    "bmm": "matmul",
    "mm": "matmul",
    "constant_pad_nd": "pad",
}


def plain_name(target: object) -> str:
    """The table's name of a function, a method's name or an aten overload.

    Examples:
        >>> plain_name(torch.nn.functional.relu), plain_name("add_"), plain_name(torch.ops.aten.relu.default)
        ('relu', 'add', 'relu')
    """
    if target is torch.batch_norm or (isinstance(target, OpOverload) and target._schema.name == "aten::batch_norm"):
        return "aten_batch_norm"  # the arguments stand in another order than in torch.nn.functional.batch_norm
    if isinstance(target, OpOverload):
        name = target._schema.name.rpartition("::")[2]
    else:
        name = target if isinstance(target, str) else str(getattr(target, "__name__", type(target).__name__))
    name = name.strip("_")
    return _ALIASES.get(name, name)


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return enter


def _tuple(value: _Ints, rank: int) -> tuple[int, ...]:
    items = tuple(int(v) for v in value) if isinstance(value, Sequence) else (int(value),)
    return items * rank if len(items) == 1 else items


def _sizes(operand: Operand) -> tuple[int, ...]:
    return tuple(int(cast("int", size)) for size in operand.type.shape)


def _axis(operand: Operand, dim: int) -> int:
    rank = operand.type.rank
    if not -rank <= dim < rank:
        raise IndexError(f"axis {dim} of {rank}")
    return dim % rank


# Sums of products


def _convolution(rank: int) -> Rule:
    def rule(
        b: Builder,
        input: Operand,
        weight: Operand,
        bias: Operand | None = None,
        stride: _Ints = 1,
        padding: _Ints | str = 0,
        dilation: _Ints = 1,
        groups: int = 1,
    ) -> Value:
        dilations = _tuple(dilation, rank)
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilations, _sizes(weight)[2:], strict=True)]
            pads = (*(t // 2 for t in totals), *(t - t // 2 for t in totals))
        elif isinstance(padding, str):
            if padding != "valid":
                raise b.unsupported(f"a convolution with padding={padding!r}", "Give the padding in numbers.")
            pads = (0,) * 2 * rank
        else:
            pads = _tuple(padding, rank) * 2
        inputs = [input, weight] if bias is None else [input, weight, bias]
        return b.node(
            f"conv{rank}d", inputs, stride=_tuple(stride, rank), padding=pads, dilation=dilations, groups=groups
        )

    return rule


def _transposed(rank: int) -> Rule:
    def rule(
        b: Builder,
        input: Operand,
        weight: Operand,
        bias: Operand | None = None,
        stride: _Ints = 1,
        padding: _Ints = 0,
        output_padding: _Ints = 0,
        groups: int = 1,
        dilation: _Ints = 1,
    ) -> Value:
        return b.node(
            f"conv_transpose{rank}d",
            [input, weight] if bias is None else [input, weight, bias],
            stride=_tuple(stride, rank),
            padding=_tuple(padding, rank),
            output_padding=_tuple(output_padding, rank),
            groups=groups,
            dilation=_tuple(dilation, rank),
        )

    return rule


for _rank in (1, 2, 3):
    RULES[f"conv{_rank}d"] = _convolution(_rank)
    RULES[f"conv_transpose{_rank}d"] = _transposed(_rank)


@_rule("convolution")
def _aten_convolution(
    b: Builder,
    input: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    transposed: bool,
    output_padding: _Ints,
    groups: int,
) -> object:
    rank = weight.type.rank - 2
    if transposed:
        return _transposed(rank)(b, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _convolution(rank)(b, input, weight, bias, stride, padding, dilation, groups)


@_rule("linear")
def _linear(b: Builder, input: Operand, weight: Operand, bias: Operand | None = None) -> Value:
    return b.node("linear", [input, weight] if bias is None else [input, weight, bias])


@_rule("matmul")
def _matmul(b: Builder, input: Operand, other: Operand) -> Value:
    return b.node("matmul", [input, other])


@_rule("addmm")
def _addmm(b: Builder, input: Operand, mat1: Operand, mat2: Operand, *, beta: _Number = 1, alpha: _Number = 1) -> Value:
    if beta != 1 or alpha != 1:
        raise b.unsupported(f"addmm with beta={beta} and alpha={alpha}", "Multiply the operands instead.")
    return b.node("add", [b.node("matmul", [mat1, mat2]), input])


# Normalization and dropout


@_rule("batch_norm")
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
        raise b.unsupported("a batch norm without running statistics", "Track them: track_running_stats=True.")
    if training:
        raise b.unsupported("a batch norm uses the statistics of the batch", "Call model.eval() before tracing.")
    channels = _sizes(running_mean)
    return b.node(
        "batch_norm",
        [
            input,
            Leaf("constant", "", torch.ones(channels, device=b.device)) if weight is None else weight,
            Leaf("constant", "", torch.zeros(channels, device=b.device)) if bias is None else bias,
            running_mean,
            running_var,
        ],
        eps=float(eps),
        momentum=float(momentum or 0.0),
        training=False,
    )


@_rule("aten_batch_norm")
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


@_rule("native_batch_norm_legit_no_training")
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
    return [_batch_norm(b, input, running_mean, running_var, weight, bias, False, momentum, eps)]


@_rule("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def _dropout(b: Builder, input: Operand, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    if training:
        raise b.unsupported(
            f"{b.function} is active in a model in eval mode", "Pass training=self.training, or use nn.Dropout."
        )
    return b.node("dropout", [input], p=float(p), training=False)


@_rule("stochastic_depth")
def _stochastic_depth(b: Builder, input: Operand, p: float, mode: str, training: bool = True) -> Operand:
    if training:
        raise b.unsupported("stochastic_depth is active in a model in eval mode", "Pass training=self.training.")
    return input


# Nothing to compute


@_rule("contiguous", "detach", "identity", "alias", "lift_fresh_copy", "lift_fresh", "requires_grad", "view_as_same")
def _same(b: Builder, input: Operand, *arguments: object, **keywords: object) -> Operand:
    return input


@_rule("clone")
def _clone(b: Builder, input: Operand, *, memory_format: object = None) -> Operand:
    # torch.export writes contiguous() as a clone with a memory format; a clone of the user's is a value of its own,
    # because a later in-place call may change one of the two.
    return b.node("identity", [input]) if memory_format is None else input


@_rule("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "to_copy")
def _to(b: Builder, input: Operand, *arguments: object, **keywords: object) -> Operand:
    result = b.observed
    if not isinstance(result, Observed) or result.dtype != input.type.dtype.torch:
        raise b.unsupported(
            f"{b.function} changes the element type from {input.type.dtype}", "Convert the inputs before the model."
        )
    return input


# Activations


@_rule("relu")
def _relu(b: Builder, input: Operand, inplace: bool = False) -> Value:
    return b.node("relu", [input])


@_rule("relu6")
def _relu6(b: Builder, input: Operand, inplace: bool = False) -> Value:
    return b.node("clamp", [input], min=0.0, max=6.0)


@_rule("hardtanh")
def _hardtanh(
    b: Builder, input: Operand, min_val: _Number = -1.0, max_val: _Number = 1.0, inplace: bool = False
) -> Value:
    return b.node("clamp", [input], min=float(min_val), max=float(max_val))


@_rule("clamp")
def _clamp(b: Builder, input: Operand, min: object = None, max: object = None) -> Value:
    limits = [-math.inf if min is None else min, math.inf if max is None else max]
    if not all(isinstance(limit, int | float) for limit in limits):
        raise b.unsupported("a clamp whose limits are tensors", "Give the limits as numbers.")
    low, high = (float(cast("float", limit)) for limit in limits)
    return b.node("clamp", [input], min=low, max=high)


@_rule("clamp_min")
def _clamp_min(b: Builder, input: Operand, min: object) -> object:
    return _clamp(b, input, min, None)


@_rule("clamp_max")
def _clamp_max(b: Builder, input: Operand, max: object) -> object:
    return _clamp(b, input, None, max)


def _unary(op: str) -> Rule:
    names = list(UNARY[op].attributes)

    def rule(b: Builder, input: Operand, *arguments: object, inplace: bool = False, **keywords: object) -> Value:
        given = {**dict(zip(names, arguments, strict=False)), **keywords}
        unknown = [name for name in keywords if name not in names]
        if unknown:
            raise TypeError(f"{unknown[0]}={keywords[unknown[0]]!r}")
        attributes = {
            name: value if isinstance(value, str) else float(cast("float", value)) for name, value in given.items()
        }
        return b.node(op, [input], **cast("dict[str, Attribute]", attributes))

    return rule


for _op in UNARY:
    RULES[_op] = _unary(_op)


@_rule("softplus")
def _softplus(b: Builder, input: Operand, beta: _Number = 1, threshold: _Number = 20) -> Value:
    if beta != 1 or threshold != 20:
        raise b.unsupported(f"softplus with beta={beta} and threshold={threshold}", "Use the defaults, 1 and 20.")
    return b.node("softplus", [input])


@_rule("elu")
def _elu(
    b: Builder,
    input: Operand,
    alpha: _Number = 1.0,
    scale: _Number = 1,
    input_scale: _Number = 1,
    *,
    inplace: bool = False,
) -> Value:
    # torch.nn.functional.elu has inplace where the aten operator has scale: False and True are no scales.
    if not isinstance(scale, bool) and (scale != 1 or input_scale != 1):
        raise b.unsupported(f"elu with scale={scale} and input_scale={input_scale}", "Multiply instead.")
    return b.node("elu", [input], alpha=float(alpha))


# Arithmetic


def _binary(op: str) -> Rule:
    def rule(b: Builder, input: object, other: object, *, alpha: _Number = 1) -> Value:
        if alpha != 1:
            other = b.node("mul", [other, alpha])
        if isinstance(b.observed, Observed):
            input, other = (_promoted(operand, b.observed.dtype) for operand in (input, other))
        return b.node(op, [input, other])

    return rule


def _promoted(operand: object, dtype: torch.dtype) -> object:
    """A constant in the element type of the result: torch promotes, operators do not."""
    if isinstance(operand, Leaf) and operand.kind == "constant" and operand.tensor.dtype != dtype:
        return Leaf("constant", operand.ref, operand.tensor.to(dtype))
    return operand


for _op in ("add", "sub", "mul"):
    RULES[_op] = _binary(_op)


@_rule("div")
def _div(b: Builder, input: object, other: object, *, rounding_mode: str | None = None) -> object:
    if rounding_mode is not None:
        raise b.unsupported(f"a division with rounding_mode={rounding_mode!r}", "Only true division has an operator.")
    return _binary("div")(b, input, other)


@_rule("rsub")
def _rsub(b: Builder, input: Operand, other: object, alpha: _Number = 1) -> object:
    return _binary("sub")(b, other, input, alpha=alpha)


@_rule("neg")
def _neg(b: Builder, input: Operand) -> Value:
    return b.node("mul", [input, -1])


@_rule("square")
def _square(b: Builder, input: Operand) -> Value:
    return b.node("mul", [input, input])


@_rule("pow")
def _pow(b: Builder, input: Operand, exponent: object) -> Value:
    if exponent != 2:
        raise b.unsupported(f"the power {exponent!r}", "Only squares have an operator.")
    return b.node("mul", [input, input])


# Pooling


@_rule("max_pool2d")
def _max_pool2d(
    b: Builder,
    input: Operand,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    dilation: _Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    if return_indices:
        raise b.unsupported("max_pool2d with return_indices=True", "Pool without the indices.")
    kernel = _tuple(kernel_size, 2)
    return b.node(
        "max_pool2d",
        [input],
        kernel=kernel,
        stride=_tuple(stride, 2) if stride else kernel,
        padding=_tuple(padding, 2),
        dilation=_tuple(dilation, 2),
        ceil_mode=bool(ceil_mode),
    )


@_rule("avg_pool2d")
def _avg_pool2d(
    b: Builder,
    input: Operand,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    kernel = _tuple(kernel_size, 2)
    return b.node(
        "avg_pool2d",
        [input],
        kernel=kernel,
        stride=_tuple(stride, 2) if stride else kernel,
        padding=_tuple(padding, 2),
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
        divisor_override=divisor_override,
    )


@_rule("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(b: Builder, input: Operand, output_size: int | Sequence[int | None]) -> Value:
    sizes = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    shape = input.type.shape
    return b.node(
        "adaptive_avg_pool2d",
        [input],
        output_size=tuple(shape[2 + i] if size is None else size for i, size in enumerate(sizes)),
    )


def _rounds(before: Shape, factors: Sequence[float], after: Shape) -> bool:
    return any(old * float(factor) != new for old, factor, new in zip(before, factors, after, strict=True))


@_rule("interpolate", "upsample_nearest2d", "upsample_bilinear2d", "upsample")
def _interpolate(
    b: Builder,
    input: Operand,
    size: object = None,
    scale_factor: object = None,
    mode: object = None,
    align_corners: object = None,
    recompute_scale_factor: object = None,
    antialias: bool = False,
    scale_factors: object = None,
    output_size: object = None,
) -> Value:
    """Three spellings: the function, and two aten operators, whose third argument is a list of factors or a flag."""
    if "upsample_" in b.function:
        bilinear = "bilinear" in b.function
        align_corners = scale_factor if bilinear else None
        scale_factor = scale_factors if scale_factors is not None else mode if bilinear else scale_factor
        mode = "bilinear" if bilinear else "nearest"
    mode = mode or "nearest"
    if mode not in ("nearest", "bilinear") or antialias or input.type.rank != 4:
        raise b.unsupported(f"interpolation of mode {mode!r} over {input.type}", "Use nearest or bilinear on images.")
    before, after = input.type.shape[2:], b.shape[2:]
    factors = [scale_factor] * 2 if isinstance(scale_factor, int | float) else scale_factor
    # torch samples by the factor itself, which is that of the sizes only where it gives a whole number of pixels.
    if isinstance(factors, Sequence) and not recompute_scale_factor and _rounds(before, factors, after):
        raise b.unsupported(f"interpolation by {scale_factor} of {input.type}", "Give the size instead.")
    if not all(isinstance(item, int) for item in (*before, *after)):
        raise b.unsupported(f"interpolation of {input.type}", "Height and width must be fixed.")
    return b.node("resize", [input], size=after, mode=str(mode), align_corners=bool(align_corners))


@_rule("mean")
def _mean(
    b: Builder, input: Operand, dim: _Ints | None = None, keepdim: bool = False, *, dtype: object = None
) -> Value:
    axes = [] if dim is None else [_axis(input, d) for d in _tuple(dim, 1)]
    return b.node("mean", [input], axes=tuple(sorted(axes)) or tuple(range(input.type.rank)), keepdim=bool(keepdim))


# Movement


def _reshaped(b: Builder, input: Operand, shape: Shape) -> Value:
    return b.node("reshape", [input], shape=tuple(as_dim(dim) for dim in shape))


@_rule(
    "reshape", "view", "unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel"
)
def _reshape(b: Builder, input: Operand, *arguments: object, **keywords: object) -> Value:
    if isinstance(b.observed, Observed) and b.observed.dtype != input.type.dtype.torch:
        raise b.unsupported("a view as another element type")
    return _reshaped(b, input, b.shape)


@_rule("permute")
def _permute(b: Builder, input: Operand, *dims: Any) -> Value:
    axes = dims[0] if len(dims) == 1 and isinstance(dims[0], Sequence) else dims
    return b.node("permute", [input], axes=tuple(_axis(input, axis) for axis in axes))


@_rule("transpose")
def _transpose(b: Builder, input: Operand, dim0: int, dim1: int) -> Value:
    axes = list(range(input.type.rank))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return b.node("permute", [input], axes=tuple(axes))


@_rule("t", "T", "numpy_T")
def _reversed(b: Builder, input: Operand) -> Value:
    return b.node("permute", [input], axes=tuple(reversed(range(input.type.rank))))


@_rule("mT")
def _matrix_transposed(b: Builder, input: Operand) -> object:
    return _transpose(b, input, -2, -1)


@_rule("cat")
def _cat(b: Builder, tensors: Sequence[Operand], dim: int = 0) -> Value:
    return b.node("concat", list(tensors), axis=_axis(tensors[0], dim))


@_rule("stack")
def _stack(b: Builder, tensors: Sequence[Operand], dim: int = 0) -> Value:
    axis = dim % (tensors[0].type.rank + 1)
    parts = [_reshaped(b, x, (*x.type.shape[:axis], 1, *x.type.shape[axis:])) for x in tensors]
    return b.node("concat", parts, axis=axis)


@_rule("chunk", "split", "tensor_split")
def _split(b: Builder, input: Operand, size: object, dim: int = 0) -> list[Operand]:
    axis = _axis(input, dim)
    parts: list[Operand] = []
    start = 0
    for part in b.parts():
        length = part.shape[axis]
        if not isinstance(length, int):
            raise b.unsupported("the batch is split", "Split along an axis of fixed size.")
        parts.append(_sliced(b, input, axis, slice(start, start + length)))
        start += length
    return parts


@_rule("unbind")
def _unbind(b: Builder, input: Operand, dim: int = 0) -> list[Operand]:
    return [cast("Operand", _select(b, input, dim, index)) for index in range(len(b.parts()))]


def _sliced(b: Builder, input: Operand, axis: int, part: slice) -> Operand:
    size = input.type.shape[axis]
    if (
        part.start in (None, 0)
        and part.step in (None, 1)
        and (part.stop is None or part.stop == size or _is_end(part.stop))
    ):
        return input
    if not isinstance(size, int):
        raise b.unsupported(f"the axis {axis} of symbolic size {size} is sliced", "Slice an axis of fixed size.")
    start, stop, step = part.indices(size)
    return b.node("slice", [input], axis=axis, start=start, stop=stop, step=step)


def _is_end(stop: object) -> bool:
    """Whether `stop` is what torch.export writes for an open end."""
    return isinstance(stop, int) and stop >= 2**31 - 1


@_rule("slice")
def _slice(
    b: Builder, input: Operand, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Operand:
    return _sliced(b, input, _axis(input, dim), slice(start, end, step))


@_rule("narrow")
def _narrow(b: Builder, input: Operand, dim: int, start: int, length: int) -> Operand:
    return _sliced(b, input, _axis(input, dim), slice(start, start + length))


@_rule("select")
def _select(b: Builder, input: Operand, dim: int, index: int) -> Operand:
    axis, shape = _axis(input, dim), input.type.shape
    size = shape[axis]
    if not isinstance(size, int):
        raise b.unsupported("one sample of the batch is selected", "Select along an axis of fixed size.")
    start = index + size if index < 0 else index
    part = _sliced(b, input, axis, slice(start, start + 1))
    return _reshaped(b, part, (*shape[:axis], *shape[axis + 1 :]))


@_rule("getitem")
def _getitem(b: Builder, input: Operand, index: object) -> Operand:
    indices = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [item for item in indices if not isinstance(item, Value | Leaf)]:
        position = next(i for i, item in enumerate(indices) if item is Ellipsis)
        taken = sum(item is not None and item is not Ellipsis for item in indices)
        indices[position : position + 1] = [slice(None)] * (input.type.rank - taken)
    axis = 0
    for item in indices:
        if isinstance(item, slice):
            input, axis = _sliced(b, input, axis, item), axis + 1
        elif item is None:
            shape = input.type.shape
            input, axis = _reshaped(b, input, (*shape[:axis], 1, *shape[axis:])), axis + 1
        elif isinstance(item, int) and not isinstance(item, bool):
            input = cast("Operand", _select(b, input, axis, item))
        else:
            raise b.unsupported(f"a tensor is indexed with a {type(item).__name__}", "Index with numbers and slices.")
    return input


@_rule("pad")
def _pad(
    b: Builder, input: Operand, pad: Sequence[int], mode: object = "constant", value: float | None = None
) -> Value:
    if isinstance(mode, int | float):  # aten.constant_pad_nd has the value in this place
        mode, value = "constant", float(mode)
    if mode != "constant":
        raise b.unsupported(f"padding of mode {mode!r}", "Only constant padding has an operator: padding_mode='zeros'.")
    rank = input.type.rank
    begins, ends = [0] * rank, [0] * rank
    for index in range(len(pad) // 2):
        begins[rank - 1 - index], ends[rank - 1 - index] = int(pad[2 * index]), int(pad[2 * index + 1])
    return b.node("pad", [input], pad=(*begins, *ends), value=float(value or 0.0))


@_rule("pixel_shuffle")
def _pixel_shuffle(b: Builder, input: Operand, upscale_factor: int) -> Value:
    n, c, h, w = input.type.shape
    r = upscale_factor
    if not isinstance(c, int):
        raise b.unsupported("pixel_shuffle over a symbolic number of channels")
    split = _reshaped(b, input, (n, c // (r * r), r, r, h, w))
    moved = b.node("permute", [split], axes=(0, 1, 4, 2, 5, 3))
    return _reshaped(b, moved, (n, c // (r * r), _times(h, r), _times(w, r)))


def _times(dim: Dim, factor: int) -> Dim:
    return as_dim(factor * dim)


def unknown(function: str, where: str) -> UnsupportedError:
    """The error for a function without a rule."""
    return UnsupportedError(
        f"the torch function {function!r} has no operator here",
        where=where,
        fix="Replace it in the model, or register an operator and a rule for it.",
    )
