"""Operators of ONNX that sample images and windows of signals."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from qcompiler.frontends.onnx.symbolic import Operand, apply
from qcompiler.frontends.onnx.table import At, translates


@translates("GridSample")
def _grid_sample(at: At) -> Operand:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        at.attribute("mode", "linear"), at.attribute("mode", "linear")
    )
    x, grid = at.tensor(0), at.tensor(1)
    return apply(
        F.grid_sample, x, grid, mode, at.attribute("padding_mode", "zeros"), bool(at.attribute("align_corners", 0))
    )


@translates("Col2Im")
def _col2im(at: At) -> Operand:
    sizes, block = at.ints(1), at.ints(2)
    if len(sizes) != 2:
        raise at.refusal(f"Col2Im over {len(sizes)} spatial axes", "Use two.")
    pads = list(at.attribute("pads", [0] * 4))
    strides, dilations = at.attribute("strides", [1, 1]), at.attribute("dilations", [1, 1])
    if pads[:2] != pads[2:]:
        raise at.refusal("Col2Im with uneven borders")
    return apply(F.fold, at.tensor(0), sizes, block, dilations, pads[:2], strides)


@translates("Det")
def _det(at: At) -> Operand:
    return apply(torch.linalg.det, at.tensor(0))


@translates("RoiAlign")
def _roi_align(at: At) -> Operand:
    import torchvision  # noqa: F401  # registers the function

    x, boxes, places = at.tensor(0), at.tensor(1), at.tensor(2)
    if at.attribute("mode", "avg") != "avg":
        raise at.refusal("RoiAlign of maxima", "Use averages.")
    halves = at.attribute("coordinate_transformation_mode", "half_pixel" if at.version >= 16 else "output_half_pixel")
    numbers = apply(torch.unsqueeze, apply(torch.Tensor.to, places, x.dtype), 1)
    height, width = at.attribute("output_height", 1), at.attribute("output_width", 1)
    scale, ratio = at.attribute("spatial_scale", 1.0), at.attribute("sampling_ratio", 0)
    return apply(
        torch.ops.torchvision.roi_align,
        x,
        apply(torch.cat, [numbers, boxes], 1),
        scale,
        height,
        width,
        ratio if ratio else -1,
        halves == "half_pixel",
    )


@translates("DFT")
def _dft(at: At) -> Operand:
    """Complex numbers have a last axis of two reals."""
    x = at.tensor(0)
    axis = at.attribute("axis", 1) if at.version < 20 else (at.ints(2)[0] if at.has(2) else -2)
    axis %= x.dim()
    count = at.ints(1)[0] if at.has(1) else None
    inverse, onesided = bool(at.attribute("inverse", 0)), bool(at.attribute("onesided", 0))
    is_complex = x.shape[-1] == 2
    if inverse and onesided:
        raise at.refusal("DFT that returns real numbers of one side", "Use an inverse DFT of both sides.")
    real = apply(torch.select, x, -1, 0)
    size = real.shape[axis] if count is None else count
    if not isinstance(size, int):
        raise at.refusal("DFT along an axis whose size depends on the batch size")
    before = real.shape[axis]
    kept = min(size, before) if isinstance(before, int) else size
    rows = size // 2 + 1 if onesided else size
    angle = torch.arange(rows).reshape(-1, 1) * torch.arange(kept).reshape(1, -1) % size * (2 * math.pi / size)
    sign = 1.0 if inverse else -1.0
    share = 1.0 / size if inverse else 1.0
    cosine, sine = torch.cos(angle.double()) * share, sign * torch.sin(angle.double()) * share

    def along(part: Operand, matrix: torch.Tensor) -> Operand:
        part = apply(torch.Tensor.to, part, torch.float64)
        moved = apply(torch.movedim, apply(torch.narrow, part, axis, 0, kept), axis, -1)
        return apply(torch.movedim, apply(F.linear, moved, matrix), -1, axis)

    first, second = along(real, cosine), along(real, sine)
    if is_complex:
        imaginary = apply(torch.select, x, -1, 1)
        first = apply(torch.sub, first, along(imaginary, sine))
        second = apply(torch.add, second, along(imaginary, cosine))
    return apply(torch.Tensor.to, apply(torch.stack, [first, second], -1), x.dtype)
