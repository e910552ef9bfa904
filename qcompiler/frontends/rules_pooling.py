"""Pooling, means, and resizing of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from qcompiler.frontends.builder import Builder, Operand, Rule
from qcompiler.frontends.table import Ints, as_tuple, axis_of, rule
from qcompiler.ir.dims import Shape
from qcompiler.ir.graph import Value


@rule("max_pool2d")
def _max_pool2d(
    b: Builder,
    input: Operand,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    if return_indices:
        raise b.unsupported("max_pool2d with return_indices=True", "Pool without the indices.")
    kernel = as_tuple(kernel_size, 2)
    return b.node(
        "max_pool2d",
        [input],
        kernel=kernel,
        stride=as_tuple(stride, 2) if stride else kernel,
        padding=as_tuple(padding, 2),
        dilation=as_tuple(dilation, 2),
        ceil_mode=bool(ceil_mode),
    )


@rule("max_pool2d_with_indices")
def _max_pool2d_with_indices(b: Builder, input: Operand, *arguments: Any) -> object:
    indices = b.refusal("the model reads the indices of max_pool2d", "Pool without the indices.")
    return [_max_pool2d(b, input, *arguments), indices]


@rule("avg_pool2d")
def _avg_pool2d(
    b: Builder,
    input: Operand,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    kernel = as_tuple(kernel_size, 2)
    return b.node(
        "avg_pool2d",
        [input],
        kernel=kernel,
        stride=as_tuple(stride, 2) if stride else kernel,
        padding=as_tuple(padding, 2),
        ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad),
        divisor_override=divisor_override,
    )


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


def _pooled_along(
    b: Builder, input: Operand, axis: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1, **more: bool
) -> Value:
    """The maxima of windows along one axis: [N, A, L, B] -> [N, A, L', B], A and B the axes before and after it."""
    batch, *sizes = input.type.shape
    before, after = math.prod(_fixed_sizes(b, input, len(sizes))[: axis - 1]), math.prod(sizes[axis:])
    image = b.node("reshape", [input], shape=(batch, before, sizes[axis - 1], after))
    pooled = b.node(
        "max_pool2d",
        [image],
        kernel=(kernel, 1),
        stride=(stride, 1),
        padding=(padding, 0),
        dilation=(dilation, 1),
        **more,
    )
    return b.node("reshape", [pooled], shape=(batch, *sizes[: axis - 1], pooled.type.shape[2], *sizes[axis:]))


@rule("max_pool3d", "max_pool3d_with_indices")
def _max_pool3d(
    b: Builder,
    input: Operand,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> object:
    """Maxima of boxes, one axis after another: the maximum of maxima is the maximum."""
    if return_indices:
        raise b.unsupported("max_pool3d with return_indices=True", "Pool without the indices.")
    kernel = as_tuple(kernel_size, 3)
    windows = zip(
        kernel, as_tuple(stride, 3) if stride else kernel, as_tuple(padding, 3), as_tuple(dilation, 3), strict=True
    )
    pooled = input
    for axis, window in enumerate(windows, 2):
        if window != (1, 1, 0, 1):
            pooled = _pooled_along(b, pooled, axis, *window, ceil_mode=bool(ceil_mode))
    several = isinstance(b.observed, list)
    return [pooled, b.refusal("the indices of max_pool3d are read", "Pool without the indices.")] if several else pooled


@rule(
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d_with_indices",
)
def _adaptive_max_pool(b: Builder, input: Operand, output_size: object, return_indices: bool = False) -> object:
    """Adaptive max pooling: the function returns pixels, the aten operator also indices."""
    if return_indices:
        raise b.unsupported(f"{b.function} with return_indices=True", "Pool without the indices.")
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
    return [pooled, b.refusal(f"the indices of {b.function} are read")] if several else pooled


def _adapted(b: Builder, input: Operand, axis: int, old: int, new: int) -> Operand:
    """The maxima of `new` windows along an axis of `old` elements.

    Window i is floor(i * old / new) to ceil((i + 1) * old / new), the end excluded.
    """
    if old == new:
        return input
    if not old % new:
        return _pooled_along(b, input, axis, old // new, old // new)
    parts = []
    for index in range(new):
        start, stop = index * old // new, -(-(index + 1) * old // new)
        part = b.node("slice", [input], axis=axis, start=start, stop=stop, step=1)
        parts.append(_pooled_along(b, part, axis, stop - start, stop - start))
    return b.node("concat", parts, axis=axis)


@rule("adaptive_avg_pool1d", "adaptive_avg_pool3d")
def _global_average(b: Builder, input: Operand, output_size: Ints) -> Value:
    axes = tuple(range(2, input.type.rank))
    if any(size != 1 for size in b.shape[2:]):
        raise b.unsupported(f"{b.function} to {list(b.shape[2:])}", "Only an output size of 1 is supported.")
    return b.node("mean", [input], axes=axes, keepdim=True)


def _line_as_image(pool: Rule) -> Rule:
    """The rule of a pooling over one axis: pooling over the width of an image of height 1."""

    def pool_line(
        b: Builder,
        input: Operand,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        *rest: Any,
        **keywords: Any,
    ) -> Value:
        (kernel,), (begin,) = as_tuple(kernel_size, 1), as_tuple(padding, 1)
        step = as_tuple(stride, 1)[0] if stride else kernel
        if "dilation" in keywords:
            keywords["dilation"] = (1, *as_tuple(keywords["dilation"], 1))
        elif pool is _max_pool2d and rest:
            rest = ((1, *as_tuple(rest[0], 1)), *rest[1:])
        n, c, length = input.type.shape
        image = b.node("reshape", [input], shape=(n, c, 1, length))
        pooled = pool(b, image, (1, kernel), (1, step), (0, begin), *rest, **keywords)
        assert isinstance(pooled, Value)
        return b.node("reshape", [pooled], shape=b.shape)

    return pool_line


rule("max_pool1d")(_line_as_image(_max_pool2d))
rule("avg_pool1d")(_line_as_image(_avg_pool2d))


def _rounds(before: Shape, factors: Sequence[float], after: Shape) -> bool:
    return any(old * float(factor) != new for old, factor, new in zip(before, factors, after, strict=True))


@rule("interpolate", "upsample_nearest2d", "upsample_bilinear2d", "upsample")
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
        bilinear = "bilinear" in b.function
        align_corners = scale_factor if bilinear else None
        scale_factor = scale_factors if scale_factors is not None else mode if bilinear else scale_factor
        mode = "bilinear" if bilinear else "nearest"
    mode = mode or "nearest"
    if mode not in ("nearest", "bilinear") or antialias or input.type.rank != 4:
        raise b.unsupported(
            f"interpolation of mode {mode!r} over {input.type}", "Use the mode nearest or bilinear on images."
        )
    before, after = input.type.shape[2:], b.shape[2:]
    factors = [scale_factor] * 2 if isinstance(scale_factor, int | float) else scale_factor
    # torch samples by the factor itself, which equals the ratio of the sizes only for a whole number of pixels.
    if isinstance(factors, Sequence) and not recompute_scale_factor and _rounds(before, factors, after):
        raise b.unsupported(f"interpolation by {scale_factor} of {input.type}", "Use size= in place of scale_factor=.")
    if not all(isinstance(item, int) for item in (*before, *after)):
        raise b.unsupported(f"interpolation of {input.type}", "Height and width must be fixed.")
    return b.node("resize", [input], size=after, mode=str(mode), align_corners=bool(align_corners))


@rule("mean")
def _mean(b: Builder, input: Operand, dim: Ints | None = None, keepdim: bool = False, *, dtype: object = None) -> Value:
    axes = [] if dim is None else [axis_of(input, d) for d in as_tuple(dim, 1)]
    return b.node("mean", [input], axes=tuple(sorted(axes)) or tuple(range(input.type.rank)), keepdim=bool(keepdim))
