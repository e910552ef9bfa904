"""Quantizers of ONNX as arithmetic on real numbers and codes."""

from __future__ import annotations

from typing import Any

import torch

from qcompiler.frontends.onnx.reading import dtype_of
from qcompiler.frontends.onnx.symbolic import Operand, apply
from qcompiler.frontends.onnx.table import At, translates


def _spread(at: At, parameter: Operand, x: Operand, axis: int, block: int) -> Operand:
    """A scale or zero point in a shape that broadcasts with the tensor."""
    if parameter.dim() == 0 or (parameter.dim() == 1 and parameter.shape[0] == 1):
        return apply(torch.reshape, parameter, []) if parameter.dim() else parameter
    if parameter.dim() == 1:
        return apply(torch.reshape, parameter, [-1] + [1] * (x.dim() - axis % x.dim() - 1))
    size, count = x.shape[axis], parameter.shape[axis]
    if not isinstance(size, int) or not isinstance(count, int):
        raise at.refusal(f"{at.op} of blocks along an axis whose size depends on the batch size")
    each = block or -(-size // count)
    return apply(torch.narrow, apply(torch.repeat_interleave, parameter, each, axis), axis, 0, size)


def _rounded(x: Operand) -> Operand:
    return apply(torch.round, x)  # noqa: TID251  # halves to even, as torch rounds


@translates("QuantizeLinear")
def _quantize(at: At) -> Operand:
    x, scale = at.tensor(0), at.tensor(1)
    axis, block = at.attribute("axis", 1), at.attribute("block_size", 0)
    dtype = torch.uint8
    if at.has(2):
        dtype = at.tensor(2).dtype
    elif at.attribute("output_dtype", 0):
        dtype = dtype_of(at.attribute("output_dtype"), "the result of QuantizeLinear", str(at.location))
    if dtype not in (torch.int8, torch.uint8, torch.int16, torch.uint16):
        raise at.refusal(f"QuantizeLinear to {dtype}", "Use 8 or 16 bits.")
    limits = torch.iinfo(dtype)
    codes = _rounded(apply(torch.div, x, _spread(at, scale, x, axis, block)))
    if at.has(2):
        zero = apply(torch.Tensor.to, _spread(at, at.tensor(2), x, axis, block), torch.float32)
        codes = apply(torch.add, codes, zero)
    return apply(torch.Tensor.to, apply(torch.clamp, codes, limits.min, limits.max), dtype)


@translates("DequantizeLinear")
def _dequantize(at: At) -> Operand:
    x, scale = at.tensor(0), at.tensor(1)
    axis, block = at.attribute("axis", 1), at.attribute("block_size", 0)
    steps = apply(torch.Tensor.to, x, torch.float32)
    if at.has(2):
        zero = apply(torch.Tensor.to, at.tensor(2), torch.float32)
        steps = apply(torch.sub, steps, _spread(at, zero, x, axis, block))
    return apply(torch.mul, steps, _spread(at, scale, x, axis, block))


@translates("DynamicQuantizeLinear")
def _dynamic(at: At) -> Any:
    x = at.tensor(0)
    high = apply(torch.clamp, apply(torch.amax, x), min=0.0)
    low = apply(torch.clamp, apply(torch.amin, x), max=0.0)
    scale = apply(torch.div, apply(torch.sub, high, low), 255.0)
    zero = apply(torch.clamp, _rounded(apply(torch.div, apply(torch.neg, low), scale)), 0.0, 255.0)
    codes = apply(torch.clamp, apply(torch.add, _rounded(apply(torch.div, x, scale)), zero), 0.0, 255.0)
    return [apply(torch.Tensor.to, codes, torch.uint8), scale, apply(torch.Tensor.to, zero, torch.uint8)]


def _steps(at: At, index: int, zero: int) -> Operand:
    """Codes without their zero point, as float64: sums below 2^53 are exact."""
    x = apply(torch.Tensor.to, at.tensor(index), torch.float64)
    if not at.has(zero):
        return x
    offset = apply(torch.Tensor.to, at.tensor(zero), torch.float64)
    if offset.dim() == 1 and offset.shape[0] != 1:
        offset = apply(torch.reshape, offset, [-1, 1] if index == 0 else [1, -1])
    if offset.dim() == 1:
        offset = apply(torch.reshape, offset, [])
    return apply(torch.sub, x, offset)


@translates("MatMulInteger")
def _matmul_integer(at: At) -> Operand:
    product = apply(torch.matmul, _steps(at, 0, 2), _steps(at, 1, 3))
    return apply(torch.Tensor.to, product, torch.int32)


def _requantized(sums: Operand, scale: Operand, zero: Operand, channel: int) -> Operand:
    """Sums in float64 as codes, halves to even."""
    limits = torch.iinfo(zero.dtype)
    steps = _rounded(apply(torch.div, sums, _column(scale, sums, channel)))
    codes = apply(torch.add, steps, apply(torch.Tensor.to, zero, torch.float64))
    return apply(torch.Tensor.to, apply(torch.clamp, codes, limits.min, limits.max), zero.dtype)


def _column(parameter: Operand, x: Operand, axis: int) -> Operand:
    """A number, or numbers along an axis, as float64."""
    found = apply(torch.Tensor.to, parameter, torch.float64)
    if found.dim() == 0 or found.shape[0] == 1:
        return apply(torch.reshape, found, [])
    return apply(torch.reshape, found, [-1] + [1] * (x.dim() - axis - 1))


@translates("QLinearMatMul")
def _qlinear_matmul(at: At) -> Operand:
    left, right = _steps(at, 0, 2), _steps(at, 3, 5)
    sums = apply(torch.matmul, left, right)
    scale = apply(torch.mul, _column(at.tensor(1), sums, sums.dim() - 2), _column(at.tensor(4), sums, sums.dim() - 1))
    return _requantized(apply(torch.mul, sums, scale), at.tensor(6), at.tensor(7), sums.dim() - 1)
