"""Pooling and means, with windows counted exactly as in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, flag, integers
from qcompiler.ir.dims import Dim
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import TensorType
from qcompiler.ops.common import ANY_STAGE, FLOAT_STAGES, check_float, sizes, window_size

MEAN = frozenset({Trait.AVERAGE, Trait.KEEPS_SIGN, Trait.COMMUTES_WITH_SCALE})
"""Traits of every average."""


def pool_shape(types: Sequence[TensorType], attributes: Attributes) -> tuple[Dim, ...]:
    """Output shape of a 2-D pooling.

    Raises:
        GraphError: The input is not an image, an attribute is invalid for a pooling, the padding is more than half the
            window, or a window does not fit or holds no element.
    """
    x = types[0].shape
    kernel, stride = (sizes(attributes, key, 2, 1) for key in ("kernel", "stride"))
    padding = sizes(attributes, "padding", 2, 0)
    dilation = sizes(attributes, "dilation", 2, 1) if "dilation" in attributes else (1, 1)
    if len(x) != 4:
        raise GraphError(f"the input is {types[0]}", expected="[N, C, H, W]")
    divisor = attributes.get("divisor_override")
    if divisor is not None and not (isinstance(divisor, int) and divisor > 0):
        raise GraphError(f"divisor_override is {divisor}", expected="a positive number")
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise GraphError(
            f"the padding {padding} is more than half the window {kernel}",
            expected="padding of at most half the window",
        )
    counts = [
        window_size(
            x[2 + i],
            kernel[i],
            stride[i],
            2 * padding[i],
            dilation[i],
            ceil=flag(attributes, "ceil_mode"),
            begin=padding[i],
        )
        for i in range(2)
    ]
    for i in range(2):
        _check_windows(
            x[2 + i], counts[i], range(-padding[i], dilation[i] * kernel[i] - padding[i], dilation[i]), stride[i]
        )
    return (x[0], x[1], *counts)


def _check_windows(size: Dim, count: Dim, taps: range, stride: int) -> None:
    """Refuse windows with dilated taps that all miss the image."""
    if not isinstance(size, int) or not isinstance(count, int):
        return
    for begin in range(0, count * stride, stride):
        if not any(0 <= begin + tap < size for tap in taps):
            raise GraphError(
                f"the window at {begin + taps[0]} with taps {taps.step} apart contains none of the {size} elements",
                expected="windows with at least one element",
            )


def _infer_pool(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    return (types[0].with_shape(pool_shape(types, attributes)),)


def _max_pool2d(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x = operands[0]
    # torch pools floats only; float64 holds every code.
    image = x if x.is_floating_point() else x.to(torch.float64)
    kernel, stride, padding, dilation = (node.integers(key) for key in ("kernel", "stride", "padding", "dilation"))
    return (functional.max_pool2d(image, kernel, stride, padding, dilation, node.flag("ceil_mode")).to(x.dtype),)


register(
    OpDef(
        name="max_pool2d",
        operands=("x",),
        attributes={
            "kernel": REQUIRED,
            "stride": REQUIRED,
            "padding": (0, 0),
            "dilation": (1, 1),
            "ceil_mode": False,
        },
        infer=_infer_pool,
        evaluate=_max_pool2d,
        stages=ANY_STAGE,
        traits=frozenset({Trait.MOVEMENT, Trait.SPATIAL, Trait.KEEPS_SIGN, Trait.COMMUTES_WITH_SCALE}),
        summary="The largest element of each window; padding counts as minus infinity.",
    )
)


def _infer_avg_pool(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    return _infer_pool(types, attributes)


def _avg_pool2d(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    kernel, stride, padding = (node.integers(key) for key in ("kernel", "stride", "padding"))
    ceil, count_pad = node.flag("ceil_mode"), node.flag("count_include_pad")
    divisor = node.integer("divisor_override") if node.given("divisor_override") else None
    return (functional.avg_pool2d(operands[0], kernel, stride, padding, ceil, count_pad, divisor),)


AVG_POOL_ATTRIBUTES = {
    "kernel": REQUIRED,
    "stride": REQUIRED,
    "padding": (0, 0),
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}

register(
    OpDef(
        name="avg_pool2d",
        operands=("x",),
        attributes=AVG_POOL_ATTRIBUTES,
        infer=_infer_avg_pool,
        evaluate=_avg_pool2d,
        stages=FLOAT_STAGES,
        traits=MEAN | {Trait.SPATIAL},
        summary="The mean of each window.",
    )
)


def averages_windows(node: Node) -> bool:
    """Whether `node` averages over windows of an image: its integer form is on the grid of its operand."""
    return node.definition.has(Trait.AVERAGE) and node.definition.has(Trait.SPATIAL)


def mean_shape(types: Sequence[TensorType], attributes: Attributes) -> tuple[Dim, ...]:
    """Output shape of a mean.

    Raises:
        GraphError: An axis is not an axis of the input, or appears twice.
    """
    axes, rank = integers(attributes, "axes"), types[0].rank
    if not axes or len(set(axes)) != len(axes) or not all(0 <= axis < rank for axis in axes):
        raise GraphError(f"the axes are {axes}", expected=f"distinct axes from 0 to {rank - 1}")
    if attributes["keepdim"]:
        return tuple(1 if axis in axes else size for axis, size in enumerate(types[0].shape))
    return tuple(size for axis, size in enumerate(types[0].shape) if axis not in axes)


def _infer_mean(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    return (types[0].with_shape(mean_shape(types, attributes)),)


def _mean(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (operands[0].mean(node.integers("axes"), node.flag("keepdim")),)


register(
    OpDef(
        name="mean",
        operands=("x",),
        attributes={"axes": REQUIRED, "keepdim": False},
        infer=_infer_mean,
        evaluate=_mean,
        stages=FLOAT_STAGES,
        traits=MEAN,
        summary="The mean over whole axes.",
    )
)
