"""Resampling of images: adaptive average pooling and resizing.

Each is a weighted mean along each axis with rational weights. With integer matrices R and C and an integer divisor D
per output pixel

    y[i, j] = sum_h sum_w R[i, h] * x[h, w] * C[j, w] / D[i, j]

holds exactly, so the division is the only rounding on integers. Input and output share one scale and zero point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, integers
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, Infer, OpDef, Trait, register
from qcompiler.ir.types import TensorType
from qcompiler.ops.common import FLOAT_STAGES
from qcompiler.ops.pooling import MEAN

MODES = ("nearest", "bilinear")


def _infer(size: str) -> Infer:
    def infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
        x = types[0].shape
        if len(x) != 4:
            raise GraphError(f"the input is {types[0]}", expected="[N, C, H, W]")
        if size == "size" and attributes["mode"] not in MODES:
            raise GraphError(f"the mode is {attributes['mode']!r}", expected=" or ".join(MODES))
        sizes = integers(attributes, size)
        if len(sizes) != 2 or min(sizes) < 1:
            raise GraphError(f"the output size is {sizes}", expected="two positive numbers")
        return (types[0].with_shape((x[0], x[1], *sizes)),)

    return infer


def _adaptive(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    height, width = node.integers("output_size")
    return (functional.adaptive_avg_pool2d(operands[0], (height, width)),)


def _resize(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    mode = node.text("mode")
    corners = node.flag("align_corners") if mode == "bilinear" else None
    return (functional.interpolate(operands[0], node.integers("size"), mode=mode, align_corners=corners),)


register(
    OpDef(
        name="adaptive_avg_pool2d",
        operands=("x",),
        attributes={"output_size": REQUIRED},
        infer=_infer("output_size"),
        evaluate=_adaptive,
        stages=FLOAT_STAGES,
        traits=MEAN | {Trait.SPATIAL},
        summary="Means over windows that are chosen to give the requested output size.",
    )
)
register(
    OpDef(
        name="resize",
        operands=("x",),
        attributes={"size": REQUIRED, "mode": REQUIRED, "align_corners": False},
        infer=_infer("size"),
        evaluate=_resize,
        stages=FLOAT_STAGES,
        traits=MEAN | {Trait.SPATIAL},
        summary="An image resized to another size, by the nearest pixel or bilinearly between four pixels.",
    )
)


def resampling_weights(node: Node) -> tuple[Tensor, Tensor, Tensor]:
    """R, C and D of an `adaptive_avg_pool2d` or a `resize` over an image of known size.

    Returns:
        rows: int64 [out_h, H]. columns: int64 [out_w, W]. divisor: int64 [out_h, out_w].

    Raises:
        GraphError: The size of the image is symbolic.
    """
    image, result = node.inputs[0].type, node.output.type
    if not all(isinstance(size, int) for size in image.shape[2:]):
        raise GraphError(f"the image is {image}", where=node.where, expected="known height and width")
    (rows, rows_sum), (columns, columns_sum) = (_axis(node, image.size(axis), result.size(axis)) for axis in (2, 3))
    return rows, columns, torch.outer(rows_sum, columns_sum)


def _axis(node: Node, size: int, out: int) -> tuple[Tensor, Tensor]:
    """Integer weights [out, size] along one axis, and the sum of each row."""
    weights = torch.zeros(out, size, dtype=torch.int64)
    for index in range(out):
        for position, weight in _taps(node, index, size, out):
            weights[index, position] += weight
    common = math.gcd(*weights.reshape(-1).tolist())
    weights //= common
    return weights, weights.sum(1)


def _taps(node: Node, index: int, size: int, out: int) -> list[tuple[int, int]]:
    """Positions and integer weights of output `index`. All rows of an interpolated axis have one sum."""
    if node.op == "adaptive_avg_pool2d":
        return [(position, 1) for position in range(index * size // out, -(-(index + 1) * size // out))]
    if node.attributes["mode"] == "nearest":
        # torch computes the position in float32: taken from torch, not derived.
        positions = functional.interpolate(torch.arange(float(size)).reshape(1, 1, size), out, mode="nearest")
        return [(int(positions[0, 0, index]), 1)]
    if node.attributes["align_corners"]:
        numerator, denominator = index * (size - 1), max(out - 1, 1)
    else:
        numerator, denominator = max((2 * index + 1) * size - out, 0), 2 * out
    first, rest = divmod(numerator, denominator)
    return [(first, denominator - rest), (min(first + 1, size - 1), rest)]
