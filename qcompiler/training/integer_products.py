"""The three products of a layer on int8 codes with int32 sums.

A product of codes with zero points a and b is

    sum (p - a)(q - b) = sum p q - a sum q - b sum p + K a b

with sum p q computed by `torch._int_mm` on int8 operands. Convolutions become matrix products of windows; the gradient
of the input is the convolution of the spread gradient with the flipped kernel. Sums are split into parts of `PART`
terms, whose int32 arithmetic cannot overflow; parts are added in float64, which is exact below 2^53.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.training.geometry import Geometry

__all__ = ["Codes8", "for_input", "for_weight", "forward", "serves"]

PART = 2**15
"""Terms of one int32 sum. Each of its four summands is at most 2^14 * 2^15 = 2^29, their sum 2^31; the exact value,
below 255 * 255 * 2^15, is in int32 too, so that sums that wrap in between end at it."""
_ROWS, _MULTIPLE = 17, 8
"""Smallest number of rows of `torch._int_mm` on a GPU, and the multiple that its other sizes must have there."""


@dataclass(frozen=True)
class Codes8:
    """int8 codes and their zero point; the integer of an element is its code minus the zero point.

    Args:
        codes: int8 tensor of any shape.
        zero_point: The code of 0, -128 to 127.
    """

    codes: Tensor
    zero_point: int

    @classmethod
    def of(cls, steps: Tensor, zero_point: int, qmin: int) -> Codes8:
        """Codes of integers.

        Args:
            steps: Integral float tensor, codes minus the zero point.
            zero_point: Zero point on the grid.
            qmin: Lowest code of the grid; codes of an unsigned grid are shifted by 128.
        """
        zero = zero_point - 128 if qmin == 0 else zero_point
        return cls((steps + zero).to(torch.int8), zero)


def serves(geometry: Geometry, device: torch.device, bits: int) -> bool:
    """Whether these kernels compute a product: linear layers, and convolutions of images in one group.

    Args:
        geometry: Geometry of the product.
        device: Device of the operands.
        bits: Largest width of an operand.
    """
    if bits > 8 or not matmul_is_exact(device.type):
        return False
    if geometry.kind == "linear":
        return True
    return geometry.kind == "conv" and len(geometry.stride) == 2 and not geometry.transposed and geometry.groups == 1


@functools.cache
def matmul_is_exact(kind: str) -> bool:
    """Whether `torch._int_mm` of this machine gives exact sums.

    Some processors without instructions for products of int8 saturate pairs of products in int16.

    Args:
        kind: Type of the device.
    """
    ends = torch.tensor([-128, 127], dtype=torch.int8, device=kind)
    a = ends.repeat(32, 32)
    b = ends.repeat_interleave(32).reshape(64, 1).expand(64, 16).contiguous()
    try:
        found = torch._int_mm(a, b)  # noqa: SLF001  # torch has no public name for it
    except RuntimeError:
        return False
    return torch.equal(found.cpu().to(torch.int64), a.cpu().to(torch.int64) @ b.cpu().to(torch.int64))


def matmul(a: Codes8, b: Codes8) -> Tensor:
    """The product of integers [m, k] and [k, n]: integral float64 [m, n]."""
    total = None
    for begin in range(0, a.codes.shape[1], PART):
        p, q = a.codes[:, begin : begin + PART], b.codes[begin : begin + PART]
        part = _int_mm(p, q)
        if a.zero_point:
            part -= a.zero_point * q.sum(0, dtype=torch.int32)
        if b.zero_point:
            part -= b.zero_point * p.sum(1, keepdim=True, dtype=torch.int32)
        if a.zero_point and b.zero_point:
            part += a.zero_point * b.zero_point * p.shape[1]
        wide = part.to(torch.float64)
        total = wide if total is None else total.add_(wide)
    assert total is not None
    return total


def _int_mm(p: Tensor, q: Tensor) -> Tensor:
    if p.device.type == "cpu":
        return torch._int_mm(p, q)  # noqa: SLF001  # as above
    (m, k), n = p.shape, q.shape[1]
    rows = max(0, _ROWS - m)
    p = torch.nn.functional.pad(p, (0, -k % _MULTIPLE, 0, rows))
    q = torch.nn.functional.pad(q, (0, -n % _MULTIPLE, 0, -k % _MULTIPLE))
    return torch._int_mm(p.contiguous(), q.t().contiguous().t())[:m, :n]  # noqa: SLF001  # as above


def forward(geometry: Geometry, x: Codes8, w: Codes8) -> Tensor:
    """The integers of x * w, float64."""
    if geometry.kind == "linear":
        flat = Codes8(x.codes.reshape(-1, x.codes.shape[-1]), x.zero_point)
        return matmul(flat, Codes8(w.codes.t(), w.zero_point)).reshape(*x.codes.shape[:-1], -1)
    rows, size = _windows(x, geometry, w.codes.shape[2:])
    kernel = Codes8(w.codes.reshape(w.codes.shape[0], -1).t(), w.zero_point)
    return _image(matmul(rows, kernel), x.codes.shape[0], size)


def for_input(geometry: Geometry, g: Codes8, w: Codes8, shape: torch.Size) -> Tensor:
    """The integers of g * w^T, float64.

    Args:
        geometry: Geometry of the product.
        g: Gradient of the result.
        w: Weight.
        shape: Shape of the input.
    """
    if geometry.kind == "linear":
        flat = Codes8(g.codes.reshape(-1, g.codes.shape[-1]), g.zero_point)
        return matmul(flat, w).reshape(shape)
    spread = _spread(g, geometry, w.codes.shape[2:], shape[2:])
    flipped = Codes8(w.codes.flip(2, 3).transpose(0, 1), w.zero_point)
    return forward(Geometry("conv", (1, 1), (0, 0), geometry.dilation), spread, flipped)


def for_weight(geometry: Geometry, g: Codes8, x: Codes8, shape: torch.Size) -> Tensor:
    """The integers of x^T * g, float64, in the shape of the weight.

    Args:
        geometry: Geometry of the product.
        g: Gradient of the result.
        x: Input.
        shape: Shape of the weight.
    """
    if geometry.kind == "linear":
        left = Codes8(g.codes.reshape(-1, shape[0]).t(), g.zero_point)
        return matmul(left, Codes8(x.codes.reshape(-1, shape[1]), x.zero_point))
    rows, _ = _windows(x, geometry, shape[2:])
    left = Codes8(g.codes.transpose(0, 1).reshape(shape[0], -1), g.zero_point)
    return matmul(left, rows).reshape(shape)


def _windows(x: Codes8, geometry: Geometry, kernel: torch.Size) -> tuple[Codes8, tuple[int, int]]:
    """The windows of an image, [N * height * width of the result, C * taps], and the size of the result."""
    high, wide = geometry.padding
    padded = torch.nn.functional.pad(x.codes, (wide, wide, high, high), value=x.zero_point)
    n, c, *sides = padded.shape
    taps = zip(sides, kernel, geometry.dilation, geometry.stride, strict=True)
    size = [(side - d * (k - 1) - 1) // s + 1 for side, k, d, s in taps]
    steps = padded.stride()
    strided = [steps[2 + axis] * geometry.stride[axis] for axis in range(2)]
    dilated = [steps[2 + axis] * geometry.dilation[axis] for axis in range(2)]
    windows = padded.as_strided((n, *size, c, *kernel), (steps[0], *strided, steps[1], *dilated))
    return Codes8(windows.reshape(n * math.prod(size), -1), x.zero_point), (size[0], size[1])


def _image(rows: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """Rows [N * height * width, C] as an image [N, C, height, width]."""
    return rows.reshape(count, *size, -1).permute(0, 3, 1, 2)


def _spread(g: Codes8, geometry: Geometry, kernel: torch.Size, sides: torch.Size) -> Codes8:
    """The gradient at the positions of the input that its windows begin at, zeros in between and around.

    The convolution of the result with the flipped kernel has `sides`: input i reads result o with tap k where
    o * stride = i + padding - k * dilation.
    """
    n, c, *outputs = g.codes.shape
    spans = [d * (k - 1) for d, k in zip(geometry.dilation, kernel, strict=True)]
    lengths = [side + span for side, span in zip(sides, spans, strict=True)]
    spread = g.codes.new_full((n, c, *lengths), g.zero_point)
    codes = g.codes
    places: list[slice] = [slice(None), slice(None)]
    for axis in range(2):
        stride, offset = geometry.stride[axis], spans[axis] - geometry.padding[axis]
        # Results whose windows begin outside of the input's reach meet only padding.
        first = max(0, -(offset // stride))
        last = min(outputs[axis] - 1, (lengths[axis] - 1 - offset) // stride)
        codes = codes.narrow(2 + axis, first, last - first + 1)
        begin = first * stride + offset
        places.append(slice(begin, begin + (last - first) * stride + 1, stride))
    spread[tuple(places)] = codes
    return Codes8(spread, g.zero_point)
