"""One kernel per instruction, in NumPy.

A kernel receives its operands in logical order (N, C, H, W) as int64 arrays, or views of them, and returns its result
in logical order; the executor keeps the physical order. Sums of products run in float32 or float64 only if the real
weights prove that every partial sum, in any order, stays below 2^24 or 2^53 and is therefore exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.errors import ArtifactError
from qcompiler.program.arithmetic import Int, average, divide, fused_multiply_add, multiply, requantize, round_real
from qcompiler.program.program import Instruction, Tensor

FLOAT32_EXACT, FLOAT64_EXACT = 2**24, 2**53
Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Call:
    """An instruction and the types around it."""

    instruction: Instruction
    inputs: tuple[Tensor, ...]
    output: Tensor

    def __getitem__(self, name: str) -> Any:
        return self.instruction.attributes[name]

    def get(self, name: str) -> Any:
        """An attribute, None when it is absent."""
        return self.instruction.attributes.get(name)

    def zero_point(self, index: int) -> int:
        """Zero point of an operand."""
        return self.inputs[index].zero_point[0]

    @property
    def limits(self) -> tuple[Any, Any]:
        """Lowest and highest code of the result: integers, or tuples with one per channel."""
        low, high = _limits(self.output.dtype)
        return (low if self.get("qmin") is None else self["qmin"], high if self.get("qmax") is None else self["qmax"])

    def requantize(self, acc: Int, multiplier: Array | None, exponent: Array | None) -> Int:
        """Accumulators, channels last, to codes."""
        low, high = (np.asarray(codes, np.int64) for codes in self.limits)
        return requantize(acc, multiplier, exponent, self["mode"], self.output.zero_point[0], low, high)


def _limits(dtype: str) -> tuple[int, int]:
    bits = int(dtype[1:])
    return (0, 2**bits - 1) if dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _steps(call: Call, arrays: Sequence[Array], index: int) -> Int:
    result: Int = arrays[index].astype(np.int64) - call.zero_point(index)
    return result


def _weight(call: Call, arrays: Sequence[Array]) -> Int:
    """The second operand with zero points removed, per tensor or per channel, times the factors of its blocks."""
    tensor = call.inputs[1]
    shape = [1] * arrays[1].ndim
    shape[tensor.axis or 0] = -1
    result: Int = arrays[1].astype(np.int64) - np.array(tensor.zero_point, np.int64).reshape(shape)
    block = call.get("block")
    if block is not None:
        channels, inputs = (0, 1) if (tensor.axis or 0) == 0 else (1, 0)
        rows = np.moveaxis(result, (channels, inputs), (0, 1))
        for begin in range(0, rows.shape[1], block):
            factor = arrays[-1][:, begin // block].astype(np.int64)
            rows[:, begin : begin + block] *= factor.reshape(-1, 1, *[1] * (rows.ndim - 2))
    return result


def _exact_type(weight: Int, largest: int, where: str) -> type[np.floating[Any]]:
    """The fastest float type in which every partial sum of weight x codes is exact. `weight`: [out, K]."""
    bound = int(np.abs(weight).sum(axis=1).max(initial=0)) * largest
    if bound < FLOAT32_EXACT:
        return np.float32
    if bound < FLOAT64_EXACT:
        return np.float64
    raise ArtifactError(f"partial sums can reach {bound}", where=where, expected=f"less than {FLOAT64_EXACT}")


def _largest(call: Call) -> int:
    low, high = _limits(call.inputs[0].dtype)
    return max(high - call.zero_point(0), call.zero_point(0) - low)


def layer_multiplier(call: Call, arrays: Sequence[Array]) -> tuple[Array | None, Array | None]:
    """Multiplier and exponent of a layer; block factors of the weight may follow the other operands."""
    return _multiplier(arrays if call.get("block") is None else arrays[:-1], 3)


def _multiplier(arrays: Sequence[Array], first: int) -> tuple[Array | None, Array | None]:
    """Multiplier and exponent: shift modes have only an exponent, float modes only a multiplier."""
    if arrays[first].dtype == np.int8:
        return None, arrays[first]
    return arrays[first], arrays[first + 1] if len(arrays) > first + 1 else None


def layer_reach(call: Call, arrays: Sequence[Array]) -> tuple[int, int]:
    """Number of terms in each sum of a layer, bias included, and a bound on the sum of their magnitudes."""
    weight, bias = _weight(call, arrays), np.abs(arrays[2].astype(np.int64))
    terms = weight.size // max(1, bias.size)
    largest = [int(np.abs(item).max(initial=0)) for item in (weight, _steps(call, arrays, 0), bias)]
    return terms + 1, terms * largest[0] * largest[1] + largest[2]


def _scalar_multiplier(arrays: Sequence[Array], first: int) -> tuple[Array | None, Array | None]:
    """The same for one multiplier per tensor, which need not broadcast with the last axis."""
    multiplier, exponent = (None if part is None else part[0] for part in _multiplier(arrays, first))
    return multiplier, exponent


def _conv_sums(call: Call, arrays: Sequence[Array]) -> Int:
    """Convolution over one to three axes: one matrix product per tap and group; depthwise by taps alone."""
    weight = _weight(call, arrays)
    out_channels, per_group, *kernel = weight.shape
    rank = len(kernel)
    groups, stride, dilation, padding = (call[name] for name in ("groups", "stride", "dilation", "padding"))
    dtype = _exact_type(weight.reshape(out_channels, -1), _largest(call), call.instruction.output)
    x = np.moveaxis(_steps(call, arrays, 0).astype(dtype), 1, -1)
    x = np.pad(x, ((0, 0), *zip(padding[:rank], padding[rank:], strict=True), (0, 0)))
    sizes = [(x.shape[1 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(rank)]
    acc = np.zeros((x.shape[0], *sizes, out_channels), dtype)
    matrices = weight.astype(dtype)
    rows = out_channels // groups
    for tap in np.ndindex(*kernel):
        begins = [step * index for step, index in zip(dilation, tap, strict=True)]
        window = [slice(b, b + s * (n - 1) + 1, s) for b, s, n in zip(begins, stride, sizes, strict=True)]
        part, matrix = x[(slice(None), *window)], matrices[(slice(None), slice(None), *tap)]
        if per_group == 1 and out_channels == groups:
            acc += part * matrix[:, 0]
            continue
        for group in range(groups):
            channels = slice(group * per_group, (group + 1) * per_group)
            outputs = slice(group * rows, (group + 1) * rows)
            acc[..., outputs] += part[..., channels] @ matrix[outputs].T
    total: Int = acc.astype(np.int64) + arrays[2].astype(np.int64)
    return total


def _conv_transpose_sums(call: Call, arrays: Sequence[Array]) -> Int:
    """Transposed convolution over one to three axes: each tap adds a scaled copy of the input to the output."""
    weight = _weight(call, arrays)
    in_channels, per_group, *kernel = weight.shape
    groups, stride, dilation, padding, extra = (
        call[name] for name in ("groups", "stride", "dilation", "padding", "output_padding")
    )
    columns = weight.reshape(groups, in_channels // groups, per_group, -1).transpose(0, 2, 1, 3)
    dtype = _exact_type(columns.reshape(groups * per_group, -1), _largest(call), call.instruction.output)
    x = np.moveaxis(_steps(call, arrays, 0).astype(dtype), 1, -1)
    matrices = weight.astype(dtype)
    # The full range of the taps; the padding is cropped afterwards.
    reach = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(x.shape[1:-1], stride, dilation, kernel, extra, strict=True)
    ]
    acc = np.zeros((x.shape[0], *reach, groups * per_group), dtype)
    for tap in np.ndindex(*kernel):
        begins = [step * index for step, index in zip(dilation, tap, strict=True)]
        window = [slice(b, b + s * (n - 1) + 1, s) for b, s, n in zip(begins, stride, x.shape[1:-1], strict=True)]
        matrix = matrices[(slice(None), slice(None), *tap)]
        for group in range(groups):
            inputs = slice(group * in_channels // groups, (group + 1) * in_channels // groups)
            outputs = slice(group * per_group, (group + 1) * per_group)
            acc[(slice(None), *window, outputs)] += x[..., inputs] @ matrix[inputs]
    inner = [slice(p, length - p) for p, length in zip(padding, reach, strict=True)]
    total: Int = acc[(slice(None), *inner)].astype(np.int64) + arrays[2].astype(np.int64)
    return total


def _linear_sums(call: Call, arrays: Sequence[Array]) -> Int:
    """x W^T."""
    weight = _weight(call, arrays)
    dtype = _exact_type(weight, _largest(call), call.instruction.output)
    acc = _steps(call, arrays, 0).astype(dtype) @ weight.astype(dtype).T
    total: Int = acc.astype(np.int64) + arrays[2].astype(np.int64)
    return total


def layer(call: Call, arrays: Sequence[Array]) -> Array:
    """A layer: its sums of products, requantized."""
    sums = LAYERS[call.instruction.op](call, arrays)
    return channels_second(call, call.requantize(sums, *layer_multiplier(call, arrays)))


def channels_second(call: Call, array: Array) -> Array:
    """The result of a layer, moved from channels last to logical order."""
    return array if call.instruction.op == "int_linear" else np.moveaxis(array, -1, 1)


def int_add(call: Call, arrays: Sequence[Array]) -> Array:
    """Addition: both operands on one scale in integers, or ONNX Runtime's float32 form."""
    low, high = call.limits
    if call["mode"] == "f32":
        return _in_float32(call, arrays, np.subtract if call.get("subtract") else np.add)
    if call["mode"] == "f32_rne":
        order = (("left", arrays[0]), ("right", arrays[1]))
        offset = call["offset"]
        if _left_is_scalar(arrays[0].shape, arrays[1].shape):
            order, offset = (order[1], order[0]), call["scalar_left_offset"]
        (first, a), (second, b) = order
        inner = fused_multiply_add(b.astype(np.float32), np.float32(call[f"{second}_multiplier"]), np.float32(offset))
        outer = fused_multiply_add(a.astype(np.float32), np.float32(call[f"{first}_multiplier"]), inner)
        return np.clip(np.rint(outer), low, high).astype(np.int64)
    total = np.zeros((), np.int64)
    for index, side in enumerate(("left", "right")):
        shifted = _steps(call, arrays, index) << call["shift"]
        scaled = multiply(shifted, call.get(f"{side}_multiplier"), call.get(f"{side}_exponent"), call["mode"])
        total = total - scaled if side == "right" and call.get("subtract") else total + scaled
    return call.requantize(total, call.get("out_multiplier"), call.get("out_exponent"))


