"""Facts about the channels of groups: ranges of activations, and the sensitivity of the model's outputs.

With calibration data both are measured. Without data, ranges follow from batch norms, and sensitivities are those of
the readers' outputs alone, each as a share of its own power: a reader z = W x with channel powers m_i = E[x_i^2] gives

    P = sum of W[o, i]^2 m_i        G_i = sum over o of W[o, i]^2 / P        G[o, i] = m_i / P

so that an error counts as much as it changes the next layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from qcompiler.calibration.data_free import DEFAULT_INPUT_RANGE, describe
from qcompiler.calibration.distribution import Distribution
from qcompiler.calibration.observers import MinMaxObserver, Observer
from qcompiler.calibration.runner import observe
from qcompiler.calibration.statistics import statistics_of
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer
from qcompiler.passes.base import PassContext
from qcompiler.passes.common.channel_limits import limits_of
from qcompiler.passes.common.channel_noise import Facts, Limits, Place, ScaledLayer, ScaledTensor, places_of
from qcompiler.passes.common.equalization import FOREIGN, Consumer, Group, PerChannel, channels_of
from qcompiler.passes.common.mean_sensitivities import mean_sensitivities
from qcompiler.validation.noise import Sensitivities

Ranges = dict[Place, tuple[Tensor, Tensor]]
"""Lowest and highest value of each channel, float64 [C] each."""

FAR_DEVIATIONS = 6.0
"""Standard deviations of a batch norm from the mean to a value that some input may have."""
MOST_SPANS = 4.0
"""Spans of the values seen by which a range grows at most."""
DEVIATIONS = 3.0
"""Standard deviations from the mean to the end of a range, where a power follows from a range or the reverse."""


def facts_of(graph: Graph, context: PassContext, found: Sequence[Group], layers: Mapping[Node, ScaledLayer]) -> Facts:
    """The facts of all groups; also sets the sensitivities of the layers."""
    places: dict[Place, None] = {}
    for group in found:
        places |= dict.fromkeys(places_of(group))
    measured = None
    counts: dict[Place, Tensor] = {}
    if context.calibration_data is not None:
        ranges, counts = _observed(graph, context, context.calibration_data, places)
        measured = _measured(graph, context, places, layers.values(), found)
    else:
        ranges = _described(graph, context, places, found, layers)
    deviations = {place: (high - low) / (2 * DEVIATIONS) for place, (low, high) in ranges.items()}
    if context.calibration_data is not None:
        ranges = _widened(ranges, counts, found)
    tensors = {place: _tensor(low, high, deviations[place], counts.get(place)) for place, (low, high) in ranges.items()}
    if measured is None:
        _sense_readers(found, layers, tensors)
        return Facts(tensors, {group.producer: _reader_limits(group) for group in found if group.caps}, ranges)
    for layer in layers.values():
        if layer.weight is not None:
            layer.sense(layer.kernel(measured.tensors[_name(layer.weight)]))
    for place, tensor in tensors.items():
        tensor.sensitivity, tensor.shift = measured.values[place[0]], measured.shifts[place[0]]
    return Facts(tensors, {group.producer: _limits(group, measured.limits) for group in found if group.caps}, ranges)


def _limits(group: Group, sensitivity: Mapping[Value, Tensor]) -> Limits:
    """The limits of a group."""
    sums = torch.zeros(channels_of(group.producer), dtype=torch.float64)
    for cap in group.caps:
        own = cap.channels != FOREIGN
        sums = sums.index_add(0, cap.channels[own], sensitivity[cap.node.output][own])
    return Limits(_ends(group), sums)


def _ends(group: Group) -> Tensor:
    """The lowest limit of each channel; infinite without one."""
    ends = torch.full((channels_of(group.producer),), torch.inf, dtype=torch.float64)
    for cap in group.caps:
        own = cap.channels != FOREIGN
        ends = ends.scatter_reduce(0, cap.channels[own], limits_of(cap.node, len(own))[1][own], "amin")
    return ends


def _reader_limits(group: Group) -> Limits:
    """The same for sensitivities of the readers' outputs: all taps meet values at the limit."""
    gains: dict[Value, Tensor] = {}
    for consumer in group.consumers:
        view = Layer(consumer.node)
        sums = view.rows().to(torch.float64).abs().sum(3).square().sum(1).reshape(-1)
        own = consumer.channels != FOREIGN
        gain = torch.zeros(channels_of(group.producer), dtype=torch.float64)
        gain = gain.index_add(0, consumer.channels[own], sums[own] / sums.sum().clamp(min=1e-30))
        for cap in group.caps:
            own_cap = cap.channels != FOREIGN
            of_cap = torch.where(own_cap, gain[cap.channels.clamp(min=0)], 0.0)
            gains[cap.node.output] = gains.get(cap.node.output, torch.zeros_like(of_cap)) + of_cap
    return _limits(group, gains)


