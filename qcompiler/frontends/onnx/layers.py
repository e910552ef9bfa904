"""Convolutions, products, poolings and normalizations of ONNX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.frontends.onnx.symbolic import Operand, Traced, apply, parts
from qcompiler.frontends.onnx.table import At, translates

CONV: Mapping[int, Callable[..., Any]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: Mapping[int, Callable[..., Any]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL: Mapping[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
SMALLEST = 1e-30
"""Norm below which a normalized row is 0."""
AVG_POOL: Mapping[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _spatial(at: At, x: Operand) -> int:
    rank = x.dim() - 2
    if rank not in CONV:
        raise at.refusal(f"{at.op} over {rank} spatial axes", "Use one to three.")
    return rank


@dataclass(frozen=True)
class _Layer:
    """Operands and window of a convolution, transposed or not."""

    x: Operand
    weight: Operand
    bias: Operand | None
    rank: int
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    group: int


def _layer(at: At) -> _Layer:
    x, weight, bias = at.tensor(0), at.tensor(1), at.optional(2)
    rank = _spatial(at, x)
    kernel = [at.fixed(size) for size in weight.shape[2:]]
    strides, dilations = _window(at, rank)
    return _Layer(x, weight, bias, rank, kernel, strides, dilations, at.attribute("group", 1))


def _window(at: At, rank: int) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    return list(at.attribute("strides", [1] * rank)), list(at.attribute("dilations", [1] * rank))


def _pads(
    at: At, x: Operand, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding at the beginning and at the end of each spatial axis."""
    rank = len(kernel)
    kind = at.attribute("auto_pad", "NOTSET")
    if kind == "NOTSET":
        pads = list(at.attribute("pads", [0] * (2 * rank)))
        return pads[:rank], pads[rank:]
    if kind == "VALID":
        return [0] * rank, [0] * rank
    begin, end = [], []
    for axis in range(rank):
        size = x.shape[axis + 2]
        if not isinstance(size, int):
            raise at.refusal(f"{at.op} pads to the same size along an axis whose size depends on the batch size")
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        total = max(0, (math.ceil(size / strides[axis]) - 1) * strides[axis] + reach - size)
        small, large = total // 2, total - total // 2
        begin.append(small if kind == "SAME_UPPER" else large)
        end.append(large if kind == "SAME_UPPER" else small)
    return begin, end