def _in_float32(call: Call, arrays: Sequence[Array], operation: np.ufunc) -> Array:
    """Dequantize, compute and quantize, each step rounded to float32."""
    real = operation(
        *(_steps(call, arrays, i).astype(np.float32) * np.float32(call.inputs[i].scale[0]) for i in range(2))
    )
    low, high = (np.float32(limit - call.output.zero_point[0]) for limit in call.limits)
    quotient = np.clip(real / np.float32(call.output.scale[0]), low, high)
    codes: Int = np.rint(quotient).astype(np.int64) + call.output.zero_point[0]
    return codes


def _left_is_scalar(left: Sequence[int], right: Sequence[int]) -> bool:
    rank = max(len(left), len(right))
    sizes = zip((1,) * (rank - len(left)) + tuple(left), (1,) * (rank - len(right)) + tuple(right), strict=True)
    wide = [a for a, b in sizes if (a, b) != (1, 1)]
    return not wide or wide[-1] == 1


def int_mul(call: Call, arrays: Sequence[Array]) -> Array:
    """Product of codes without their zero points."""
    if call["mode"] == "f32":
        return _in_float32(call, arrays, np.multiply)
    product = _steps(call, arrays, 0) * _steps(call, arrays, 1)
    if call["mode"] == "f32_rne":
        scaled = product.astype(np.float32) * np.float32(call["product_multiplier"])
        codes: Int = np.clip(np.rint(scaled + np.float32(call.output.zero_point[0])), *call.limits).astype(np.int64)
        return codes
    return call.requantize(product, call.get("product_multiplier"), call.get("product_exponent"))


