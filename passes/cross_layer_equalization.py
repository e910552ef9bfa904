"""Rescale layers against each other until all channels of every weight have similar ranges.

    A: W1, b1 ──► relu ──► B: W2        becomes        W1 / s, b1 / s ──► relu ──► W2 * s

with one s > 0 per channel, so the result of the model is unchanged. For channel i with ranges r1 = max|W1[i]| and
r2 = max|W2[:, i]|,

    s_i = sqrt(r1_i / r2_i)        after which both ranges are sqrt(r1_i r2_i)

A single scale per weight then suits all channels. Pairs are visited in turn until no factor differs from 1 by more than
`tolerance`. For a depthwise layer between two others, all three ranges converge to (m0 m1 m2)^(1/3). If several layers
read the channels, r2 is the largest of their ranges; the parts of a concat are rescaled separately.

A clamp between the layers keeps its effect with limits per channel, on targets that support them:

    A: W1, b1 ──► clamp(0, 6) ──► B: W2      becomes      W1 / s, b1 / s ──► clamp_channels(0, 6 / s) ──► W2 * s

and so does a function in a lookup table, if each channel may have its own table:

    A: W1, b1 ──► silu ──► B: W2             becomes      W1 / s, b1 / s ──► silu(x s) / s ──► W2 * s

For tables s is rounded to a quarter of an octave, so that many channels share a table.

Equal ranges of weights ignore biases and activations: a channel with a tiny weight and a large bias gets values that
are far larger than those of all others. The default pipeline therefore uses `factors=noise`; decision 38.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1; Nagel et al. 2021, arXiv:2106.08295, section 3.2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.ir.events import Message, Sentence
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.layers import Layer
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.channel_limits import keeps_caps, limits_of, set_limits
from qcompiler.passes.common.channel_noise import ScaledLayer, Widths, scaled_layers
from qcompiler.passes.common.channel_tables import scales_of, set_scales
from qcompiler.passes.common.equalization import FOREIGN, Group, factor_of, forget_ranges, groups
from qcompiler.passes.common.kept_factors import kept_steps, written
from qcompiler.passes.common.supergroups import ends_supergroup
from qcompiler.validation.contracts import THRESHOLDS, Contract

RESCALED = Sentence("channels-rescaled", "its channels are rescaled with the inverse in {layers}")
LIMITS_RESCALED = Sentence("limits-rescaled", "its limits are multiplied by {least:.4g} to {most:.4g}")
TABLES_RESCALED = Sentence(
    "tables-rescaled", "its channels are multiplied by {least:.4g} to {most:.4g}, with one table per channel"
)

TABLE_STEPS = 4
"""Number of factors per octave for channels with a table."""


@dataclass(frozen=True)
class CrossLayerEqualization(Pass):
    """Equalize the ranges of weights, on CANONICAL and on QUANTIZED graphs alike.

    Refuses, with layer and reason: paths to an output, an addition, a product of channels with each other, a function
    that does not commute with a factor, or a layer that shares its weight; paths through a clamp with two limits on
    targets without limits per channel (see `replace-relu6`); and paths through a table on targets without tables per
    channel.

    On a QUANTIZED graph the quantizers in between lose their ranges, because their values change.

    Args:
        tolerance: Largest |s - 1| at which the ranges count as equal.
        rounds: Maximum number of visits of each pair.
        factors: `ranges`: make ranges equal, as in the papers. `noise`: the factors with the least expected noise of
            the outputs, from weights, biases, activations and sensitivities; a group that gains nothing stays as it
            is. Needs a target; reads calibration data if there is any. The record gives the expected signal-to-noise
            ratio of layers and activations before and after, dB.

    Raises:
        InputError: An option is out of range.
        PassError: `factors` is `noise`, and there is no target.
    """

    name: ClassVar[str] = "cross-layer-equalization"
    requires: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})
    tolerance: float = 0.01
    rounds: int = 100
    factors: Literal["ranges", "noise"] = "ranges"

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or self.rounds < 1:
            raise InputError(
                f"tolerance={self.tolerance} and rounds={self.rounds}",
                expected="a tolerance above 0 and at least 1 round",
            )

    @property
    def contract(self) -> Contract:
        """Factors are rounded once, and sums of rescaled products are rounded differently."""
        return THRESHOLDS[self.name]

    def prepare(self, graph: Graph, context: PassContext) -> bool:
        """Remove the ranges of quantizers whose values change."""
        return forget_ranges(_groups(graph, context), context.rewriter(graph), weights=True)

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        rewriter = context.rewriter(graph)
        found = list(_groups(graph, context, rewriter.refuse))
        layers = scaled_layers(found)
        before = _spread(list(layers.values()))
        if self.factors == "noise" and found:
            widths = Widths(context.require_target(self.name))
            steps = kept_steps(graph, context, found, layers, widths, Layer.of)
            kept = [group for group in found if group.producer in steps]
        else:
            steps = {}
            kept = self._equalize(context, found, layers)
        for group in kept:
            if group.tables:
                _round_factors(group, layers)
        for layer in layers.values():
            layer.write(rewriter)
        _rescale_between(kept, layers, rewriter)
        for group in kept:
            names = tuple(consumer.node.name for consumer in group.consumers)
            data = written(steps[group.producer]) if group.producer in steps else {}
            rewriter.note(group.producer, RESCALED(layers=names, **data))
        context.record.metrics.update(pairs=len(kept))
        context.record.metrics.update(spread_before=before, spread_after=_spread(list(layers.values())))

    def _equalize(self, context: PassContext, found: list[Group], layers: dict[Node, ScaledLayer]) -> list[Group]:
        """Make ranges equal in all groups."""
        rounds, largest = 0, math.inf
        while found and rounds < self.rounds and largest > self.tolerance:
            largest, rounds = max(_equalize(group, layers) for group in found), rounds + 1
        context.record.metrics.update(rounds=rounds)
        return found


def _groups(
    graph: Graph, context: PassContext, refused: Callable[[Node, Message], None] | None = None
) -> Iterator[Group]:
    target = context.target
    if target is None:
        return groups(graph, refused, caps=keeps_caps(context))
    has_grid = functools.partial(ends_supergroup, target=target)
    return groups(graph, refused, caps=keeps_caps(context), tables=target.per_channel_table, has_grid=has_grid)


def _equalize(group: Group, layers: dict[Node, ScaledLayer]) -> float:
    """Visit a group once; return the largest |s - 1|."""
    producer = layers[group.producer]
    r1 = producer.row_ranges()
    r2 = torch.zeros_like(r1)
    for consumer in group.consumers:
        own = consumer.channels != FOREIGN
        ranges = layers[consumer.node].column_ranges()[own]
        r2 = r2.scatter_reduce(0, consumer.channels[own], ranges, "amax")
    s = torch.where((r1 > 0) & (r2 > 0), (r1 / r2).sqrt(), 1.0)
    s = torch.where(s.isfinite() & (s > 0), s, 1.0)
    producer.scale_rows(1 / s)
    for consumer in group.consumers:
        layers[consumer.node].scale_columns(factor_of(consumer.channels, s))
    return float((s - 1).abs().max())


def _round_factors(group: Group, layers: dict[Node, ScaledLayer]) -> None:
    """Round the factors of a group to a grid, by at most 9 %, so that its channels need only a few tables."""
    producer = layers[group.producer]
    rows = producer.rows.reshape(-1)
    change = (rows.log2() * TABLE_STEPS).round().div(TABLE_STEPS).exp2() / rows
    producer.scale_rows(change)
    for consumer in group.consumers:
        layers[consumer.node].scale_columns(factor_of(consumer.channels, 1 / change))


def _rescale_between(found: Sequence[Group], layers: dict[Node, ScaledLayer], rewriter: Rewriter) -> None:
    """Multiply the limits of clamps by the factors of their channels, and divide scales of tables by them."""
    factors: dict[Node, tuple[int, Tensor]] = {}
    for group in found:
        rows = layers[group.producer].rows.reshape(-1)
        for item in (*group.caps, *group.tables):
            _, product = factors.setdefault(item.node, (item.axis, torch.ones(len(item.channels), dtype=torch.float64)))
            own = item.channels != FOREIGN
            product[own] *= rows[item.channels[own]]
    for node, (axis, product) in factors.items():
        least, most = float(product.min()), float(product.max())
        if not node.definition.has(Trait.CLAMP):
            scaled = set_scales(node, scales_of(node, len(product)) / product, axis, rewriter)
            rewriter.note(scaled, TABLES_RESCALED(least=least, most=most))
            continue
        low, high = (limit * product for limit in limits_of(node, len(product)))
        rewriter.note(set_limits(node, low, high, axis, rewriter), LIMITS_RESCALED(least=least, most=most))


def _spread(layers: Sequence[ScaledLayer]) -> float:
    """The largest ratio over the layers of the widest channel range to the median."""
    ratios = []
    for layer in layers:
        ranges = layer.row_ranges()
        ranges = ranges[ranges > 0]
        if ranges.numel():
            ratios.append(float(ranges.max() / ranges.median()))
    return max(ratios, default=1.0)
