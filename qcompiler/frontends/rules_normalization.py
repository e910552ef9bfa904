"""Normalizations whose mean and deviation are computed: layer, group, instance, root mean square, unit length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from qcompiler.frontends.builder import Builder, Operand
from qcompiler.frontends.table import axis_of, rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.graph import Value


@rule("layer_norm")
def _layer_norm(
    b: Builder,
    input: Operand,
    normalized_shape: Sequence[int],
    weight: Operand | None = None,
    bias: Operand | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    parameters = [
        _constant(b, tuple(normalized_shape), default) if given is None else given
        for given, default in ((weight, 1.0), (bias, 0.0))
    ]
    return b.node("layer_norm", [input, *parameters], eps=float(eps))


@rule("native_layer_norm")
def _native_layer_norm(
    b: Builder,
    input: Operand,
    normalized_shape: Sequence[int],
    weight: Operand | None,
    bias: Operand | None,
    eps: float,
) -> object:
    statistics = b.refusal("the model reads the statistics of a layer norm", "Use its first result only.")
    return [_layer_norm(b, input, normalized_shape, weight, bias, eps), statistics, statistics]


def _constant(b: Builder, shape: tuple[int, ...], value: float) -> Leaf:
    return Leaf("constant", "", torch.full(shape, value, device=b.device))


def _spread(b: Builder, weight: Operand | None, bias: Operand | None, shape: tuple[int, ...]) -> list[Operand]:
    """The parameters per channel in a shape that broadcasts; constants for those that are missing.

    A tensor of the model keeps its name and its kind, so that it learns in training.
    """

    def spread(operand: Operand | None, default: float) -> Operand:
        if operand is None:
            return _constant(b, shape, default)
        if isinstance(operand, Leaf):
            return Leaf(operand.kind, operand.ref, operand.tensor.reshape(shape))
        return b.node("reshape", [operand], shape=shape)

    return [spread(weight, 1.0), spread(bias, 0.0)]


@rule("group_norm")
def _group_norm(
    b: Builder,
    input: Operand,
    num_groups: int,
    weight: Operand | None = None,
    bias: Operand | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    """[N, C, ...] as [N, groups, C / groups, ...], of which all axes but the first two are normalized."""
    batch, channels, *image = input.type.shape
    if not isinstance(channels, int) or not all(isinstance(size, int) for size in image):
        raise b.unsupported("group_norm over axes of symbolic size", "Use a fixed size of the image.")
    if num_groups == 1:
        shape = (channels, *(1 for _ in image))
        parameters = _spread(b, weight, bias, shape)
        return b.node("layer_norm", [input, *parameters], eps=float(eps), dims=len(shape))
    each = channels // num_groups
    pixels = math.prod(size for size in image if isinstance(size, int))
    grouped = b.node("reshape", [input], shape=(batch, num_groups, each, pixels))
    parameters = _spread(b, weight, bias, (num_groups, each, 1))
    normalized = b.node("layer_norm", [grouped, *parameters], eps=float(eps), dims=2)
    return b.node("reshape", [normalized], shape=input.type.shape)


@rule("native_group_norm")
def _native_group_norm(
    b: Builder,
    input: Operand,
    weight: Operand | None,
    bias: Operand | None,
    batch: object,
    channels: object,
    pixels: object,
    group: int,
    eps: float,
) -> object:
    statistics = b.refusal("the model reads the statistics of a group norm", "Use its first result only.")
    return [_group_norm(b, input, group, weight, bias, eps), statistics, statistics]


@rule("instance_norm")
def _instance_norm(
    b: Builder,
    input: Operand,
    running_mean: Operand | None = None,
    running_var: Operand | None = None,
    weight: Operand | None = None,
    bias: Operand | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    """Each channel of each image alone: all axes but the first two are normalized."""
    if not use_input_stats:
        raise b.unsupported("an instance norm with running statistics", "Set track_running_stats=False.")
    channels, *image = input.type.shape[1:]
    if not isinstance(channels, int) or not all(isinstance(size, int) for size in image):
        raise b.unsupported("instance_norm over axes of symbolic size", "Use a fixed size of the image.")
    shape = (channels, *(1 for _ in image))
    parameters = _spread(b, weight, bias, shape)
    return b.node("layer_norm", [input, *parameters], eps=float(eps), dims=len(image))


@rule("aten_instance_norm")
def _aten_instance_norm(
    b: Builder,
    input: Operand,
    weight: Operand | None,
    bias: Operand | None,
    running_mean: Operand | None,
    running_var: Operand | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> object:
    return _instance_norm(b, input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


@rule("rms_norm")
def _rms_norm(
    b: Builder,
    input: Operand,
    normalized_shape: Sequence[int],
    weight: Operand | None = None,
    eps: float | None = None,
) -> Value:
    sizes = tuple(normalized_shape)
    given = _constant(b, sizes, 1.0) if weight is None else weight
    small = torch.finfo(input.type.dtype.torch).eps if eps is None else float(eps)
    return b.node("layer_norm", [input, given, _constant(b, sizes, 0.0)], eps=small, centered=False)


@rule("normalize")
def _normalize(
    b: Builder, input: Operand, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: object = None
) -> Value:
    """x / max(length, eps) along one axis, as a root mean square norm: x / sqrt(mean x^2 + eps^2 / n) / sqrt(n)."""
    axis, rank = axis_of(input, dim), input.type.rank
    size = input.type.shape[axis]
    if p != 2.0 or not isinstance(size, int):
        raise b.unsupported(f"normalize with p={p} along axis {axis}", "Use p=2 along an axis of fixed size.")
    order = (*(a for a in range(rank) if a != axis), axis)
    x = input if axis == rank - 1 else b.node("permute", [input], axes=order)
    parameters = [_constant(b, (1,), size**-0.5), _constant(b, (1,), 0.0)]
    small = max(eps**2 / size, torch.finfo(torch.float32).tiny)
    result = b.node("layer_norm", [x, *parameters], eps=small, centered=False)
    if axis == rank - 1:
        return result
    return b.node("permute", [result], axes=tuple(order.index(a) for a in range(rank)))