def _tensor(low: Tensor, high: Tensor, deviation: Tensor, count: Tensor | None) -> ScaledTensor:
    zeros, ones = torch.zeros_like(low), torch.ones_like(low)
    count = torch.full_like(low, torch.inf) if count is None else count
    return ScaledTensor(low.clamp(max=0.0), high.clamp(min=0.0), deviation, zeros, zeros.clone(), ones, count)


def _name(weight: Value) -> str:
    leaf = weight.producer
    assert leaf is not None, "the weight of a layer is a tensor of the model"
    return leaf.text("ref")


def _observed(
    graph: Graph, context: PassContext, batches: Iterable[list[Tensor]], places: Iterable[Place]
) -> tuple[Ranges, dict[Place, Tensor]]:
    """Ranges, and the number of values of each channel, float64 [C]."""
    observers: dict[Value, Observer] = {value: MinMaxObserver(value.name, axis) for value, axis in places}
    _, observers = observe(graph, batches, observers, context.processes, context.progress)
    found = {place: observers[place[0]].range() for place in places}
    ranges = {place: (low.to(torch.float64), high.to(torch.float64)) for place, (low, high) in found.items()}
    counts = {place: torch.full_like(low, observers[place[0]].count / len(low)) for place, (low, _) in ranges.items()}
    return ranges, counts


def _widened(ranges: Ranges, counts: dict[Place, Tensor], found: Sequence[Group]) -> Ranges:
    """The ranges with what the batch norms expect, because few samples rarely show the largest values of a channel.

    A channel that looks small on these samples would get a large factor, and other inputs would be clipped. `counts` of
    widened channels become infinite.
    """
    for group in found:
        moments = statistics_of(group.producer)
        if moments is None:
            continue
        mean, spread = moments.mean.to(torch.float64), FAR_DEVIATIONS * moments.std.to(torch.float64)
        low, high = mean - spread, mean + spread
        if group.caps:
            high = high.minimum(_ends(group))
        bounded = bool(group.caps or group.tables) or any(
            node.definition.has(Trait.RECTIFIER) for node in group.between
        )
        before = {(item.node.output, item.axis) for item in group.grids}
        for place, channels in places_of(group).items():
            own = channels != FOREIGN
            seen_low, seen_high = ranges[place]
            reach = MOST_SPANS * (seen_high - seen_low)  # where eps outweighs the variance, gamma says too much
            far = high[channels.clamp(min=0)].minimum(seen_high + reach)
            near = low[channels.clamp(min=0)].maximum(seen_low - reach)
            seen_high = torch.where(own, torch.maximum(seen_high, far), seen_high)
            if not bounded or place in before:
                seen_low = torch.where(own, torch.minimum(seen_low, near), seen_low)
            ranges[place] = seen_low, seen_high
            counts[place] = torch.where(own, torch.inf, counts[place])
    return ranges


def _measured(
    graph: Graph, context: PassContext, places: Iterable[Place], layers: Iterable[ScaledLayer], found: Sequence[Group]
) -> Sensitivities | None:
    """None if no output depends on the layers differentiably."""
    names = [*dict.fromkeys(_name(layer.weight) for layer in layers if layer.weight is not None)]
    values = {value: axis for value, axis in places}  # noqa: C416  # a value has one channel axis
    caps = {cap.node.output: cap for group in found for cap in group.caps}
    limits = {value: (cap.axis, limits_of(cap.node, len(cap.channels))[1]) for value, cap in caps.items()}
    return mean_sensitivities(graph, context, values, names, limits)


