"""Expected noise of the layers and activations of groups, as a function of the factors of their channels.

A group of `passes.common.equalization` divides the results of a producer by s and multiplies the columns of its readers
by s. Real numbers stay what they are; steps change. In the units of the original model,

    weight    step_o = max over i of |W[o, i]| c_i / s_o / levels      noise = sum of G[o, i] (step_o s_o / c_i)^2 / 12
    tensor    step = (max of high_i / s_i - min of low_i / s_i) / levels      noise = sum of G_i (step s_i)^2 / 12

with the factors s_o of the rows and c_i of the columns, and the sensitivities G of `validation.noise`. A clamp gets
limits per channel, which are rounded to codes: all values at a limit share its error, so that G is that of the limit
itself. The limit at the end of the range has no error. All elements of a channel that hardly varies share one error,
too. With one scale per tensor the step is that of the widest row. With one scale per row, s_o leaves the noise of a
weight as it is, and only activations and readers decide.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.common.equalization import (
    FOREIGN,
    Consumer,
    Group,
    constant_factor,
    factor_of,
    scale_constants,
    scale_layer,
)
from qcompiler.targets import Target

CHUNK = 1 << 20
"""Elements of the scaled weights of several choices that are in memory at a time."""


class ScaledLayer:
    """Channel magnitudes of a weight and the current factors, so that the search does not touch the kernel.

    Args:
        node: The layer.
        classes: Class of each input channel, int64. All channels of a class have one factor, such as the positions of a
            flattened channel, and one magnitude.
    """

    def __init__(self, node: Node, classes: Tensor) -> None:
        self.node = node
        weight = self.kernel()
        count, outputs, inputs = weight.shape[:3]
        magnitudes = weight.abs().amax(3).permute(1, 0, 2).reshape(outputs, count * inputs)
        numbers, self.classes = torch.unique(classes, return_inverse=True)
        # A class of a grouped convolution is within one group, because it belongs to one channel of the producer.
        self.group = torch.zeros(len(numbers), dtype=torch.int64)
        self.group[self.classes] = torch.arange(count).repeat_interleave(inputs)
        self.magnitudes = largest_of(magnitudes, self.classes, len(numbers))
        """float32 [outputs per group, classes]"""
        self.rows = torch.ones(count, outputs, dtype=torch.float64)
        self.columns = torch.ones(len(numbers), dtype=torch.float64)
        self.sensitivity = torch.zeros_like(self.magnitudes)
        """float32 [outputs per group, classes]: the sum over the elements of a class; see `sense`"""
        self._sums: tuple[Tensor, Tensor] | None = None
        """Ranges and sums of sensitivities with the current factors of the classes."""

    @property
    def weight(self) -> Value | None:
        """The tensor of the model whose quantization counts; None if it costs nothing."""
        return Layer(self.node).weight

    def kernel(self, tensor: Tensor | None = None) -> Tensor:
        """The weight, or a tensor of its shape, as [groups, outputs per group, inputs per group, taps]."""
        return Layer(self.node).rows(tensor)

    def per_row(self, target: Target) -> bool:
        """Whether the weight has a scale per output channel."""
        return target.weight_spec(self.node.op, 0).axis is not None

    def reset(self) -> None:
        """Set all factors to 1."""
        self.rows, self.columns = torch.ones_like(self.rows), torch.ones_like(self.columns)
        self._sums = None

    def sense(self, weight: Tensor) -> None:
        """Set the sensitivity of the outputs of the model to the weight, float64 in the form of `kernel`."""
        count, outputs, inputs = weight.shape[:3]
        sums = weight.sum(3).permute(1, 0, 2).reshape(outputs, count * inputs).to(torch.float32)
        self.sensitivity = torch.zeros_like(self.magnitudes).index_add(1, self.classes, sums)
        self._sums = None

    def attenuated(self, factors: Tensor) -> ScaledLayer:
        """The layer with sensitivities of its weight multiplied by one factor per input channel, float64 [channels]."""
        other = copy.copy(self)
        other.sensitivity = self.sensitivity * self.of_classes(factors).to(torch.float32)
        other._sums = None  # noqa: SLF001  # a copy of itself
        return other

    def row_ranges(self) -> Tensor:
        """The range of each output channel."""
        scaled = self.magnitudes * self.columns.to(torch.float32)
        count = len(self.rows)
        ranges = scaled.amax(1, keepdim=True) if count == 1 else largest_of(scaled, self.group, count)
        return (ranges.T * self.rows).reshape(-1)

    def column_ranges(self) -> Tensor:
        """The range of each input channel, that is, of its class."""
        rows = self.rows.to(torch.float32)
        of_class = rows.T if len(rows) == 1 else rows[self.group].T
        return ((self.magnitudes * of_class).amax(0) * self.columns)[self.classes]

    def scale_rows(self, factors: Tensor) -> None:
        """Multiply the output channels."""
        self.rows *= factors.reshape(self.rows.shape)

    def scale_columns(self, factors: Tensor) -> None:
        """Multiply the input channels by one factor per class."""
        self.columns *= self.of_classes(factors)
        self._sums = None

    def of_classes(self, factors: Tensor) -> Tensor:
        """The factor of each class, [*, classes], from one per input channel, [*, channels]."""
        of_class = factors.new_ones(*factors.shape[:-1], len(self.columns))
        of_class[..., self.classes] = factors
        return of_class

    def noises(
        self, levels: int, *, per_row: bool, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> list[float]:
        """Expected noise of the quantized weight for several choices of factors; see the module text.

        Args:
            levels: Number of steps from 0 to the largest code.
            per_row: Whether each output channel has a scale of its own.
            rows: Factors of the output channels, [choices, *], with `*` the shape of `rows`; None: the current ones.
            columns: Factors of the classes, [choices, classes]; None: the current ones.
        """
        if columns is None:
            if self._sums is None:
                self._sums = self._ranges_and_sums(self.columns.unsqueeze(0))
            ranges, sums = self._sums
        else:
            ranges, sums = self._ranges_and_sums(columns)
        rows = (self.rows.unsqueeze(0) if rows is None else rows).transpose(1, 2)
        squares = ranges.square()
        if not per_row:
            squares = (ranges * rows).amax((1, 2), keepdim=True).square() / rows.square()
        found: list[float] = (sums * squares).flatten(1).sum(1).expand(max(len(rows), len(sums))).tolist()
        return [total / levels**2 / 12.0 for total in found]

    def _ranges_and_sums(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Ranges and sums of sensitivities, float64 [choices, outputs per group, groups], for factors of the classes.

        Choices are computed one after the other where their weights together are large.
        """
        outputs, count = len(self.magnitudes), len(self.rows)
        most = max(1, CHUNK // max(1, self.magnitudes.numel()))
        parts = []
        for part in columns.to(torch.float32).unsqueeze(1).split(most):
            scaled, weighted = self.magnitudes * part, self.sensitivity * part**-2
            if count == 1:
                ranges, sums = scaled.amax(2, keepdim=True), weighted.sum(2, keepdim=True)
            else:
                ranges = largest_of(scaled.flatten(0, 1), self.group, count)
                sums = torch.zeros_like(ranges).index_add(1, self.group, weighted.flatten(0, 1))
                ranges, sums = (item.reshape(-1, outputs, count) for item in (ranges, sums))
            parts.append((ranges.to(torch.float64), sums.to(torch.float64)))
        ranges, sums = (torch.cat(items) for items in zip(*parts, strict=True))
        return ranges, sums

    def write(self, rewriter: Rewriter) -> None:
        """Multiply the parameters by the factors."""
        scale_layer(Layer(self.node), rewriter, outputs=self.rows.reshape(-1), inputs=self.columns[self.classes])


class ScaledConstants(ScaledLayer):
    """The same of a node with one constant per channel and no weight: a layer norm, or a product with a constant.

    The constant of a product has one scale for all channels. The weight of a layer norm has 16 bits, whose noise counts
    as 0.

    Args:
        node: The node.
    """

    def __init__(self, node: Node) -> None:
        super().__init__(node, torch.zeros(1, dtype=torch.int64))

    @property
    def weight(self) -> Value | None:
        """The constant of a product."""
        factor = constant_factor(self.node)
        return None if factor is None else leaf_of(factor)

    def kernel(self, tensor: Tensor | None = None) -> Tensor:
        """The constants, [1, channels, 1, taps]; the taps of a layer norm are its axes before the last one."""
        constants = leaf_tensor(self.weight or leaf_of(self.node.inputs[1])) if tensor is None else tensor
        last = constants.shape[-1] if self.weight is None else constants.numel()
        return constants.reshape(-1, last).T.reshape(1, last, 1, -1)

    def per_row(self, target: Target) -> bool:  # as in the class above
        """One scale for all."""
        return False

    def write(self, rewriter: Rewriter) -> None:
        """Multiply the constants by the factors."""
        scale_constants(self.node, rewriter, self.rows.reshape(-1))


def largest_of(rows: Tensor, numbers: Tensor, count: int) -> Tensor:
    """The largest entry of each class in each row, [rows, count]."""
    largest = torch.zeros(len(rows), count, dtype=rows.dtype)
    return largest.scatter_reduce(1, numbers.expand(len(rows), -1), rows, "amax")


def scaled_layers(found: Sequence[Group]) -> dict[Node, ScaledLayer]:
    """The layers of all groups. Two input channels have the same class if each group reads them as the same channel."""
    classes: dict[Node, Tensor] = {}
    for number, group in enumerate(found):
        classes.setdefault(group.producer, _apart(group.producer))
        for consumer in group.consumers:
            node, channels = consumer.node, consumer.channels
            if bool((channels.unique(return_counts=True)[1] > 1).any()) and Layer(node).groups == 1:
                own = channels != FOREIGN
                numbers = (len(channels) * (number + 1)) + channels
                classes[node] = torch.where(own, numbers, classes.get(node, _apart(node)))
            else:
                classes.setdefault(node, _apart(node))
    return {
        node: ScaledConstants(node) if Layer.of(node) is None else ScaledLayer(node, numbers)
        for node, numbers in classes.items()
    }


def _apart(node: Node) -> Tensor:
    """A separate class for each input channel; none of a node that is no layer."""
    layer = Layer.of(node)
    return torch.arange(0 if layer is None else layer.inputs)


Place = tuple[Value, int]
"""An activation and its channel axis."""


@dataclass
class ScaledTensor:
    """An activation between the layers of groups, and its current factors.

    Args:
        low: Smallest value of each channel, float64 [C], at most 0.
        high: Largest value of each channel, float64 [C], at least 0.
        deviation: Standard deviation of each channel, float64 [C].
        sensitivity: Sensitivity of the outputs of the model to independent errors of each channel, float64 [C].
        shift: Sensitivity to one error of all elements of a channel, float64 [C].
        factors: Current factors, float64 [C].
        count: Number of values of each channel from which the range is known, float64 [C]; infinite where no value is
            outside.
    """

    low: Tensor
    high: Tensor
    deviation: Tensor
    sensitivity: Tensor
    shift: Tensor
    factors: Tensor
    count: Tensor

    def reset(self) -> None:
        """Set all factors to 1."""
        self.factors = torch.ones_like(self.factors)

    def ranges(self) -> Tensor:
        """The largest absolute value of each channel."""
        return torch.maximum(-self.low, self.high) * self.factors

    def steps(self, levels: int, *, symmetric: bool, factors: Tensor) -> list[float]:
        """Step of the grid for each choice of factors, [choices, C]."""
        lows: list[float] = (self.low * factors).amin(1).tolist()
        highs: list[float] = (self.high * factors).amax(1).tolist()
        return [
            (2.0 * max(-low, high) if symmetric else high - low) / levels for low, high in zip(lows, highs, strict=True)
        ]

    def noises(self, steps: Sequence[float], factors: Tensor) -> list[float]:
        """Expected noise of the quantized activation for each choice of factors, [choices, C]; see the module text."""
        # Errors of numbers that vary by less than a step are one error: the correlation of rounded normal numbers.
        least = torch.tensor([max(step, 1e-300) for step in steps], dtype=torch.float64).unsqueeze(1)
        alike = (-(2.0 * math.pi * self.deviation * factors / least).square()).exp()
        sensitivity = torch.lerp(self.sensitivity, self.shift, alike)
        sums: list[float] = (sensitivity / factors.square()).sum(1).tolist()
        clipped: list[float] = (self.sensitivity * self.clipped(factors)).sum(1).tolist()
        return [step**2 * total / 12.0 + beyond for step, total, beyond in zip(steps, sums, clipped, strict=True)]

    def clipped(self, factors: Tensor) -> Tensor:
        """Expected squared error of values beyond the range for each choice of factors, in units of the original model.

        The largest of n values is h; others exceed it by t with the probability e^(-t / a) / n, where a is the
        deviation over sqrt(2 log n), as for normal numbers (Embrechts et al. 1997, Modelling Extremal Events, section
        3.3). Values above the end H of the range, H >= h, then have the squared error 2 a^2 e^(-(H - h) / a) / n.

        Args:
            factors: float64 [choices, C].

        Returns:
            float64 [choices, C].
        """
        sure = ~self.count.isfinite()
        count = torch.where(sure, 1.0, self.count).clamp(min=FEWEST)
        scale = (self.deviation / (2.0 * count.log()).sqrt()).clamp(min=1e-300)
        total = torch.zeros_like(factors)
        for ends in (self.high, -self.low):
            beyond = (ends * factors).amax(1, keepdim=True) / factors - ends
            total = total + torch.where(ends > 0.0, (-beyond / scale).exp(), 0.0)
        return torch.where(sure, 0.0, 2.0 * scale.square() * total / count)


FEWEST = 4.0
"""Number of values below which nothing follows from their largest one."""
AT_THE_END = 1e-3
"""Distance from the end of the range at which a limit is the end, as a share."""


@dataclass(frozen=True)
class Limits:
    """The limits of a clamp between the layers of a group.

    Args:
        ends: Upper limit of each channel of the producer, float64 [C]; infinite for channels that are not clamped.
        sensitivity: Sensitivity of the outputs of the model to each limit, float64 [C].
    """

    ends: Tensor
    sensitivity: Tensor

    def noise(self, step: float, factors: Tensor) -> float:
        """Expected noise of the rounded limits.

        Args:
            step: Step of the grid.
            factors: Factors of the channels, float64 [C].
        """
        scaled = self.ends * factors
        clamped = scaled.isfinite()
        if not bool(clamped.any()):
            return 0.0
        inside = clamped & (scaled < (1.0 - AT_THE_END) * scaled[clamped].max())
        return step**2 * float((self.sensitivity / factors.square())[inside].sum()) / 12.0


@dataclass(frozen=True)
class Facts:
    """Known facts about the channels of all groups, and the current factors.

    Args:
        tensors: Activations.
        limits: Limits of clamps, by producer.
        ranges: Lowest and highest value of each channel of the activations, float64 [C] each, without the 0 that every
            grid has.
    """

    tensors: Mapping[Place, ScaledTensor]
    limits: Mapping[Node, Limits]
    ranges: Mapping[Place, tuple[Tensor, Tensor]]


class Widths:
    """The grids of a target, as far as they decide the noise.

    Args:
        target: The target, with its default widths.

    Attributes:
        weight_levels: Steps from 0 to the largest code of a weight.
        levels: Steps of an activation.
        symmetric: Whether the grid of an activation is symmetric.
    """

    def __init__(self, target: Target) -> None:
        activations = target.activation_spec()
        self.target = target
        self.weight_levels = 2 ** (target.weight_bits - 1) - 1
        self.levels = activations.qmax - activations.qmin
        self.symmetric = activations.symmetric and activations.signed

    def of_weights(
        self, layer: ScaledLayer, *, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> list[float]:
        """Expected noise of a quantized weight; see `ScaledLayer.noises`."""
        return layer.noises(self.weight_levels, per_row=layer.per_row(self.target), rows=rows, columns=columns)

    def of_weight(self, layer: ScaledLayer) -> float:
        """Expected noise of a quantized weight with the current factors."""
        return self.of_weights(layer)[0]

    def of_tensor(self, tensor: ScaledTensor) -> float:
        """Expected noise of a quantized activation with the current factors."""
        factors = tensor.factors.unsqueeze(0)
        return tensor.noises(self.steps(tensor, factors), factors)[0]

    def steps(self, tensor: ScaledTensor, factors: Tensor) -> list[float]:
        """Step of the grid of an activation for each choice of factors, [choices, C]."""
        return tensor.steps(self.levels, symmetric=self.symmetric, factors=factors)


def places_of(group: Group) -> dict[Place, Tensor]:
    """The activations of a group that get quantizers, with the producer's channel of each of their channels.

    These are the inputs of its readers, and the results in between that have grids of their own.
    """
    found: dict[Place, Tensor] = {}
    for consumer in group.consumers:
        found.setdefault((consumer.node.inputs[0], Layer(consumer.node).input_axis), consumer.channels)
    for item in group.grids:
        found.setdefault((item.node.output, item.axis), item.channels)
    return found


class GroupNoise:
    """The expected noise of everything that the factors of one group change.

    Args:
        group: The group.
        layers: The layers of all groups.
        facts: Known facts about the channels.
        widths: The grids.
    """

    def __init__(
        self,
        group: Group,
        layers: Mapping[Node, ScaledLayer],
        facts: Facts,
        widths: Widths,
    ) -> None:
        self.group, self.widths = group, widths
        self.producer = layers[group.producer]
        self.readers = [(consumer, layers[consumer.node]) for consumer in group.consumers]
        self.tensors = [(channels, facts.tensors[place]) for place, channels in places_of(group).items()]
        self.limits = facts.limits.get(group.producer)

    def ranges(self) -> tuple[Tensor, Tensor, Tensor]:
        """The current ranges of each channel: of the rows, of the activations, and of the readers' columns."""
        rows = self.producer.row_ranges()
        seen, columns = torch.zeros_like(rows), torch.zeros_like(rows)
        for channels, tensor in self.tensors:
            own = channels != FOREIGN
            seen = seen.scatter_reduce(0, channels[own], tensor.ranges()[own], "amax")
        for consumer, layer in self.readers:
            own = consumer.channels != FOREIGN
            columns = columns.scatter_reduce(0, consumer.channels[own], layer.column_ranges()[own], "amax")
        return rows, seen, columns

    def noise(self, s: Tensor | None = None) -> float:
        """The noise if the channels are divided by s in addition, float64 [channels of the producer]; None: by 1."""
        s = torch.ones(self.producer.rows.numel(), dtype=torch.float64) if s is None else s
        return self.noises(s.unsqueeze(0))[0]

    def noises(self, choices: Tensor) -> list[float]:
        """The noise for each choice of s, [choices, channels of the producer]."""
        rows = self.producer.rows / choices.reshape(-1, *self.producer.rows.shape)
        parts = [self.widths.of_weights(self.producer, rows=rows)]
        for consumer, layer in self.readers:
            columns = layer.columns * layer.of_classes(factor_of(consumer.channels, choices))
            parts.append(self.widths.of_weights(layer, columns=columns))
        first: list[float] = []
        for channels, tensor in self.tensors:
            factors = tensor.factors / factor_of(channels, choices)
            steps = self.widths.steps(tensor, factors)
            first = first or steps
            parts.append(tensor.noises(steps, factors))
        if self.limits is not None:
            parts.append([self.limits.noise(step, row.reshape(-1)) for step, row in zip(first, rows, strict=True)])
        return [sum(items) for items in zip(*parts, strict=True)]

    def apply(self, s: Tensor) -> None:
        """Divide the channels by s in addition."""
        rescale(self.producer, self.readers, s)
        for channels, tensor in self.tensors:
            tensor.factors = tensor.factors / factor_of(channels, s)


def rescale(producer: ScaledLayer, readers: Iterable[tuple[Consumer, ScaledLayer]], s: Tensor) -> None:
    """Divide the channels of a group by s, float64 [channels of the producer]."""
    producer.scale_rows(1.0 / s)
    for consumer, layer in readers:
        layer.scale_columns(factor_of(consumer.channels, s))


def whole_noise(found: Sequence[Group], layers: Mapping[Node, ScaledLayer], facts: Facts, widths: Widths) -> float:
    """The expected noise of all layers, activations and limits."""
    total = sum(map(widths.of_weight, layers.values())) + sum(map(widths.of_tensor, facts.tensors.values()))
    for group in found:
        limits = facts.limits.get(group.producer)
        if limits is not None:
            tensor = facts.tensors[next(iter(places_of(group)))]
            (step,) = widths.steps(tensor, tensor.factors.unsqueeze(0))
            total += limits.noise(step, layers[group.producer].rows.reshape(-1))
    return total