def int_mean(call: Call, arrays: Sequence[Array]) -> Array:
    """Sum over whole axes; the division is in the multiplier, or the multiplier is a power of two next to a divisor."""
    total = _steps(call, arrays, 0).sum(axis=tuple(call["axes"]), keepdims=bool(call["keepdim"]))
    multiplier, exponent = _scalar_multiplier(arrays, 1)
    if call.get("divisor") is None or exponent is None:
        return call.requantize(total, multiplier, exponent)
    power = int(exponent)
    dividend, divisor = total << max(power, 0), call["divisor"] << max(-power, 0)
    codes: Int = np.clip(average(dividend, divisor, call["rounding"], call.output.zero_point[0]), *call.limits)
    return codes


def _windows(size: int, out: int, kernel: int, stride: int, padding: int) -> list[tuple[int, int, int]]:
    """(begin, end, size with padding) of each window along one axis, as torch clips them."""
    result = []
    for index in range(out):
        begin = index * stride - padding
        end = min(begin + kernel, size + padding)
        result.append((max(begin, 0), min(end, size), end - begin))
    return result


def int_avg_pool2d(call: Call, arrays: Sequence[Array]) -> Array:
    """Mean of each window, divided as the target rounds."""
    x = _steps(call, arrays, 0)
    out_h, out_w = call.output.shape[2:]
    kernel, stride, padding = call["kernel"], call["stride"], call["padding"]
    rows = _windows(x.shape[2], out_h, kernel[0], stride[0], padding[0])
    columns = _windows(x.shape[3], out_w, kernel[1], stride[1], padding[1])
    result = np.empty((*x.shape[:2], out_h, out_w), np.int64)
    for i, (top, bottom, full_h) in enumerate(rows):
        for j, (left, right, full_w) in enumerate(columns):
            count = full_h * full_w if call["count_include_pad"] else (bottom - top) * (right - left)
            total = x[:, :, top:bottom, left:right].sum(axis=(2, 3))
            divisor = call.get("divisor_override") or count
            result[:, :, i, j] = average(total, divisor, call["rounding"], call.output.zero_point[0])
    codes: Int = np.clip(result, *call.limits)
    return codes


