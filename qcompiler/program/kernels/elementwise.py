"""Kernels of sums and products of two tensors, and of clamps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.program.arithmetic import Int, fused_multiply_add, multiply
from qcompiler.program.kernels.call import Array, Call, Kernels, steps_of

kernel = Kernels()


@kernel("int_add", steps=(0, 1), requantizes=True, in_place=(0, 1))
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
        shifted = steps_of(call, arrays, index) << call["shift"]
        scaled = multiply(shifted, call.get(f"{side}_multiplier"), call.get(f"{side}_exponent"), call["mode"])
        total = total - scaled if side == "right" and call.get("subtract") else total + scaled
    return call.requantize(total, call.get("out_multiplier"), call.get("out_exponent"))


@kernel("int_mul", steps=(0, 1), requantizes=True, in_place=(0, 1))
def int_mul(call: Call, arrays: Sequence[Array]) -> Array:
    """Product of codes without their zero points."""
    if call["mode"] == "f32":
        return _in_float32(call, arrays, np.multiply)
    product = steps_of(call, arrays, 0) * steps_of(call, arrays, 1)
    if call["mode"] == "f32_rne":
        scaled = product.astype(np.float32) * np.float32(call["product_multiplier"])
        codes: Int = np.clip(np.rint(scaled + np.float32(call.output.zero_point[0])), *call.limits).astype(np.int64)
        return codes
    return call.requantize(product, call.get("product_multiplier"), call.get("product_exponent"))


@kernel("maximum", in_place=(0, 1), moves=True)
def maximum(call: Call, arrays: Sequence[Array]) -> Array:
    """The larger of two codes on one grid."""
    codes: Array = np.maximum(*arrays)
    return codes


@kernel("minimum", in_place=(0, 1), moves=True)
def minimum(call: Call, arrays: Sequence[Array]) -> Array:
    """The smaller of two codes on one grid."""
    codes: Array = np.minimum(*arrays)
    return codes


@kernel("int_clamp", in_place=(0,))
def int_clamp(call: Call, arrays: Sequence[Array]) -> Array:
    """Limits of codes along an axis, on the grid of the operand."""
    shape = [-1 if axis == call["axis"] else 1 for axis in range(arrays[0].ndim)]
    low, high = (np.asarray(codes, np.int64) for codes in call.limits)
    codes: Int = np.clip(arrays[0].astype(np.int64), *(end.reshape(shape) for end in (low, high)))
    return codes


def _in_float32(call: Call, arrays: Sequence[Array], operation: np.ufunc) -> Array:
    """Dequantize, compute and quantize, each step rounded to float32."""
    real = operation(
        *(steps_of(call, arrays, i).astype(np.float32) * np.float32(call.inputs[i].scale[0]) for i in range(2))
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
