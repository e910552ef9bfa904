"""Scale down outlier channels of activations and scale up the weights that read them.

    layer_norm: g, b ──► B: W        becomes        g / s, b / s ──► B: W * s

with one s > 0 per channel, so the result of the model is unchanged. Activations have one scale for all channels, so a
few channels of a transformer that are a hundred times larger leave only a few codes for the others, while weights have
unused codes. For channel j with max|X[j]| on the calibration data and max|W[:, j]| over all its readers,

    s_j = max|X[j]|^alpha / max|W[:, j]|^(1 - alpha)

alpha = 1 equalizes the channels of the activation, alpha = 0 those of the weights; with 1/2 each channel of both has
the range sqrt(max|X[j]| max|W[:, j]|) afterwards. Cross-layer equalization does the same for a weight and the next
weight.

1 / s goes into the producer of the channels: a layer (including a batch norm without a layer to fold into), the weight
and bias of a layer norm, or the constant of a product. In a chain of groups the last group is first, so that a group
sees the final weights of its readers, except for its own factors.

The formula ignores how much each tensor matters, and moves noise from activations to weights even where the weights
have less to spare. The default pipeline therefore uses `factors=noise`, which keeps factors where the expected noise of
the outputs falls; decision 45.

Source: Xiao et al. 2023, arXiv:2211.10438, section 4, equations 3 and 4.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qcompiler.calibration.observers import MinMaxObserver, Observer
from qcompiler.calibration.runner import observe
from qcompiler.errors import InputError, PassError
from qcompiler.ir.events import Message, Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantizers import is_leaf
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.channel_noise import Widths, scaled_layers
from qcompiler.passes.common.equalization import (
    FOREIGN,
    Consumer,
    Group,
    constant_factor,
    factor_of,
    forget_ranges,
    groups,
    producer_axis,
    scale_constants,
    scale_layer,
)
from qcompiler.passes.common.kept_factors import kept_steps, written
from qcompiler.passes.common.supergroups import ends_supergroup
from qcompiler.passes.common.weighed_factors import factors_of
from qcompiler.validation.contracts import THRESHOLDS, Contract

Magnitudes = dict[Value, Tensor]
"""Ranges of the inputs of layers: the largest absolute value of each channel, float64 [C]."""


SMOOTHED = Sentence("channels-smoothed", "its channels are divided by {least:.4g} to {most:.4g} for {layers}")
SEVERAL_AXES = Sentence("channel-read-along-several-axes", "its only channel is read along several axes")


@dataclass(frozen=True)
class SmoothActivations(Pass):
    """Balance activations against the weights that read them, on CANONICAL and on QUANTIZED graphs alike.

    Intended for transformers, and for targets with one weight scale per channel: with a single scale, smoothing would
    undo the equalization of a convolution that produces the channels.

    Refuses, with node and reason: paths to an output, to an addition or another op that does not commute with a factor
    per channel, or to a layer that shares its weight; and products with a constant without channels.

    On a QUANTIZED graph the quantizers in between lose their ranges, because their values change.

    Args:
        alpha: Share of the activation range that moves to the weights, in [0, 1]; for `factors=ranges`.
        factors: `ranges`: the formula of the paper. `noise`: the factors with the least expected noise of the outputs,
            from weights, activations and sensitivities, for layer norms and products with a constant; a group that
            gains nothing stays as it is, and layers are left to `cross-layer-equalization{factors=noise}`. Needs a
            target; without calibration data the weights of layer norms give the ranges.

    Raises:
        InputError: `alpha` is out of range.
        PassError: There is no calibration data, or `factors` is `noise`, and there is no target.
    """

    name: ClassVar[str] = "smooth-activations"
    requires: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})
    alpha: float = 0.5
    factors: Literal["ranges", "noise"] = "ranges"

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"alpha={self.alpha}", expected="a number from 0 to 1")

    @property
    def contract(self) -> Contract:
        """Factors are rounded once, and sums of rescaled products are rounded differently."""
        return THRESHOLDS[self.name]

    def prepare(self, graph: Graph, context: PassContext) -> bool:
        """Remove the ranges of quantizers whose values change."""
        return forget_ranges(groups(graph, may_produce=self._may_produce), context.rewriter(graph), weights=True)

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        if self.factors == "noise":
            self._lower_noise(graph, context)
        else:
            self._balance_ranges(graph, context)

    def _may_produce(self, node: Node) -> bool:
        """Whether the parameters of `node` can absorb a factor per channel of the result, and this pass decides it."""
        if node.op == "layer_norm":
            per_channel = node.inputs[1].type.shape[-1:] == node.output.type.shape[-1:]
            return per_channel and all(is_leaf(leaf_of(value)) for value in node.inputs[1:])
        return constant_factor(node) is not None or (self.factors == "ranges" and Layer.of(node) is not None)

    def _lower_noise(self, graph: Graph, context: PassContext) -> None:
        """Take the factors with the least expected noise."""
        widths = Widths(context.require_target(self.name))
        rewriter = context.rewriter(graph)
        has_grid = functools.partial(ends_supergroup, target=widths.target)
        found = list(groups(graph, rewriter.refuse, may_produce=self._may_produce, has_grid=has_grid))
        layers = scaled_layers(found)
        steps = kept_steps(graph, context, found, layers, widths, self._may_produce) if found else {}
        for layer in layers.values():
            layer.write(rewriter)
        for group in found:
            if group.producer in steps:
                s = factors_of(steps[group.producer])
                rewriter.note(group.producer, _smoothed(group, s, written(steps[group.producer])))
        context.record.metrics.update(groups=len(steps))

    def _balance_ranges(self, graph: Graph, context: PassContext) -> None:
        """Apply the formula of the module text to all groups."""
        if context.calibration_data is None:
            raise PassError("without calibration_data the size of activations is unknown", fix="Pass calibration_data.")
        rewriter = context.rewriter(graph)
        found = list(self._found(graph, rewriter))
        magnitudes = _observed(graph, context, context.calibration_data, found)
        before = _spread(magnitudes)
        for group in reversed(found):
            s = self._factors(group, magnitudes)
            _divide(group.producer, s, rewriter)
            smoothed: Magnitudes = {}
            for consumer in group.consumers:
                value, factor = consumer.node.inputs[0], factor_of(consumer.channels, s)
                scale_layer(Layer(consumer.node), rewriter, inputs=factor)
                smoothed[value] = magnitudes[value] / factor
            magnitudes.update(smoothed)
            rewriter.note(group.producer, _smoothed(group, s))
        context.record.metrics.update(groups=len(found), spread_before=before, spread_after=_spread(magnitudes))

    def _found(self, graph: Graph, rewriter: Rewriter) -> Iterator[Group]:
        for group in groups(graph, rewriter.refuse, may_produce=self._may_produce):
            if all(len(axes) == 1 for axes in _axes(group).values()):
                yield group
            else:
                rewriter.refuse(group.producer, SEVERAL_AXES())

    def _factors(self, group: Group, magnitudes: Magnitudes) -> Tensor:
        """s of the module docstring, float64; 1 for a channel that is always zero or unused."""
        producer = group.producer
        count = producer.output.type.size(producer_axis(producer))
        x, w = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
        for consumer in group.consumers:
            own = consumer.channels != FOREIGN
            channels = consumer.channels[own]
            x = x.scatter_reduce(0, channels, magnitudes[consumer.node.inputs[0]][own], "amax")
            w = w.scatter_reduce(0, channels, _column_ranges(consumer)[own], "amax")
        s = x**self.alpha / w ** (1.0 - self.alpha)
        return torch.where((x > 0) & (w > 0), s, 1.0)


def _smoothed(group: Group, s: Tensor, data: Mapping[str, str] = MappingProxyType({})) -> Message:
    """The event of a group with these factors."""
    names = tuple(consumer.node.name for consumer in group.consumers)
    return SMOOTHED(least=float(s.min()), most=float(s.max()), layers=names, **data)


def _axes(group: Group) -> dict[Value, set[int]]:
    """Channel axes of the inputs of the group's layers."""
    axes: dict[Value, set[int]] = {}
    for consumer in group.consumers:
        value = consumer.node.inputs[0]
        axes.setdefault(value, set()).add(Layer(consumer.node).input_axis)
    return axes


