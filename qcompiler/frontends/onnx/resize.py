"""Resizing of ONNX: nearest, linear and cubic in all conventions of coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.frontends.onnx.symbolic import Operand, apply
from qcompiler.frontends.onnx.table import At, translates


@translates("Upsample")
def _upsample(at: At) -> Operand:
    x = at.tensor(0)
    scales = [float(s) for s in (at.known(1).tolist() if at.has(1) else at.attribute("scales"))]
    sizes = [_size(at, x, axis, scale) for axis, scale in enumerate(scales)]
    return _resized(at, x, list(range(x.dim())), scales, sizes, at.attribute("mode", "nearest"), "asymmetric", "floor")


def _size(at: At, x: Operand, axis: int, scale: float) -> int | None:
    """The size of an axis after scaling; None for one that stays as it is."""
    size = x.shape[axis]
    if scale == 1.0:
        return None
    if not isinstance(size, int):
        raise at.refusal(f"{at.op} of an axis whose size depends on the batch size")
    return math.floor(size * scale)


@translates("Resize")
def _resize(at: At) -> Operand:
    x = at.tensor(0)
    mode = at.attribute("mode", "nearest")
    if at.version < 11:
        scales = [float(s) for s in at.known(1).tolist()]
        sizes = [_size(at, x, axis, scale) for axis, scale in enumerate(scales)]
        return _resized(at, x, list(range(x.dim())), scales, sizes, mode, "asymmetric", "floor")
    convention = at.attribute("coordinate_transformation_mode", "half_pixel")
    axes = [axis % x.dim() for axis in at.attribute("axes", range(x.dim()))]
    if at.has(3) and at.sizes(3):
        scales, sizes = _from_sizes(at, x, axes)
    else:
        scales = [float(s) for s in at.known(2).tolist()]
        sizes = [_size(at, x, axis, scale) for axis, scale in zip(axes, scales, strict=True)]
    if convention == "tf_crop_and_resize":
        raise at.refusal("Resize with tf_crop_and_resize", "Cut the tensor with Slice, then resize.")
    return _resized(at, x, axes, scales, sizes, mode, convention, at.attribute("nearest_mode", "round_prefer_floor"))


def _from_sizes(at: At, x: Operand, axes: list[int]) -> tuple[list[float], list[int | None]]:
    wanted = at.sizes(3)
    policy = at.attribute("keep_aspect_ratio_policy", "stretch")
    scales: list[float] = []
    sizes: list[int | None] = []
    for axis, goal in zip(axes, wanted, strict=True):
        size = x.shape[axis]
        if isinstance(size, int) and isinstance(goal, int):
            scales.append(goal / size)
            sizes.append(None if goal == size else goal)
        elif size == goal:
            scales.append(1.0)
            sizes.append(None)
        else:
            raise at.refusal("Resize to a size that depends on the batch size")
    if policy != "stretch":
        common = min(scales) if policy == "not_larger" else max(scales)
        rounded = [math.floor(common * at.fixed(x.shape[axis]) + 0.5) for axis in axes]
        sizes = [None if size == x.shape[axis] else size for size, axis in zip(rounded, axes, strict=True)]
        scales = [common] * len(axes)
    return scales, sizes


def _resized(
    at: At,
    x: Operand,
    axes: list[int],
    scales: list[float],
    sizes: list[int | None],
    mode: str,
    convention: str,
    nearest: str,
) -> Operand:
    changed = {axis: (scale, size) for axis, scale, size in zip(axes, scales, sizes, strict=True) if size is not None}
    # An axis whose size stays may still move its pixels, for example by a scale of 1.1 of 4 pixels.
    if not changed and all(scale == 1.0 for scale in scales):
        return x
    if list(changed) == list(range(2, x.dim())) and x.dim() in (3, 4, 5):
        found = _by_torch(at, x, changed, mode, convention, nearest)
        if found is not None:
            return found
    result = x
    for axis, (scale, size) in changed.items():
        before = x.shape[axis]
        if not isinstance(before, int):
            raise at.refusal(f"{at.op} of an axis whose size depends on the batch size")
        if mode == "nearest":
            places = _nearest(_coordinates(size, before, scale, convention), nearest, before)
            result = apply(torch.index_select, result, axis, places)
        else:
            matrix = _matrix(at, size, before, scale, mode, convention).to(x.dtype)
            moved = apply(torch.movedim, result, axis, -1)
            result = apply(torch.movedim, apply(F.linear, moved, matrix), -1, axis)
    return result


def _by_torch(
    at: At, x: Operand, changed: dict[int, tuple[float, int]], mode: str, convention: str, nearest: str
) -> Operand | None:
    """`interpolate`, where it computes the same; None otherwise."""
    sizes = [size for _, size in changed.values()]
    exact = all(abs(scale * at.fixed(x.shape[axis]) - size) < 1e-6 for axis, (scale, size) in changed.items())
    if not exact or at.attribute("antialias", 0) or at.attribute("exclude_outside", 0):
        return None
    if mode == "nearest":
        if convention == "asymmetric" and nearest == "floor":
            return apply(F.interpolate, x, size=sizes, mode="nearest")
        # Whole factors up: the nearest pixel is the same in these conventions.
        whole = all(scale >= 1 and scale == int(scale) for scale, _ in changed.values())
        if whole and convention in ("half_pixel", "pytorch_half_pixel") and nearest.startswith("round"):
            return apply(F.interpolate, x, size=sizes, mode="nearest")
        return None
    if convention not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    if convention != "half_pixel" and any(size == 1 for size in sizes):
        return None
    corners = convention == "align_corners"
    if mode == "cubic":
        if at.attribute("cubic_coeff_a", -0.75) != -0.75 or x.dim() != 4:
            return None
        return apply(F.interpolate, x, size=sizes, mode="bicubic", align_corners=corners)
    kind = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()]
    return apply(F.interpolate, x, size=sizes, mode=kind, align_corners=corners)


def _coordinates(size: int, before: int, scale: float, convention: str) -> Tensor:
    """Places of the new pixels among the old ones, float64 [size]."""
    new = torch.arange(size, dtype=torch.float64)
    if convention == "asymmetric":
        return new / scale
    if convention == "align_corners":
        return new * (before - 1) / (size - 1) if size > 1 else torch.zeros(size, dtype=torch.float64)
    if convention == "pytorch_half_pixel" and size == 1:
        return torch.zeros(size, dtype=torch.float64)
    if convention == "half_pixel_symmetric":
        adjustment = size / (scale * before)
        centre = before / 2
        return centre * (1 - adjustment) + (new + 0.5) / scale - 0.5
    return (new + 0.5) / scale - 0.5


def _nearest(places: Tensor, rule: str, before: int) -> Tensor:
    if rule == "floor":
        found = places.floor()
    elif rule == "ceil":
        found = places.ceil()
    elif rule == "round_prefer_ceil":
        found = (places + 0.5).floor()
    else:
        found = (places - 0.5).ceil()
    return found.to(torch.int64).clamp(0, before - 1)


def _matrix(at: At, size: int, before: int, scale: float, mode: str, convention: str) -> Tensor:
    """Weights of the old pixels for each new one, float64 [size, before]."""
    places = _coordinates(size, before, scale, convention)
    antialias = bool(at.attribute("antialias", 0)) and scale < 1
    stretch = 1.0 / scale if antialias else 1.0
    reach = (1 if mode == "linear" else 2) * stretch
    matrix = torch.zeros(size, before, dtype=torch.float64)
    a = at.attribute("cubic_coeff_a", -0.75)
    outside = bool(at.attribute("exclude_outside", 0)) or antialias
    for row in range(size):
        place = float(places[row])
        first, last = math.floor(place - reach), math.ceil(place + reach)
        weights: dict[int, float] = {}
        for column in range(first, last + 1):
            weight = _kernel((column - place) / stretch, mode, a)
            if outside and not 0 <= column < before:
                continue
            inside = min(max(column, 0), before - 1)
            weights[inside] = weights.get(inside, 0.0) + weight
        total = sum(weights.values())
        for column, weight in weights.items():
            matrix[row, column] += weight / total if total else 0.0
    return matrix


def _kernel(x: float, mode: str, a: float) -> float:
    x = abs(x)
    if mode == "linear":
        return max(0.0, 1.0 - x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0