def _described(
    graph: Graph,
    context: PassContext,
    places: Iterable[Place],
    found: Sequence[Group],
    layers: Mapping[Node, ScaledLayer],
) -> Ranges:
    """Ranges from batch norms; where they end, as if the layer's inputs were normal numbers."""
    known = describe(graph, context.input_range or DEFAULT_INPUT_RANGE)
    writers: dict[Place, list[tuple[ScaledLayer, Tensor]]] = {}
    for group in found:
        for place, channels in places_of(group).items():
            writers.setdefault(place, []).append((layers[group.producer], channels))
    ranges: Ranges = {}
    for value, axis in places:
        count = value.type.size(axis)
        item = known.get(value)
        if isinstance(item, Distribution):
            moments = item.channels(axis, count)
            reach = DEVIATIONS * moments.std
            low, high = moments.mean - reach, moments.mean + reach
            least, most = item.range
            ranges[value, axis] = (low.clamp(min=least), high.clamp(max=most))
        else:
            ranges[value, axis] = _from_weights(count, writers[value, axis])
    return ranges


def _from_weights(count: int, producers: Iterable[tuple[ScaledLayer, Tensor]]) -> tuple[Tensor, Tensor]:
    """|bias| and the norm of each row of the producers, given with the channels that they write."""
    reach = torch.ones(count, dtype=torch.float64)
    for producer, channels in producers:
        norms = producer.kernel().to(torch.float64).square().sum((2, 3)).sqrt().reshape(-1) * DEVIATIONS
        layer = Layer.of(producer.node)
        bias = None if layer is None else layer.bias_tensor()
        span = norms if bias is None else norms + bias.to(torch.float64).abs()
        reach = torch.where(channels == FOREIGN, reach, span[channels.clamp(min=0)])
    return -reach, reach


def _sense_readers(
    found: Sequence[Group],
    layers: Mapping[Node, ScaledLayer],
    tensors: Mapping[Place, ScaledTensor],
) -> None:
    """Sensitivities of the readers' outputs alone; see the module text."""
    for group in found:
        for consumer in group.consumers:
            place = (consumer.node.inputs[0], Layer(consumer.node).input_axis)
            _sense_reader(consumer, layers[consumer.node], tensors[place])
    for group in found:
        for item in group.grids:
            _sense_grid(group, item, tensors)
    for group in found:
        for place, channels in places_of(group).items():
            own = channels != FOREIGN
            tensor = tensors[place]
            gain = torch.zeros(channels_of(group.producer), dtype=torch.float64)
            gain = gain.index_add(0, channels[own], tensor.sensitivity[own])
            variance = torch.zeros_like(gain).scatter_reduce(
                0, channels[own], tensors[place].deviation.square()[own], "amax"
            )
            _sense_rows(layers[group.producer], gain, variance)


def _sense_grid(group: Group, item: PerChannel, tensors: Mapping[Place, ScaledTensor]) -> None:
    """A result before the readers' inputs: errors of a channel reach all readers of that channel, as they are."""
    own, tensor = item.channels != FOREIGN, tensors[item.node.output, item.axis]
    for consumer in group.consumers:
        source = tensors[consumer.node.inputs[0], Layer(consumer.node).input_axis]
        read = consumer.channels != FOREIGN
        for name in ("sensitivity", "shift"):
            gain = torch.zeros(channels_of(group.producer), dtype=torch.float64)
            gain = gain.index_add(0, consumer.channels[read], getattr(source, name)[read])
            mine = torch.where(own, gain[item.channels.clamp(min=0)], 0.0)
            setattr(tensor, name, getattr(tensor, name) + mine)


def _sense_reader(consumer: Consumer, layer: ScaledLayer, tensor: ScaledTensor) -> None:
    power = (tensor.ranges() / DEVIATIONS).square().clamp(min=1e-30)
    view = Layer(consumer.node)
    squares = view.rows().to(torch.float64).square()  # [groups, outputs, inputs, taps]
    of_input = squares.sum((1, 3)).reshape(-1)
    total = (of_input * power).sum().clamp(min=1e-30)
    tensor.sensitivity = tensor.sensitivity + of_input / total
    tensor.shift = tensor.shift + view.rows().to(torch.float64).sum(3).square().sum(1).reshape(-1) / total
    layer.sense(power.reshape(view.groups, 1, -1, 1).expand_as(squares) / total)


def _sense_rows(layer: ScaledLayer, gain: Tensor, variance: Tensor) -> None:
    """The part of a producer whose input no group describes: inputs of equal power give its results their variance."""
    if layer.weight is None or bool(layer.sensitivity.any()):
        return
    rows = layer.kernel().to(torch.float64)
    norms = rows.square().sum((2, 3)).reshape(-1).clamp(min=1e-30)
    layer.sense((gain * variance / norms).reshape(len(rows), -1, 1, 1).expand_as(rows))
