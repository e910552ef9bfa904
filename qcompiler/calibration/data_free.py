"""Ranges without data: what batch norms know of their outputs, carried through the graph.

A value is described per channel by mean and standard deviation and by hard limits from activations. The rules are exact
for independent normal channels; a quantizer's range is

    [min_c(mean - alpha * std), max_c(mean + alpha * std)], cut to the limits.

Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (batch normalization based range setting).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import LEAVES, interpret_with
from qcompiler.ir.registry import Trait
from qcompiler.ops.quantizers import activation_bounds, leaf_tensor


@dataclass(frozen=True)
class Distribution:
    """Per-channel normal approximation with hard limits.

    Args:
        mean: float64 [C], or [1] when all channels are alike.
        std: float64, as `mean`.
        low: No element is below.
        high: No element is above.
    """

    mean: Tensor
    std: Tensor
    low: float = -float("inf")
    high: float = float("inf")

    def range(self, alpha: float) -> tuple[float, float]:
        """Lowest and highest value expected."""
        low = float((self.mean - alpha * self.std).min())
        high = float((self.mean + alpha * self.std).max())
        return max(low, self.low), min(high, self.high)

    def clamp(self, low: float, high: float) -> Distribution:
        """Moments of the normal clipped to [low, high], in closed form."""
        std = self.std.clamp(min=1e-12)
        a, b = (low - self.mean) / std, (high - self.mean) / std
        inside = torch.special.ndtr(b) - torch.special.ndtr(a)
        pa, pb = _pdf(a), _pdf(b)
        first = self.mean * inside + std * (pa - pb)
        at_a = torch.zeros_like(a) if low == -float("inf") else a * pa
        at_b = torch.zeros_like(b) if high == float("inf") else b * pb
        second = (self.mean**2 + std**2) * inside + 2 * self.mean * std * (pa - pb) + std**2 * (at_a - at_b)
        for limit, weight in ((low, torch.special.ndtr(a)), (high, torch.special.ndtr(-b))):
            if abs(limit) < float("inf"):
                first = first + limit * weight
                second = second + limit**2 * weight
        variance = (second - first**2).clamp(min=0.0)
        # The tail of the unclipped normal decides the range; the clipped moments would cut it short.
        return Distribution(first, variance.sqrt(), max(self.low, low), min(self.high, high))


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

    def observe(value: Value, item: Distribution | None) -> None:
        if item is not None:
            ranges[value] = item.range(alpha)

    middle, half = (input_range[0] + input_range[1]) / 2, (input_range[1] - input_range[0]) / 2
    inputs: list[Distribution | None] = [
        Distribution(_scalar(middle), _scalar(half / 3.0), *input_range) for _ in graph.inputs
    ]
    for value in graph.inputs:
        ranges[value] = input_range
    interpret_with(graph, inputs, _rule, observe)
    for value in graph.inputs:
        ranges[value] = input_range
    for node in graph.nodes:
        # A clamp cuts the range of what it reads, not that of the clipped moments.
        if node.definition.has(Trait.ACTIVATION) and node.inputs[0] in ranges:
            low, high = activation_bounds(node)
            source = ranges[node.inputs[0]]
            ranges[node.output] = (max(source[0], low), min(max(source[1], low), high))
    return ranges


def _rule(node: Node, operands: Sequence[Distribution | None]) -> tuple[Distribution | None, ...]:
    return (_distribution(node, operands),)


def _distribution(node: Node, operands: Sequence[Distribution | None]) -> Distribution | None:
    statistics = node.attributes.get("statistics")
    if statistics is not None:
        mean, std = node.graph.module.tensors[str(statistics)].to(torch.float64)
        return Distribution(mean, std)
    if node.op in LEAVES or not operands or operands[0] is None:
        return None
    x = operands[0]
    if node.definition.has(Trait.ACTIVATION):
        return x.clamp(*activation_bounds(node))
    if node.op in ("fake_quantize", "avg_pool2d", "mean", "max_pool2d"):
        return x
    if node.op == "concat":
        if any(item is None for item in operands):
            return None
        items = [_spread(cast("Distribution", item), value) for item, value in zip(operands, node.inputs, strict=True)]
        low, high = min(i.low for i in items), max(i.high for i in items)
        return Distribution(torch.cat([i.mean for i in items]), torch.cat([i.std for i in items]), low, high)
    if node.op == "add" and operands[1] is not None:
        y = operands[1]
        return Distribution(x.mean + y.mean, (x.std**2 + y.std**2).sqrt(), x.low + y.low, x.high + y.high)
    if node.op == "reshape" and node.inputs[0].type.rank == 4 and node.output.type.rank == 2:
        channels, features = node.inputs[0].type.shape[1], node.output.type.shape[1]
        if isinstance(channels, int) and isinstance(features, int) and x.mean.numel() == channels:
            repeat = features // channels
            return Distribution(x.mean.repeat_interleave(repeat), x.std.repeat_interleave(repeat), x.low, x.high)
        return x if x.mean.numel() == 1 else None
    if node.definition.has(Trait.MOVEMENT):
        return x if x.mean.numel() == 1 or (node.op in ("pad", "slice") and node.attributes.get("axis") != 1) else None
    if node.op in ("linear", "conv2d"):
        return _mac(node, x)
    return None


def _mac(node: Node, x: Distribution) -> Distribution:
    """Sums of independent inputs: mean W mean + b, variance W^2 variance."""
    weight = _weight(node.inputs[1]).to(torch.float64)
    groups = int(cast("int", node.attributes.get("groups", 1)))
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    total = weight.shape[1] * groups
    mean, variance = (v.expand(total).reshape(groups, 1, -1, 1) for v in (x.mean, x.std**2))
    out_mean = (grouped * mean).sum((2, 3)).reshape(-1)
    out_variance = (grouped**2 * variance).sum((2, 3)).reshape(-1)
    if len(node.inputs) > 2:
        out_mean = out_mean + _weight(node.inputs[2]).to(torch.float64)
    return Distribution(out_mean, out_variance.sqrt())


def _weight(value: Value) -> Tensor:
    """The float tensor behind a quantizer or a leaf."""
    producer = value.producer
    if producer is not None and producer.op in ("fake_quantize", "fake_quantize_bias"):
        return leaf_tensor(producer.inputs[0])
    return leaf_tensor(value)


def _spread(item: Distribution, value: Value) -> Distribution:
    channels = value.type.shape[1]
    if item.mean.numel() > 1 or not isinstance(channels, int):
        return item
    return Distribution(item.mean.expand(channels), item.std.expand(channels), item.low, item.high)


def _pdf(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / (2 * torch.pi) ** 0.5


def _scalar(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)