def _observed(
    graph: Graph, context: PassContext, batches: Iterable[list[Tensor]], found: Sequence[Group]
) -> Magnitudes:
    observers: dict[Value, Observer] = {
        value: MinMaxObserver(value.name, axis) for group in found for value, (axis,) in _axes(group).items()
    }
    if observers:
        _, observers = observe(graph, batches, observers, context.processes, context.progress)
    ranges = {value: observer.range() for value, observer in observers.items()}
    return {value: torch.maximum(-low, high).to(torch.float64) for value, (low, high) in ranges.items()}


def _column_ranges(consumer: Consumer) -> Tensor:
    """max|W| of each input channel, float64."""
    return Layer(consumer.node).rows().abs().amax((1, 3)).reshape(-1).to(torch.float64)


def _divide(producer: Node, s: Tensor, rewriter: Rewriter) -> None:
    """Divide the channels of the result of `producer`."""
    layer = Layer.of(producer)
    if layer is None:
        scale_constants(producer, rewriter, 1.0 / s)
    else:
        scale_layer(layer, rewriter, outputs=1.0 / s)


def _spread(magnitudes: Magnitudes) -> float:
    """The largest ratio over the activations of the widest channel range to the median."""
    alive = [item[item > 0] for item in magnitudes.values()]
    return max((float(item.max() / item.median()) for item in alive if item.numel()), default=1.0)
