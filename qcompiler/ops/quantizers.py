"""Queries about the quantizers of a QUANTIZED graph, shared by several passes."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor

from qcompiler.errors import CalibrationError, GraphError
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.interpret import Tensors
from qcompiler.ir.registry import Trait
from qcompiler.ops.quantization import spread_factors
from qcompiler.quant.affine import AffineParams, along_axis, quantize
from qcompiler.quant.spec import QuantSpec


def leaf_tensor(value: Value, tensors: Tensors | None = None) -> Tensor:
    """The tensor that a leaf reads.

    Args:
        value: Result of the leaf.
        tensors: Tensors that leaves read; None: those of the module.

    Raises:
        GraphError: `value` is not a leaf.
    """
    leaf = value.producer
    if leaf is None or not is_leaf(value):
        raise GraphError(f"%{value.name} is not a tensor of the module", expected="a parameter, state or constant")
    return (leaf.graph.module.tensors if tensors is None else tensors)[leaf.text("ref")].detach()


def is_leaf(value: Value) -> bool:
    """Whether `value` is a tensor of the module."""
    return value.producer is not None and value.producer.definition.has(Trait.LEAF)


def is_quantizer(node: Node | None) -> TypeGuard[Node]:
    """Whether `node` is a quantizer with a grid of its own; the grid of a bias follows from its layer."""
    return node is not None and node.definition.has(Trait.QUANTIZER)


def quantizes_parameter(node: Node | None) -> TypeGuard[Node]:
    """Whether `node` is a quantizer of a tensor of the module; the other quantizers read activations."""
    return is_quantizer(node) and is_leaf(node.inputs[0])


def quantizers_reading(value: Value) -> list[Node]:
    """The quantizers among the readers of `value`."""
    return [user for user in value.users if is_quantizer(user)]


def quantizer_of(value: Value) -> Node | None:
    """The quantizer that determines the grid of `value`: its producer, found through ops that only move elements."""
    node = value.producer
    while node is not None and node.definition.has(Trait.MOVEMENT):
        node = node.inputs[0].producer
    return node if is_quantizer(node) else None


def quantizer_after(node: Node) -> Node | None:
    """The quantizer that is the only reader of `node`, or of the activations directly after the node."""
    while len(node.outputs) == 1 and len(node.output.users) == 1 and not node.graph.is_output(node.output):
        node = next(iter(node.output.users))
        if is_quantizer(node):
            return node
        if not node.definition.has(Trait.CLAMP):
            return None
    return None


def grid(quantizer: Node, tensors: Tensors | None = None) -> tuple[AffineParams, QuantSpec]:
    """Scale, zero point and specification of a calibrated quantizer.

    Args:
        quantizer: The quantizer.
        tensors: Tensors that leaves read; None: those of the module.

    Raises:
        CalibrationError: The quantizer has no range yet.
    """
    spec = quantizer.spec
    scale, zero_point = (leaf_tensor(value, tensors) for value in quantizer.inputs[1:3])
    if not bool(torch.isfinite(scale).all()):
        raise CalibrationError("the quantizer has no range yet", where=quantizer.where, fix="Calibrate first.")
    return AffineParams(scale, zero_point, spec.axis if scale.dim() else None), spec


def weight_codes(quantizer: Node, weight: Tensor, tensors: Tensors | None = None) -> Tensor:
    """The integers that represent a weight in sums of products, int64: codes times the factors of their blocks.

    Args:
        quantizer: Quantizer of the weight.
        weight: The weight.
        tensors: Tensors that leaves read; None: those of the module.

    Raises:
        CalibrationError: The quantizer has no range yet.
    """
    params, spec = grid(quantizer, tensors)
    factors = spread_factors(spec, weight, [leaf_tensor(value, tensors) for value in quantizer.inputs[3:]])
    codes = quantize(weight, params.scale, params.zero_point, spec, factors=factors).to(torch.int64)
    return codes if factors is None else codes * factors


def weight_steps(quantizer: Node, weight: Tensor) -> Tensor:
    """The distance of two neighbouring codes of each weight, float32, to broadcast with `weight`.

    The scale of the tensor or of the channel; in a grid with blocks, that times the factor of the block.

    Raises:
        CalibrationError: The quantizer has no range yet.
    """
    params, spec = grid(quantizer)
    scale = along_axis(params.scale, weight.dim(), params.axis)
    factors = spread_factors(spec, weight, [leaf_tensor(value) for value in quantizer.inputs[3:]])
    return scale if factors is None else scale * factors


def code_limits(quantizer: Node) -> tuple[int, int]:
    """Lowest and highest code of the quantizer."""
    return quantizer.integer("qmin", quantizer.spec.qmin), quantizer.integer("qmax", quantizer.spec.qmax)


def border_code(pad: Node, params: AffineParams, limits: tuple[int, int]) -> int:
    """The code of the border that `pad` adds, on the grid of its operand.

    Args:
        pad: A `pad` of a QUANTIZED graph.
        params: Scale and zero point of the operand.
        limits: Lowest and highest code of the operand, used if no quantizer supplies the limits of the grid.
    """
    source = quantizer_of(pad.inputs[0])
    low, high = limits if source is None else (source.spec.qmin, source.spec.qmax)
    real = torch.tensor(pad.number("value"))
    wide = QuantSpec(bits=32)  # wider than any grid: the limits are applied afterwards
    return min(max(int(quantize(real, params.scale, params.zero_point, wide)), low), high)


def with_zero(pool: Node, params: AffineParams, limits: tuple[int, int]) -> tuple[int, int]:
    """Lowest and highest code of an average over windows, from those of its operand: padding zeros may be counted."""
    if not (any(pool.integers("padding")) and pool.flag("count_include_pad")):
        return limits
    zero_point = int(params.zero_point)
    return min(limits[0], zero_point), max(limits[1], zero_point)


def activation_bounds(node: Node) -> tuple[float, float]:
    """The real interval that an activation clamps to: that of its attributes, or of a `relu`, which has none."""
    return node.number("min", 0.0), node.number("max", math.inf)


def clamps_channels(node: Node) -> bool:
    """Whether `node` clamps each channel between limits of its own."""
    return node.definition.has(Trait.CLAMP) and not node.definition.has(Trait.ACTIVATION)


def channel_bounds(node: Node) -> tuple[Tensor, Tensor]:
    """The real intervals that a node clamps its channels to, [C] each; see `clamps_channels`."""
    low, high = (leaf_tensor(value) for value in node.inputs[1:])
    return low, high


def clamped_limits(
    low: float, high: float, params: AffineParams, spec: QuantSpec, qmin: int, qmax: int
) -> tuple[int, int]:
    """The code limits that replace a real clamp to [low, high] before a quantizer.

    Rounding is monotone, so quantize(clamp(x, low, high)) = clamp(quantize(x), quantize(low), quantize(high)).
    """
    limits = [
        limit if math.isinf(real) else int(quantize(torch.tensor(real), params.scale, params.zero_point, spec))
        for real, limit in ((low, qmin), (high, qmax))
    ]
    low_code, high_code = (min(max(limit, qmin), qmax) for limit in limits)
    return low_code, high_code


def channel_limits(
    low: Tensor, high: Tensor, params: AffineParams, spec: QuantSpec, qmin: int, qmax: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`clamped_limits` per channel, for intervals [low, high]: lowest and highest codes."""
    least, most = (
        torch.where(ends.isinf(), limit, quantize(ends, params.scale, params.zero_point, spec).long()).clamp(qmin, qmax)
        for ends, limit in ((low, qmin), (high, qmax))
    )
    return tuple(least.tolist()), tuple(most.tolist())
