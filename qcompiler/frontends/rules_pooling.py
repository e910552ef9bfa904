"""Pooling, means, and resizing of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from torch.nn.functional import interpolate

from qcompiler.frontends.builder import Builder, Operand, Rule
from qcompiler.frontends.table import Ints, as_tuple, rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.dims import Shape
from qcompiler.ir.graph import Value

Window: TypeAlias = tuple[int, ...]
"""Kernel, stride and padding along one axis; for maxima also the dilation."""

_POINT: Window = (1, 1, 0, 1)
"""Window of one element, which changes nothing."""


def _windows(rank: int, kernel_size: Ints, stride: Ints | None, *others: Ints) -> list[Window]:
    """The windows of a pooling over `rank` axes; without a stride they touch each other.

    Args:
        rank: Number of axes.
        kernel_size: Sizes of the windows.
        stride: Distances of the windows.
        others: Paddings, and for maxima dilations.
    """
    sizes = [kernel_size, stride or kernel_size, *others]
    return list(zip(*(as_tuple(size, rank) for size in sizes), strict=True))


def _pooled(b: Builder, op: str, input: Operand, windows: Sequence[Window], **attributes: Attribute) -> Value:
    """A pooling of images, or of lines as images of height 1."""
    if len(windows) == 1:
        n, c, length = input.type.shape
        image = b.node("reshape", [input], shape=(n, c, 1, length))
        pooled = _pooled(b, op, image, [_POINT[: len(windows[0])], *windows], **attributes)
        return b.node("reshape", [pooled], shape=(n, c, pooled.type.shape[3]))
    names = ("kernel", "stride", "padding", "dilation")[: len(windows[0])]
    return b.node(op, [input], **dict(zip(names, zip(*windows, strict=True), strict=True)), **attributes)


def _max_pool(rank: int) -> Rule:
    """The rule of max pooling over `rank` axes."""

    def pool(
        b: Builder,
        input: Operand,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,  # the call returns one result or two
    ) -> object:
        windows = _windows(rank, kernel_size, stride, padding, dilation)
        if rank < 3:
            return _with_indices(b, _pooled(b, "max_pool2d", input, windows, ceil_mode=bool(ceil_mode)))
        # Boxes one axis after another: the maximum of maxima is the maximum.
        pooled = input
        for axis, window in enumerate(windows, 2):
            if window != _POINT:
                pooled = _pooled_along(b, pooled, axis, window, ceil_mode=bool(ceil_mode))
        return _with_indices(b, pooled)

    return pool


def _avg_pool(rank: int) -> Rule:
    """The rule of average pooling over `rank` axes."""

    def pool(
        b: Builder,
        input: Operand,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> object:
        return _pooled(
            b,
            "avg_pool2d",
            input,
            _windows(rank, kernel_size, stride, padding),
            ceil_mode=bool(ceil_mode),
            count_include_pad=bool(count_include_pad),
            divisor_override=divisor_override,
        )

    return pool


for _rank in (1, 2, 3):
    rule(f"max_pool{_rank}d", f"max_pool{_rank}d_with_indices")(_max_pool(_rank))
for _rank in (1, 2):
    rule(f"avg_pool{_rank}d")(_avg_pool(_rank))


def _with_indices(b: Builder, pooled: Operand) -> object:
    """The maxima; if the call also returns their indices, these too, which no operator computes."""
    if not isinstance(b.observed, list):
        return pooled
    return [pooled, b.refusal(f"the model reads the indices of {b.function}", "Pool without the indices.")]


@rule("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(b: Builder, input: Operand, output_size: int | Sequence[int | None]) -> Value:
    sizes = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    shape = input.type.shape
    return b.node(
        "adaptive_avg_pool2d",
        [input],
        output_size=tuple(shape[2 + i] if size is None else size for i, size in enumerate(sizes)),
    )


def _fixed_sizes(b: Builder, input: Operand, count: int) -> tuple[int, ...]:
    """The last `count` sizes of `input`."""
    sizes = input.type.shape[-count:]
    fixed = tuple(size for size in sizes if isinstance(size, int))
    if len(fixed) < len(sizes):
        raise b.unsupported(f"{b.function} of {input.type}", "All sizes but that of the batch must be fixed.")
    return fixed


def _pooled_along(b: Builder, input: Operand, axis: int, window: Window, *, ceil_mode: bool = False) -> Value:
    """The maxima of windows along one axis: [N, A, L, B] -> [N, A, L', B], A and B the axes before and after it."""
    batch, *sizes = input.type.shape
    before, after = math.prod(_fixed_sizes(b, input, len(sizes))[: axis - 1]), math.prod(sizes[axis:])
    image = b.node("reshape", [input], shape=(batch, before, sizes[axis - 1], after))
    pooled = _pooled(b, "max_pool2d", image, [window, _POINT], ceil_mode=ceil_mode)
    return b.node("reshape", [pooled], shape=(batch, *sizes[: axis - 1], pooled.type.shape[2], *sizes[axis:]))


@rule(
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d_with_indices",
)
def _adaptive_max_pool(
    b: Builder,
    input: Operand,
    output_size: object,
    return_indices: bool = False,  # the call returns one result or two
) -> object:
    several = isinstance(b.observed, list)
    after = (b.parts()[0].shape if several else b.shape)[2:]
    before = _fixed_sizes(b, input, len(after))
    sizes = [(old, int(cast("int", new))) for old, new in zip(before, after, strict=True)]
    pooled = input
    if len(after) == 2 and not any(old % new for old, new in sizes):
        kernel = tuple(old // new for old, new in sizes)
        pooled = b.node("max_pool2d", [input], kernel=kernel, stride=kernel)
    else:
        for axis, (old, new) in enumerate(sizes, 2):
            pooled = _adapted(b, pooled, axis, old, new)
    return _with_indices(b, pooled)


def _adapted(b: Builder, input: Operand, axis: int, old: int, new: int) -> Operand:
    """The maxima of `new` windows along an axis of `old` elements.

    Window i is floor(i * old / new) to ceil((i + 1) * old / new), the end excluded.
    """
    if old == new:
        return input
    if not old % new:
        return _pooled_along(b, input, axis, (old // new, old // new, 0, 1))
    parts = []
    for index in range(new):
        start, stop = index * old // new, -(-(index + 1) * old // new)
        part = b.node("slice", [input], axis=axis, start=start, stop=stop, step=1)
        parts.append(_pooled_along(b, part, axis, (stop - start, stop - start, 0, 1)))
    return b.node("concat", parts, axis=axis)


@rule("adaptive_avg_pool1d", "adaptive_avg_pool3d")
def _global_average(b: Builder, input: Operand, output_size: Ints) -> Value:
    axes = tuple(range(2, input.type.rank))
    if any(size != 1 for size in b.shape[2:]):
        raise b.unsupported(f"{b.function} to {list(b.shape[2:])}", "Only an output size of 1 is supported.")
    return b.node("mean", [input], axes=axes, keepdim=True)


def _rounds(before: Shape, factors: Sequence[float], after: Shape) -> bool:
    return any(old * float(factor) != new for old, factor, new in zip(before, factors, after, strict=True))


def _cubes(b: Builder, input: Operand, scale_factor: object, align_corners: bool, recompute: bool) -> Value:
    """Cubic interpolation as a layer along each axis, whose weights are the interpolation of unit vectors."""
    before, after = input.type.shape[2:], b.shape[2:]
    factors = [scale_factor] * 2 if isinstance(scale_factor, int | float) else scale_factor
    result = b.value(input)
    for axis in (1, 0):
        old, new = before[axis], after[axis]
        if not isinstance(old, int) or not isinstance(new, int):
            raise b.unsupported(f"interpolation of {input.type}", "Height and width must be fixed.")
        eye = torch.eye(old, device=b.device)[None, None]
        if isinstance(factors, Sequence) and not recompute:
            weights = interpolate(eye, scale_factor=(1.0, factors[axis]), mode="bicubic", align_corners=align_corners)
        else:
            weights = interpolate(eye, (old, new), mode="bicubic", align_corners=align_corners)
        turned = b.node("permute", [result], axes=(0, 1, 3, 2)) if axis == 0 else result
        result = b.node("matmul", [turned, Leaf("constant", "", weights[0, 0])])
    return b.node("permute", [result], axes=(0, 1, 3, 2))


@rule("interpolate", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample")
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
    """Interpolation in three spellings: the function and two aten operators, with a list of factors or a flag third."""
    if "upsample_" in b.function:
        kind = next(kind for kind in ("nearest", "bilinear", "bicubic") if kind in b.function)
        align_corners = None if kind == "nearest" else scale_factor
        scale_factor = scale_factors if scale_factors is not None else scale_factor if kind == "nearest" else mode
        mode = kind
    mode = mode or "nearest"
    if mode == "bicubic" and input.type.rank == 4 and not antialias:
        return _cubes(b, input, scale_factor, bool(align_corners), bool(recompute_scale_factor))
    if mode not in ("nearest", "bilinear") or antialias or input.type.rank != 4:
        raise b.unsupported(
            f"interpolation of mode {mode!r} over {input.type}", "Use the mode nearest, bilinear or bicubic on images."
        )
    before, after = input.type.shape[2:], b.shape[2:]
    factors = [scale_factor] * 2 if isinstance(scale_factor, int | float) else scale_factor
    # torch samples by the factor itself, which equals the ratio of the sizes only for a whole number of pixels.
    if isinstance(factors, Sequence) and not recompute_scale_factor and _rounds(before, factors, after):
        raise b.unsupported(f"interpolation by {scale_factor} of {input.type}", "Use size= in place of scale_factor=.")
    if not all(isinstance(item, int) for item in (*before, *after)):
        raise b.unsupported(f"interpolation of {input.type}", "Height and width must be fixed.")
    return b.node("resize", [input], size=after, mode=str(mode), align_corners=bool(align_corners))
