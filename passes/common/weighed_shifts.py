"""Shifts of channels that lower the expected noise of a quantized model, for bias absorption.

Moving channel i of an activation by c_i towards zero narrows the range of the whole tensor, but only where the widest
channels move. Four candidates move each channel as little as the ends [L, H] of the range require,

    c_i = min(high_i - H, most_i)  or  max(low_i - L, most_i)        most: the shift that absorption allows

with [L, H] from the narrowest possible range, in quarters, to the present one. Absorption changes the function: values
below c are clipped, and the padding of a reader is too low by c. This change is measured at the outputs of the float
model, and added to the expected noise of the activation and of the weights that read it: an error of a weight counts by
the power of its input, which falls with the mean of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import Evaluation, Tensors, interpret_with
from qcompiler.ops.layers import Layer
from qcompiler.passes.base import PassContext
from qcompiler.passes.common.channel_facts import DEVIATIONS, facts_of
from qcompiler.passes.common.channel_limits import limits_of
from qcompiler.passes.common.channel_noise import (
    Facts,
    Place,
    ScaledLayer,
    Widths,
    places_of,
    scaled_layers,
    whole_noise,
)
from qcompiler.passes.common.equalization import FOREIGN, Group
from qcompiler.passes.common.kept_factors import LEAST_DB
from qcompiler.passes.common.mean_sensitivities import samples_of
from qcompiler.passes.common.weighed_factors import GAIN
from qcompiler.quant.affine import along_axis
from qcompiler.validation.noise import decibels

__all__ = ["LITTLE_GAIN", "NO_GAIN", "weighed_shifts"]

NO_GAIN = Sentence("shift-noise-not-lower", "no shift would lower the expected noise")
LITTLE_GAIN = Sentence(
    "shift-noise-hardly-lower", "all shifts together would lower the expected noise by less than {decibels:g} dB"
)
PARTS = (0.0, 0.25, 0.5, 0.75)
"""Ends of the range, from the narrowest possible one to the present one."""

Ranges = Mapping[Place, tuple[Tensor, Tensor]]
"""Lowest and highest value of each channel, float64 [C] each."""
Shifted = Callable[[Group, Tensor], Iterable[tuple[str, Tensor]]]
"""Names of the biases that a shift of a group changes, and what is added to them, float64."""


def weighed_shifts(
    graph: Graph,
    context: PassContext,
    found: Sequence[Group],
    most: Mapping[Node, Tensor],
    rectified: Callable[[Group], bool],
    shifted: Shifted,
) -> dict[Node, Tensor]:
    """The shift of each channel, float64 [channels], by producer; only of groups that gain.

    Args:
        graph: A CANONICAL or QUANTIZED graph.
        context: Target and calibration data; gets the refusals and the expected figures.
        found: Groups.
        most: The largest shift of each channel, by producer.
        rectified: Whether a group has no values below zero.
        shifted: See `Shifted`.
    """
    widths, rewriter = Widths(context.require_target("absorb-bias")), context.rewriter(graph)
    layers = scaled_layers(found)
    facts = facts_of(graph, context, found, layers)
    total = before = whole_noise(found, layers, facts, widths)
    change = _Change(graph, context)
    ranges = dict(facts.ranges)
    kept: dict[Node, Tensor] = {}
    for group in found:
        zero = torch.zeros_like(most[group.producer])
        now = _noise(group, zero, facts, layers, ranges, widths)
        best, chosen, moved = now, None, ranges
        for c in _candidates(group, most[group.producer], ranges):
            after = _moved(group, c, ranges, rectified(group))
            noise = _noise(group, c, facts, layers, after, widths)
            if noise < now * (1.0 - GAIN):
                noise += change.of(group, c, shifted)
            if noise < min(best, now * (1.0 - GAIN)):
                best, chosen, moved = noise, c, after
        if chosen is not None:
            change.keep(group, chosen, shifted)
            total, kept[group.producer] = total + best - now, chosen
            layers = {**layers, **_readers(group, chosen, layers, ranges)}
            ranges = moved
    context.record.metrics.update(expected_db_before=decibels(before), expected_db_after=decibels(total))
    reason = NO_GAIN()
    if kept and decibels(total) < decibels(before) + LEAST_DB:
        kept, reason = {}, LITTLE_GAIN(decibels=LEAST_DB)
    for group in found:
        if group.producer not in kept:
            rewriter.refuse(group.producer, reason)
    return kept


def _candidates(group: Group, most: Tensor, ranges: Ranges) -> Iterable[Tensor]:
    """Shifts per channel of the producer, without repetitions."""
    low, high = torch.full_like(most, torch.inf), torch.full_like(most, -torch.inf)
    for place, channels in places_of(group).items():
        own = channels != FOREIGN
        low = low.scatter_reduce(0, channels[own], ranges[place][0][own], "amin")
        high = high.scatter_reduce(0, channels[own], ranges[place][1][own], "amax")
    known = low.isfinite() & high.isfinite()
    if not bool(known.any()):
        return
    ends = [(item[known].min(), item[known].max()) for item in (low, high, low - most, high - most)]
    wide, narrow = (ends[0][0], ends[1][1]), (ends[2][0], ends[3][1])
    seen: list[Tensor] = []
    for part in PARTS:
        least, largest = (torch.lerp(inner, outer, part) for outer, inner in zip(wide, narrow, strict=True))
        down = (high - largest).clamp(min=0.0).minimum(most)
        up = (low - least).clamp(max=0.0).maximum(most)
        c = torch.where(known, torch.where(most > 0.0, down, up), 0.0)
        if bool(c.any()) and not any(torch.equal(c, other) for other in seen):
            seen.append(c)
            yield c


def _moved(group: Group, c: Tensor, ranges: Ranges, rectified: bool) -> dict[Place, tuple[Tensor, Tensor]]:
    """The ranges after a shift."""
    after = dict(ranges)
    for place, channels in places_of(group).items():
        shift = torch.where(channels == FOREIGN, 0.0, c[channels.clamp(min=0)])
        low, high = (end - shift for end in ranges[place])
        after[place] = (torch.where(shift != 0.0, low.clamp(min=0.0), low) if rectified else low), high
    return after


def _noise(
    group: Group,
    c: Tensor,
    facts: Facts,
    layers: Mapping[Node, ScaledLayer],
    after: Ranges,
    widths: Widths,
) -> float:
    """The expected noise of the activations of a group with these ranges, and of the weights that read them."""
    before = _moved(group, -c, after, rectified=False)
    total = sum(map(widths.of_weight, _readers(group, c, layers, before).values()))
    for place in places_of(group):
        low, high = after[place]
        tensor = replace(facts.tensors[place], low=low.clamp(max=0.0), high=high.clamp(min=0.0))
        total += widths.of_tensor(tensor)
    return total


def _readers(group: Group, c: Tensor, layers: Mapping[Node, ScaledLayer], before: Ranges) -> dict[Node, ScaledLayer]:
    """The readers of a group after a shift."""
    found = {}
    for consumer in group.consumers:
        low, high = before[consumer.node.inputs[0], Layer(consumer.node).input_axis]
        shift = torch.where(consumer.channels == FOREIGN, 0.0, c[consumer.channels.clamp(min=0)])
        mean, variance = (low + high) / 2, ((high - low) / (2 * DEVIATIONS)).square()
        power = (mean.square() + variance).clamp(min=1e-30)
        found[consumer.node] = layers[consumer.node].attenuated(((mean - shift).square() + variance) / power)
    return found


class _Change:
    """The change of the float model's outputs by shifts, as a share of their power.

    Args:
        graph: The graph before all shifts.
        context: Calibration data, of which the first samples are run.
    """

    def __init__(self, graph: Graph, context: PassContext) -> None:
        self.graph, self.samples = graph, list(samples_of(graph, context))
        self.tensors: dict[str, Tensor] = dict(graph.module.tensors)
        self.limits: dict[Value, tuple[int, Tensor]] = {}
        self.wanted = [self._outputs(sample, self.tensors, {}) for sample in self.samples]
        self.kept = 0.0

    def of(self, group: Group, c: Tensor, shifted: Shifted) -> float:
        """The change by a shift in addition to the kept ones."""
        return self._measured(self._added(shifted(group, c)), self._capped(group, c)) - self.kept

    def keep(self, group: Group, c: Tensor, shifted: Shifted) -> None:
        """Keep a shift."""
        self.limits = self._capped(group, c)
        self.tensors = self._added(shifted(group, c))
        self.kept = self._measured(self.tensors, self.limits)

    def _added(self, shifts: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors after a shift."""
        tensors = dict(self.tensors)
        for name, shift in shifts:
            tensors[name] = (tensors[name].to(torch.float64) + shift).to(tensors[name].dtype)
        return tensors

    def _capped(self, group: Group, c: Tensor) -> dict[Value, tuple[int, Tensor]]:
        """Upper limits of clamps after a shift, by result."""
        limits = dict(self.limits)
        for cap in group.caps:
            _, high = limits.get(cap.node.output, (cap.axis, limits_of(cap.node, len(cap.channels))[1]))
            shift = torch.where(cap.channels == FOREIGN, 0.0, c[cap.channels.clamp(min=0)])
            limits[cap.node.output] = (cap.axis, high - shift)
        return limits

    def _measured(self, tensors: Tensors, limits: Mapping[Value, tuple[int, Tensor]]) -> float:
        total = 0.0
        for sample, wanted in zip(self.samples, self.wanted, strict=True):
            found = self._outputs(sample, tensors, limits)
            shares = [_share(new, old) for new, old in zip(found, wanted, strict=True) if old.is_floating_point()]
            total += sum(shares) / max(1, len(shares))
        return total / max(1, len(self.samples))

    def _outputs(
        self, sample: Sequence[Tensor], tensors: Tensors, limits: Mapping[Value, tuple[int, Tensor]]
    ) -> list[Tensor]:
        def capped(value: Value, tensor: Tensor) -> Tensor:
            if value not in limits:
                return tensor
            axis, high = limits[value]
            return torch.minimum(tensor, along_axis(high.to(tensor), tensor.dim(), axis))

        with torch.no_grad():
            return interpret_with(self.graph, list(sample), Evaluation(tensors), replace=capped)


def _share(new: Tensor, old: Tensor) -> float:
    """The squared change as a share of the power."""
    difference = torch.where(old.isfinite(), new - old, 0.0).to(torch.float64).square().sum()
    power = torch.where(old.isfinite(), old, 0.0).to(torch.float64).square().sum()
    return float(difference / power) if power > 0.0 else 0.0