def int_resample2d(call: Call, arrays: Sequence[Array]) -> Array:
    """Weighted means along both axes: integer weights, one division per pixel."""
    rows, columns = (array.astype(np.float64) for array in arrays[1:3])
    bound = int(np.abs(rows).sum(axis=1).max() * np.abs(columns).sum(axis=1).max()) * _largest(call)
    if bound >= FLOAT64_EXACT:
        raise ArtifactError(f"partial sums can reach {bound}", where=call.instruction.output)
    total = (rows @ _steps(call, arrays, 0).astype(np.float64) @ columns.T).astype(np.int64)
    mean = average(total, arrays[3].astype(np.int64), call["rounding"], call.output.zero_point[0])
    codes: Int = np.clip(mean, *call.limits)
    return codes


def int_layer_norm(call: Call, arrays: Sequence[Array]) -> Array:
    """Distances from the mean over the root of the variance, both times the number of elements: see `numerics`."""
    steps = _steps(call, arrays, 0)
    weight, bias = arrays[1].astype(np.int64), arrays[2].astype(np.int64)
    axes = tuple(range(-weight.ndim, 0))
    total: Int = steps.sum(axes, keepdims=True)
    spread: Int = weight.size * (steps * steps).sum(axes, keepdims=True) - total * total
    radicand = np.maximum(spread + call["epsilon"], 1)
    shift = np.zeros_like(radicand)
    for pairs in (16, 8, 4, 2, 1):
        small = radicand < 2 ** (60 - 2 * pairs)
        radicand = np.where(small, radicand << (2 * pairs), radicand)
        shift += pairs * small
    root = np.sqrt(radicand.astype(np.float64)).astype(np.int64)
    root -= root * root > radicand
    root += (root + 1) * (root + 1) <= radicand
    normalized = divide((weight.size * steps - total) << (shift + call["fraction"] + 8), root, "rhup")
    return call.requantize(divide(normalized * weight, 256, "rhup") + bias, *_multiplier(arrays, 3))


def max_pool2d(call: Call, arrays: Sequence[Array]) -> Array:
    """Largest code of each window; padding is never selected."""
    x = arrays[0]
    out_h, out_w = call.output.shape[2:]
    (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w) = call["kernel"], call["stride"], call["padding"]
    step_h, step_w = call["dilation"]
    need_h = stride_h * (out_h - 1) + step_h * (kernel_h - 1) + 1 - x.shape[2] - pad_h
    need_w = stride_w * (out_w - 1) + step_w * (kernel_w - 1) + 1 - x.shape[3] - pad_w
    lowest = np.iinfo(x.dtype).min
    x = np.pad(x, ((0, 0), (0, 0), (pad_h, max(need_h, 0)), (pad_w, max(need_w, 0))), constant_values=lowest)
    result = np.full((*x.shape[:2], out_h, out_w), lowest, x.dtype)
    for i in range(0, step_h * kernel_h, step_h):
        for j in range(0, step_w * kernel_w, step_w):
            part = x[:, :, i : i + stride_h * (out_h - 1) + 1 : stride_h, j : j + stride_w * (out_w - 1) + 1 : stride_w]
            np.maximum(result, part, out=result)
    return result