def _padded(x: Operand, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Operand:
    """The tensor with a border."""
    if not any((*begin, *end)):
        return x
    amounts = [amount for pair in zip(reversed(begin), reversed(end), strict=True) for amount in pair]
    return apply(F.pad, x, amounts, value=value)


@translates("Conv")
def _conv(at: At) -> Operand:
    of = _layer(at)
    begin, end = _pads(at, of.x, of.kernel, of.strides, of.dilations)
    x, padding = of.x, begin
    if begin != end:
        x, padding = _padded(x, begin, end), [0] * of.rank
    return apply(CONV[of.rank], x, of.weight, of.bias, of.strides, padding, of.dilations, of.group)


@translates("ConvTranspose")
def _conv_transpose(at: At) -> Operand:
    of = _layer(at)
    function, none = CONV_TRANSPOSE[of.rank], [0] * of.rank
    extra = list(at.attribute("output_padding", none))
    begin, end = _cut(at, of.x, of.kernel, of.strides, of.dilations, extra)
    if begin == end and all(amount >= 0 for amount in begin):
        return apply(function, of.x, of.weight, of.bias, of.strides, begin, extra, of.group, of.dilations)
    # torch adds `output_padding` only up to the stride, so that larger ones are a border.
    whole = apply(function, of.x, of.weight, None, of.strides, none, none, of.group, of.dilations)
    ends = [amount - more for amount, more in zip(end, extra, strict=True)]
    cut = _padded(whole, [-amount for amount in begin], [-amount for amount in ends])
    if of.bias is None:
        return cut
    return apply(torch.add, cut, apply(torch.reshape, of.bias, [-1] + [1] * of.rank))


def _cut(
    at: At, x: Operand, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], extra: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Elements that are cut off at both ends of each axis."""
    rank = len(kernel)
    wanted = at.attribute("output_shape")
    kind = at.attribute("auto_pad", "NOTSET")
    if wanted is None and kind == "NOTSET":
        pads = list(at.attribute("pads", [0] * (2 * rank)))
        return pads[:rank], pads[rank:]
    if kind == "VALID" and wanted is None:
        return [0] * rank, [0] * rank
    begin, end = [], []
    for axis in range(rank):
        size = x.shape[axis + 2]
        if not isinstance(size, int):
            raise at.refusal(f"{at.op} with an output size along an axis whose size depends on the batch size")
        full = strides[axis] * (size - 1) + (kernel[axis] - 1) * dilations[axis] + 1 + extra[axis]
        goal = size * strides[axis] if wanted is None else int(wanted[axis - rank])
        total = full - goal
        small, large = total // 2, total - total // 2
        begin.append(small if kind == "SAME_UPPER" else large)
        end.append(total - begin[-1])
    return begin, end


@translates("MaxPool")
def _max_pool(at: At) -> Any:
    x = at.tensor(0)
    rank = _spatial(at, x)
    kernel = list(at.attribute("kernel_shape"))
    strides, dilations = _window(at, rank)
    begin, end = _pads(at, x, kernel, strides, dilations)
    ceil = bool(at.attribute("ceil_mode", 0))
    if at.results > 1:
        return _max_pool_with_places(at, x, kernel, strides, dilations, begin, end, ceil)
    padding = begin
    if begin != end or any(2 * amount > size for amount, size in zip(begin, kernel, strict=True)):
        if x.dtype.is_floating_point:
            x, padding = _padded(x, begin, end, -math.inf), [0] * rank
        else:
            x, padding = _padded(x, begin, end, torch.iinfo(x.dtype).min), [0] * rank
    return apply(MAX_POOL[rank], x, kernel, strides, padding, dilations, ceil)


def _max_pool_with_places(
    at: At,
    x: Operand,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    begin: list[int],
    end: list[int],
    ceil: bool,
) -> list[Operand]:
    if begin != end or at.attribute("storage_order", 0):
        raise at.refusal("MaxPool that returns places of column-major order or with uneven borders")
    rank = len(kernel)
    values, places = parts(MAX_POOL[rank], x, kernel, strides, begin, dilations, ceil, True)
    sizes = [at.fixed(size) for size in x.shape[2:]]
    leading = [size for size in x.shape[:2] if isinstance(size, int)]
    if len(leading) < 2:
        raise at.refusal("MaxPool that returns places for a batch of any size")
    offsets = torch.arange(math.prod(leading)).reshape([*leading, *([1] * rank)]) * math.prod(sizes)
    return [values, apply(torch.add, places, offsets)]


@translates("AveragePool")
def _average_pool(at: At) -> Operand:
    x = at.tensor(0)
    rank = _spatial(at, x)
    kernel = list(at.attribute("kernel_shape"))
    strides, dilations = _window(at, rank)
    if any(step != 1 for step in dilations):
        return _dilated_average(at, x, kernel, strides, dilations)
    begin, end = _pads(at, x, kernel, strides, dilations)
    ceil, counts = bool(at.attribute("ceil_mode", 0)), bool(at.attribute("count_include_pad", 0))
    if begin == end and all(2 * amount <= size for amount, size in zip(begin, kernel, strict=True)):
        return apply(AVG_POOL[rank], x, kernel, strides, begin, ceil, counts)
    padded = _padded(x, begin, end)
    average = apply(AVG_POOL[rank], padded, kernel, strides, 0, ceil)
    if counts:
        return average
    sizes = [at.fixed(size) for size in x.shape[2:]]
    share = AVG_POOL[rank](_padded(torch.ones([1, 1, *sizes]), begin, end), kernel, strides, 0, ceil)
    return apply(torch.div, average, share)


def _dilated_average(at: At, x: Operand, kernel: list[int], strides: list[int], dilations: list[int]) -> Operand:
    """A convolution with equal weights, divided by the number of elements."""
    rank, channels = len(kernel), at.fixed(x.shape[1])
    begin, end = _pads(at, x, kernel, strides, dilations)
    sizes = [at.fixed(size) for size in x.shape[2:]]
    beyond = [0] * rank
    if at.attribute("ceil_mode", 0):
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            beyond[axis] = -(sizes[axis] + begin[axis] + end[axis] - reach) % strides[axis]
    ones = torch.ones([1, 1, *kernel])
    weight = ones.expand([channels, *ones.shape[1:]]).contiguous()
    padded = _padded(x, begin, [a + b for a, b in zip(end, beyond, strict=True)])
    total = apply(CONV[rank], padded, weight, None, strides, [0] * rank, dilations, channels)
    counted = _padded(torch.ones([1, 1, *sizes]), begin, end, 1.0 if at.attribute("count_include_pad", 0) else 0.0)
    counted = _padded(counted, [0] * rank, beyond)
    count = CONV[rank](counted, ones, None, strides, [0] * rank, dilations)
    return apply(torch.div, total, count)


@translates("LpPool")
def _lp_pool(at: At) -> Operand:
    x, p = at.tensor(0), at.attribute("p", 2)
    rank = _spatial(at, x)
    kernel = list(at.attribute("kernel_shape"))
    strides, dilations = _window(at, rank)
    begin, end = _pads(at, x, kernel, strides, dilations)
    powers = _padded(apply(torch.pow, apply(torch.abs, x), p), begin, end)
    channels = at.fixed(x.shape[1])
    if at.attribute("ceil_mode", 0):
        total = apply(torch.mul, apply(AVG_POOL[rank], powers, kernel, strides, 0, True, divisor_override=1), 1.0)
    else:
        weight = torch.ones([channels, 1, *kernel])
        total = apply(CONV[rank], powers, weight, None, strides, [0] * rank, dilations, channels)
    return apply(torch.pow, total, 1.0 / p)


@translates("GlobalAveragePool")
def _global_average(at: At) -> Operand:
    x = at.tensor(0)
    return apply(torch.mean, x, list(range(2, x.dim())), keepdim=True)


@translates("GlobalMaxPool")
def _global_max(at: At) -> Operand:
    x = at.tensor(0)
    return apply(torch.amax, x, list(range(2, x.dim())), keepdim=True)


@translates("GlobalLpPool")
def _global_lp(at: At) -> Operand:
    x, p = at.tensor(0), at.attribute("p", 2)
    total = apply(torch.sum, apply(torch.pow, apply(torch.abs, x), p), list(range(2, x.dim())), keepdim=True)
    return apply(torch.pow, total, 1.0 / p)


@translates("Gemm")
def _gemm(at: At) -> Operand:
    a, b, c = at.tensor(0), at.tensor(1), at.optional(2)
    alpha, beta = at.attribute("alpha", 1.0), at.attribute("beta", 1.0)
    a = apply(torch.t, a) if at.attribute("transA", 0) else a
    if isinstance(b, Tensor) and isinstance(a, Traced):
        weight = b if at.attribute("transB", 0) else b.t().contiguous()
        weight = at.derived(weight if alpha == 1.0 else weight * alpha, 1)
        outputs = weight.shape[0]
        if c is None:
            return apply(F.linear, a, weight, None)
        if isinstance(c, Tensor) and c.numel() in (1, outputs) and (c.dim() < 2 or c.shape[0] == 1):
            bias = at.derived((c.reshape(-1) * beta if beta != 1.0 else c.reshape(-1)).expand(outputs).contiguous(), 2)
            return apply(F.linear, a, weight, bias)
        product = apply(F.linear, a, weight, None)
    else:
        product = apply(torch.matmul, a, apply(torch.t, b) if at.attribute("transB", 0) else b)
        product = apply(torch.mul, product, alpha) if alpha != 1.0 else product
    if c is None:
        return product
    return apply(torch.add, product, apply(torch.mul, c, beta) if beta != 1.0 else c)


@translates("MatMul")
def _matmul(at: At) -> Operand:
    a, b = at.tensor(0), at.tensor(1)
    if isinstance(a, Traced) and isinstance(b, Tensor) and b.dim() == 2 and a.dim() > 1:
        return apply(F.linear, a, at.derived(b.t().contiguous(), 1), None)
    return apply(torch.matmul, a, b)


@translates("Einsum")
def _einsum(at: At) -> Operand:
    return apply(torch.einsum, at.attribute("equation"), *at.tensors())


@translates("BatchNormalization")
def _batch_norm(at: At) -> Operand:
    if at.attribute("training_mode", 0):
        raise at.refusal("a BatchNormalization in training mode", "Export the model for inference.")
    x, scale, bias, mean, variance = (at.tensor(index) for index in range(5))
    return apply(F.batch_norm, x, mean, variance, scale, bias, False, 0.1, at.attribute("epsilon", 1e-5))


@translates("InstanceNormalization")
def _instance_norm(at: At) -> Operand:
    x, scale, bias = at.tensors()
    return apply(F.instance_norm, x, None, None, scale, bias, True, 0.1, at.attribute("epsilon", 1e-5))


@translates("GroupNormalization")
def _group_norm(at: At) -> Operand:
    x, scale, bias = at.tensors()
    groups, epsilon = at.attribute("num_groups"), at.attribute("epsilon", 1e-5)
    channels = at.fixed(x.shape[1])
    if at.version < 21 and isinstance(scale, Tensor) and isinstance(bias, Tensor):  # one number per group
        scale = at.derived(scale.repeat_interleave(channels // groups), 1)
        bias = at.derived(bias.repeat_interleave(channels // groups), 2)
    return apply(F.group_norm, x, groups, scale, bias, epsilon)


@translates("LayerNormalization")
def _layer_norm(at: At) -> Any:
    x, scale, bias = at.tensor(0), at.tensor(1), at.optional(2)
    axis, epsilon = at.attribute("axis", -1) % x.dim(), at.attribute("epsilon", 1e-5)
    result = apply(F.layer_norm, x, list(x.shape[axis:]), scale, bias, epsilon)
    if at.results == 1:
        return result
    axes = list(range(axis, x.dim()))
    mean = apply(torch.mean, x, axes, keepdim=True)
    centred = apply(torch.sub, x, mean)
    power = apply(torch.mean, apply(torch.mul, centred, centred), axes, keepdim=True)
    return [result, mean, apply(torch.rsqrt, apply(torch.add, power, epsilon))]


@translates("RMSNormalization")
def _rms_norm(at: At) -> Operand:
    x, scale = at.tensor(0), at.tensor(1)
    sizes = list(x.shape[at.attribute("axis", -1) % x.dim() :])
    return apply(F.rms_norm, x, sizes, scale, at.attribute("epsilon", 1e-5))


@translates("MeanVarianceNormalization")
def _mean_variance(at: At) -> Operand:
    x, axes = at.tensor(0), list(at.attribute("axes", [0, 2, 3]))
    centred = apply(torch.sub, x, apply(torch.mean, x, axes, keepdim=True))
    power = apply(torch.mean, apply(torch.mul, centred, centred), axes, keepdim=True)
    return apply(torch.div, centred, apply(torch.add, apply(torch.sqrt, power), 1e-9))


@translates("LpNormalization")
def _lp_norm(at: At) -> Operand:
    return apply(F.normalize, at.tensor(0), float(at.attribute("p", 2)), at.attribute("axis", -1), SMALLEST)


@translates("LRN")
def _lrn(at: At) -> Operand:
    size, bias = at.attribute("size"), at.attribute("bias", 1.0)
    return apply(
        F.local_response_norm, at.tensor(0), size, at.attribute("alpha", 1e-4), at.attribute("beta", 0.75), bias
    )


@translates("DeformConv")
def _deform_conv(at: At) -> Operand:
    import torchvision  # noqa: F401  # registers the function

    x, weight, offset = at.tensor(0), at.tensor(1), at.tensor(2)
    kernel = [at.fixed(size) for size in weight.shape[2:]]
    if len(kernel) != 2:
        raise at.refusal(f"DeformConv over {len(kernel)} spatial axes", "Use two.")
    (rows, columns), (down, across) = _window(at, 2)
    begin, end = _pads(at, x, kernel, [rows, columns], [down, across])
    if begin != end:
        raise at.refusal("DeformConv with uneven borders")
    outputs = at.fixed(weight.shape[0])
    bias = at.tensor(3) if at.has(3) else torch.zeros(outputs)
    mask = at.tensor(4) if at.has(4) else torch.zeros(0, 0)
    group, offsets = at.attribute("group", 1), at.attribute("offset_group", 1)
    function = torch.ops.torchvision.deform_conv2d
    return apply(
        function, x, weight, offset, mask, bias, rows, columns, *begin, down, across, group, offsets, at.has(4)
    )
