"""Ranges without data: what batch norms know of their outputs, carried through the graph.

A value is described per channel by mean and standard deviation and by hard limits from activations. The rules are exact
for independent normal channels; a quantizer's range is

    [min_c(mean - alpha * std), max_c(mean + alpha * std)], cut to the limits.

Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (batch normalization based range setting).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from qcompiler.calibration import gaussian
from qcompiler.calibration.gaussian import Gaussian
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import LEAVES, interpret_with
from qcompiler.ir.registry import Trait
from qcompiler.ops.borders import border
from qcompiler.ops.quantizers import activation_bounds, channel_bounds, leaf_tensor

DEFAULT_INPUT_RANGE = (-3.0, 3.0)
"""Assumed for float inputs without data: three standard deviations of inputs normalized to mean 0 and deviation 1."""


@dataclass(frozen=True)
class Distribution:
    """Per-channel normal approximation with hard limits.

    Args:
        moments: Of the channels; of one channel when all are alike.
        low: No element is below.
        high: No element is above.
    """

    moments: Gaussian
    low: float = -math.inf
    high: float = math.inf

    def range(self, alpha: float) -> tuple[float, float]:
        """Lowest and highest value expected."""
        low, high = self.moments.range(alpha)
        return max(float(low), self.low), min(float(high), self.high)

    def clamp(self, low: float, high: float) -> Distribution:
        """After clipping to [low, high]."""
        return Distribution(gaussian.clamp(self.moments, low, high), max(self.low, low), min(self.high, high))

    def clamp_channels(self, low: Tensor, high: Tensor) -> Distribution:
        """After clipping each channel to its own [low, high]."""
        moments = gaussian.clamp(self.spread(low.numel()).moments, low, high)
        return Distribution(moments, max(self.low, float(low.min())), min(self.high, float(high.max())))

    def clamped_range(self, alpha: float, low: Tensor, high: Tensor) -> tuple[float, float]:
        """Lowest and highest value expected once each channel is clipped to its own [low, high].

        A channel reaches its cap only as far as its own tail goes: a high cap counts for nothing above a low channel.
        """
        mean, reach = self.moments.mean, alpha * self.moments.std
        lowest = (mean - reach).clamp(self.low, self.high).clamp(low, high)
        highest = (mean + reach).clamp(self.low, self.high).clamp(low, high)
        return float(lowest.min()), float(highest.max())

    def negated(self) -> Distribution:
        """With the other sign."""
        return Distribution(gaussian.scale(self.moments, -1.0), -self.high, -self.low)

    def spread(self, channels: int) -> Distribution:
        """With one entry per channel."""
        count = self.moments.mean.numel()
        if count == channels:
            return self
        moments = Gaussian(self.moments.mean.expand(channels), self.moments.std.expand(channels))
        return Distribution(moments, self.low, self.high)


def activation_ranges(graph: Graph, input_range: tuple[float, float], alpha: float) -> dict[Value, tuple[float, float]]:
    """Ranges of the values that follow from batch-norm statistics and the range of the inputs.

    Args:
        graph: CANONICAL or QUANTIZED, batch norms folded.
        input_range: Of every float input.
        alpha: Standard deviations to each side.

    Returns:
        Real (low, high) by value; values whose distribution is unknown are absent.
    """
    ranges: dict[Value, tuple[float, float]] = {}
    known: dict[Value, Distribution] = {}

    def observe(value: Value, item: Distribution | None) -> None:
        if item is not None:
            known[value], ranges[value] = item, item.range(alpha)

    interpret_with(graph, _inputs(graph, input_range), _rule, observe)
    for value in graph.inputs:
        ranges[value] = input_range
    for node in graph.nodes:
        span = _capped(node, known, alpha) or _span(node, ranges)
        if span is not None:
            ranges[node.output] = span
            known.pop(node.output, None)  # from here on the span knows better than clipped moments
    return ranges


def _capped(node: Node, known: Mapping[Value, Distribution], alpha: float) -> tuple[float, float] | None:
    """The range behind a clamp per channel right behind what is known channel by channel; None for any other."""
    x = known.get(node.inputs[0]) if node.op == "clamp_channels" else None
    if x is None:
        return None
    low, high = channel_bounds(node)
    fits = x.moments.mean.numel() in (1, low.numel())
    return x.clamped_range(alpha, low.to(torch.float64), high.to(torch.float64)) if fits else None


def activation_means(graph: Graph, input_range: tuple[float, float]) -> dict[Value, Tensor]:
    """Means per channel, float64, of the values whose distribution follows from batch-norm statistics.

    Args:
        graph: CANONICAL or QUANTIZED, batch norms folded.
        input_range: Of every float input.

    Returns:
        [C], or one number for all channels, by value.
    """
    means: dict[Value, Tensor] = {}

    def observe(value: Value, item: Distribution | None) -> None:
        if item is not None:
            means[value] = item.moments.mean

    interpret_with(graph, _inputs(graph, input_range), _rule, observe)
    return means


def _inputs(graph: Graph, input_range: tuple[float, float]) -> list[Distribution | None]:
    """Normal numbers, three standard deviations of which span the range."""
    middle, half = (input_range[0] + input_range[1]) / 2, (input_range[1] - input_range[0]) / 2
    normal = Gaussian(torch.tensor([middle]), torch.tensor([half / 3.0]))
    return [Distribution(normal, *input_range) for _ in graph.inputs]


def _span(node: Node, ranges: Mapping[Value, tuple[float, float]]) -> tuple[float, float] | None:
    """The range of a result whose values are those of the operands, moved or cut; None for any other.

    The tail of an operand decides what its clipped values reach. The clipped moments would not do: where most of the
    mass is cut off, their mean + alpha * std is a fraction of it.
    """
    is_activation, is_movement = node.definition.has(Trait.ACTIVATION), node.definition.has(Trait.MOVEMENT)
    if not (is_activation or is_movement or node.op in ("clamp_channels", "fake_quantize", "resize")):
        return None
    operands = node.inputs if is_movement else node.inputs[:1]
    spans = [ranges[value] for value in operands if value in ranges]
    if len(spans) < len(operands):
        return None
    value = border(node)
    if value is not None and math.isfinite(value):
        spans.append((value, value))
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    if node.op == "clamp_channels":
        ends = [torch.tensor(end).clamp(*channel_bounds(node)) for end in (low, high)]
        return float(ends[0].min()), float(ends[1].max())
    least, most = activation_bounds(node) if is_activation else (-math.inf, math.inf)
    return min(max(low, least), most), min(max(high, least), most)


def _rule(node: Node, operands: Sequence[Distribution | None]) -> tuple[Distribution | None, ...]:
    return (None,) * len(node.outputs) if node.op == "call" else (_distribution(node, operands),)


def _distribution(node: Node, operands: Sequence[Distribution | None]) -> Distribution | None:
    statistics = node.attributes.get("statistics")
    if statistics is not None:
        mean, std = node.graph.module.tensors[str(statistics)]
        return Distribution(Gaussian(mean, std))
    if node.op in LEAVES or not operands or operands[0] is None:
        return None
    x = operands[0]
    if node.op == "layer_norm":
        return _normalized(node)
    if node.definition.has(Trait.ACTIVATION):
        return x.clamp(*activation_bounds(node))
    if node.op == "clamp_channels":
        low, high = channel_bounds(node)
        return x.clamp_channels(low, high) if x.moments.mean.numel() in (1, low.numel()) else None
    if node.op in ("fake_quantize", "avg_pool2d", "adaptive_avg_pool2d", "resize", "mean", "max_pool2d"):
        return x
    if node.op == "concat":
        return _concat(node, operands)
    if node.op in ("add", "sub") and operands[1] is not None:
        return _add(x, operands[1] if node.op == "add" else operands[1].negated())
    if node.op == "reshape":
        return _reshape(node, x)
    if node.definition.has(Trait.MOVEMENT):
        keeps_channels = node.op in ("pad", "dropout") or (node.op == "slice" and node.attributes["axis"] != 1)
        return x if x.moments.mean.numel() == 1 or keeps_channels else None
    if node.op in ("linear", "conv1d", "conv2d", "conv3d"):  # a transposed one sums other taps at each position
        return _mac(node, x)
    return None


def _normalized(node: Node) -> Distribution:
    """Behind a layer norm an element is N(bias, weight^2): all of them as one, for the axis is that of no channel."""
    weight, bias = (_weight(value).to(torch.float64) for value in node.inputs[1:])
    mean = bias.mean()
    std = (weight.square() + bias.square()).mean().sub(mean.square()).clamp(min=0).sqrt()
    return Distribution(Gaussian(mean.reshape(1), std.reshape(1)))


def _concat(node: Node, operands: Sequence[Distribution | None]) -> Distribution | None:
    parts: list[Distribution] = []
    for item, value in zip(operands, node.inputs, strict=True):
        channels = value.type.shape[1] if value.type.rank > 1 else None
        if item is None or not isinstance(channels, int) or node.attributes["axis"] != 1:
            return None
        parts.append(item.spread(channels))
    moments = Gaussian(torch.cat([p.moments.mean for p in parts]), torch.cat([p.moments.std for p in parts]))
    return Distribution(moments, min(p.low for p in parts), max(p.high for p in parts))


def _add(x: Distribution, y: Distribution) -> Distribution:
    channels = max(x.moments.mean.numel(), y.moments.mean.numel())
    moments = gaussian.add(x.spread(channels).moments, y.spread(channels).moments)
    return Distribution(moments, x.low + y.low, x.high + y.high)


def _reshape(node: Node, x: Distribution) -> Distribution | None:
    if x.moments.mean.numel() == 1:
        return x
    before, after = node.inputs[0].type.shape, node.output.type.shape
    if len(before) != 4 or len(after) != 2 or not isinstance(before[1], int) or not isinstance(after[1], int):
        return None
    # Flattened images: the pixels of a channel lie side by side.
    pixels = after[1] // before[1]
    moments = Gaussian(x.moments.mean.repeat_interleave(pixels), x.moments.std.repeat_interleave(pixels))
    return Distribution(moments, x.low, x.high)


def _mac(node: Node, x: Distribution) -> Distribution:
    weight = _weight(node.inputs[1])
    groups = int(cast("int", node.attributes.get("groups", 1)))
    bias = _weight(node.inputs[2]) if len(node.inputs) > 2 else None
    inputs = x.spread(weight.shape[1] * groups).moments
    return Distribution(gaussian.linear(inputs, weight, bias, groups))


def _weight(value: Value) -> Tensor:
    """The float tensor behind a quantizer or a leaf."""
    producer = value.producer
    if producer is not None and producer.op in ("fake_quantize", "fake_quantize_bias"):
        return leaf_tensor(producer.inputs[0])
    return leaf_tensor(value)