def quantize(call: Call, arrays: Sequence[Array]) -> Array:
    """Real numbers to codes, by a true float32 division."""
    with np.errstate(over="ignore"):  # an infinite quotient is valid, because the clamp follows
        quotient = arrays[0].astype(np.float32) / np.float32(call.output.scale[0])
    steps = round_real(np.nan_to_num(quotient.astype(np.float64)), call["rounding"]) + call.output.zero_point[0]
    return np.clip(steps, *call.limits).astype(np.int64)


def dequantize(call: Call, arrays: Sequence[Array]) -> Array:
    """Codes to real numbers."""
    return _steps(call, arrays, 0).astype(np.float32) * np.float32(call.inputs[0].scale[0])


def rescale(call: Call, arrays: Sequence[Array]) -> Array:
    """Rescale from one grid to another."""
    return call.requantize(_steps(call, arrays, 0), *_scalar_multiplier(arrays, 1))


def lookup(call: Call, arrays: Sequence[Array]) -> Array:
    """A table entry per code; with an axis, from the row of the channel, or from the row named for the channel."""
    index, table, axis = arrays[0].astype(np.int64) - call["offset"], arrays[1], call.get("axis")
    if axis is None:
        entries: Array = table[index]
        return entries
    chosen = arrays[2] if len(arrays) > 2 else np.arange(len(table))
    rows = chosen.reshape([-1 if a == axis else 1 for a in range(index.ndim)])
    per_channel: Array = table[rows, index]
    return per_channel


def int_clamp(call: Call, arrays: Sequence[Array]) -> Array:
    """Limits of codes along an axis, on the grid of the operand."""
    shape = [-1 if axis == call["axis"] else 1 for axis in range(arrays[0].ndim)]
    low, high = (np.asarray(codes, np.int64) for codes in call.limits)
    codes: Int = np.clip(arrays[0].astype(np.int64), *(end.reshape(shape) for end in (low, high)))
    return codes


def reshape(call: Call, arrays: Sequence[Array]) -> Array:
    """Other sizes, row-major in logical order."""
    return arrays[0].reshape(call.output.shape)


def permute(call: Call, arrays: Sequence[Array]) -> Array:
    """Axes in another order."""
    return arrays[0].transpose(call["axes"])


def concat(call: Call, arrays: Sequence[Array]) -> Array:
    """Join operands along one axis."""
    return np.concatenate(arrays, axis=call["axis"])


def slice_(call: Call, arrays: Sequence[Array]) -> Array:
    """Part of one axis."""
    index = [slice(None)] * int(call["axis"]) + [slice(call["start"], call["stop"], call["step"])]
    return arrays[0][tuple(index)]


def pad(call: Call, arrays: Sequence[Array]) -> Array:
    """A border of one code; a negative amount cuts off."""
    amounts = call["pad"]
    half = len(amounts) // 2
    widths = list(zip(amounts[:half], amounts[half:], strict=True))
    inner = arrays[0][tuple(slice(max(-begin, 0), -max(-end, 0) or None) for begin, end in widths)]
    border = [(max(begin, 0), max(end, 0)) for begin, end in widths]
    return np.pad(inner, border, constant_values=inner.dtype.type(call["value"]))


Kernel: TypeAlias = Callable[[Call, Sequence[Array]], Array]
LAYERS: Mapping[str, Callable[[Call, Sequence[Array]], Int]] = {
    "int_conv1d": _conv_sums,
    "int_conv2d": _conv_sums,
    "int_conv3d": _conv_sums,
    "int_conv_transpose1d": _conv_transpose_sums,
    "int_conv_transpose2d": _conv_transpose_sums,
    "int_conv_transpose3d": _conv_transpose_sums,
    "int_linear": _linear_sums,
}
"""Instructions that sum products: their accumulators, bias included and channels last."""

KERNELS: Mapping[str, Kernel] = {
    "quantize": quantize,
    "dequantize": dequantize,
    **dict.fromkeys(LAYERS, layer),
    "int_add": int_add,
    "int_mul": int_mul,
    "int_mean": int_mean,
    "int_layer_norm": int_layer_norm,
    "int_avg_pool2d": int_avg_pool2d,
    "int_resample2d": int_resample2d,
    "max_pool2d": max_pool2d,
    "rescale": rescale,
    "lookup": lookup,
    "int_clamp": int_clamp,
    "reshape": reshape,
    "permute": permute,
    "concat": concat,
    "slice": slice_,
    "pad": pad,
}
"""Every instruction that a program may hold."""
