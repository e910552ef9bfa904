"""Absorb high biases into the following layers.

    A: b1 ──► relu ──► B: W2, b2        becomes        b1 - c ──► relu ──► b2 + W2 c

relu(x - c) = relu(x) - c for x >= c >= 0, so the model is unchanged if c is below all results of the layer. A range
that began at c > 0 then begins at 0, and uses no codes for values that never occur. c per channel is

    max(0, mean - sigmas * std)   from the batch norm that was folded into A: below 99.865 % of a normal distribution;
                                  without data also from the propagated moments of earlier batch norms
    max(0, smallest value)        of the calibration data

Without an activation in between, c is the mean or the smallest value itself. A clamp to [low, high] becomes a clamp to
[low - c, high - c] per channel, on targets that support it; a low of at least 0 stays at least 0, as for a ReLU, and c
is at most high. If B pads, its zeros are then too low by c, so the border of its result changes. The change is
measured, and refused with `padded=False`. With `shifts=noise` the expected noise decides (decision 45).

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.3; Nagel et al. 2021, arXiv:2106.08295, section 3.2 (absorbing
high biases).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qcompiler.calibration.data_free import DEFAULT_INPUT_RANGE, Stop, describe
from qcompiler.calibration.distribution import Distribution
from qcompiler.calibration.gaussian import Gaussian
from qcompiler.calibration.observers import MinMaxObserver
from qcompiler.calibration.runner import observe
from qcompiler.calibration.statistics import set_statistics, statistics_of
from qcompiler.errors import InputError, PassError
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.channel_limits import keeps_caps, limits_of, set_limits
from qcompiler.passes.common.equalization import FOREIGN, Consumer, Group, PerChannel, forget_ranges, groups
from qcompiler.passes.common.supergroups import ends_supergroup
from qcompiler.passes.common.weighed_shifts import weighed_shifts
from qcompiler.validation.contracts import THRESHOLDS, Contract

ABSORBED = Sentence("bias-absorbed", "{channels} channels move up to {most:.4g} to the bias of {layers}")
LIMITS_MOVED = Sentence("limits-moved", "its limits move by up to {shift:.4g}")
NO_BIAS = Sentence("layer-without-bias", "{layer} has no bias")
NO_SHIFT = Sentence("shift-not-kept", "{between} in between does not keep a shift")
FEWER_TAPS = Sentence("absorbed-into-fewer-taps", "{layer} sums fewer taps at the border")
PADS = Sentence("absorbed-into-padding", "{layer} pads")

_KEEP_A_SHIFT = (Trait.MOVEMENT, Trait.AVERAGE, Trait.RECTIFIER, Trait.CLAMP, Trait.QUANTIZER)


@dataclass(frozen=True)
class AbsorbBias(Pass):
    """Absorb high biases, on CANONICAL and on QUANTIZED graphs; best after `cross-layer-equalization`.

    Refuses, by layer and reason: the cases that equalization refuses; paths that do not commute with a shift, such as
    averages over padding; layers without bias; and layers whose range neither a batch norm nor data determines.

    Records the number of channels, the largest c, and the largest change at a border: |sum of the taps that meet the
    padding, times c|.

    Args:
        sigmas: Standard deviations below the mean.
        padded: Whether to absorb into convolutions that pad.
        shifts: `all`: as much as possible, as in the papers. `noise`: as little as lowers the expected noise of the
            outputs, and only where the fall of the noise exceeds the change by clipped values and borders, which is
            measured. Needs a target and calibration data.

    Raises:
        InputError: `sigmas` is negative.
        PassError: There is no calibration data, and no layer has a known range without data; or `shifts` is `noise`,
            and there is no data or no target.
    """

    name: ClassVar[str] = "absorb-bias"
    requires: ClassVar[frozenset[str]] = frozenset({"batch-norm-folded"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"activation-ranges"})
    sigmas: float = 3.0
    padded: bool = True
    shifts: Literal["all", "noise"] = "all"

    def __post_init__(self) -> None:
        if not self.sigmas >= 0:
            raise InputError(f"sigmas={self.sigmas}", expected="at least 0")

    @property
    def contract(self) -> Contract:
        """The rewrite is exact for values above c and without padding."""
        return THRESHOLDS[self.name]

    def prepare(self, graph: Graph, context: PassContext) -> bool:
        """Remove the ranges of quantizers whose values change."""
        return forget_ranges(groups(graph, caps=keeps_caps(context)), context.rewriter(graph), weights=False)

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        if self.shifts == "noise" and context.calibration_data is None:
            raise PassError(
                "without calibration_data the change of the outputs is unknown",
                fix="Pass calibration_data, or shifts=all.",
            )
        rewriter = context.rewriter(graph)
        candidates = groups(graph, rewriter.refuse, caps=keeps_caps(context), has_grid=self._has_grid(context))
        found = [group for group in candidates if _shifts(group, rewriter, padded=self.padded)]
        lowest = self._lowest(graph, context, found)
        most: dict[Node, Tensor] = {}
        channels, largest, border = 0, 0.0, 0.0
        shifts: dict[Node, tuple[int, Tensor]] = {}
        for group in found:
            # c: the part of each channel that every value exceeds, below all caps, and at least 0 before a ReLU.
            c = lowest[group.producer]
            for cap in group.caps:
                c = c.minimum(_caps_of(cap, len(c)))
            if _rectified(group):
                c = c.clamp(min=0.0)
            most[group.producer] = c
        if self.shifts == "noise" and found:
            most = weighed_shifts(graph, context, found, most, _rectified, _bias_shifts)
        for group in found:
            if group.producer not in most or not bool((most[group.producer] != 0).any()):
                continue
            c = most[group.producer]
            # Subtract c from the producer, its statistics and the caps in between, and add W2 c to the consumers.
            _add(group.producer, -c, rewriter)
            statistics = statistics_of(group.producer)
            if statistics is not None:
                set_statistics(group.producer, Gaussian(statistics.mean - c, statistics.std))
            for cap in group.caps:
                _, shift = shifts.setdefault(cap.node, (cap.axis, torch.zeros(len(cap.channels), dtype=torch.float64)))
                shift -= torch.where(cap.channels == FOREIGN, 0.0, c[cap.channels.clamp(min=0)])
            for consumer in group.consumers:
                moved, at_border = _through(consumer, c)
                _add(consumer.node, moved, rewriter)
                border = max(border, at_border)
            channels, largest = channels + int((c != 0).sum()), max(largest, float(c.abs().max()))
            names = tuple(consumer.node.name for consumer in group.consumers)
            rewriter.note(group.producer, ABSORBED(channels=int((c != 0).sum()), most=float(c.max()), layers=names))
        for node, (axis, shift) in shifts.items():
            _shift_limits(node, shift, axis, rewriter)
        context.record.metrics.update(channels=channels, largest=largest, border=border)

    def _has_grid(self, context: PassContext) -> Callable[[Node], bool] | None:
        """Predicate for nodes whose results get grids of their own, whose noise counts, too."""
        if self.shifts == "all":
            return None
        return functools.partial(ends_supergroup, target=context.require_target(self.name))

    def _lowest(self, graph: Graph, context: PassContext, found: list[Group]) -> dict[Node, Tensor]:
        """Lower bounds of the producers' channels, which values never or rarely violate."""
        known: dict[Node, Tensor] = {}
        described = (
            {} if context.calibration_data is not None else describe(graph, context.input_range or DEFAULT_INPUT_RANGE)
        )
        for group in found:
            producer, moments = group.producer, statistics_of(group.producer)
            output = described.get(producer.output)
            if moments is None and isinstance(output, Distribution):
                moments = output.channels(Layer(producer).output_axis, _channels(producer))
            if moments is not None:
                known[producer] = moments.mean - self.sigmas * moments.std if _rectified(group) else moments.mean
        rest = [group.producer for group in found if group.producer not in known]
        if not rest:
            return known
        if context.calibration_data is None:
            stop = described[rest[0].output]
            assert isinstance(stop, Stop)
            if not known:
                raise PassError(
                    f"without calibration_data no range of a layer is known: {stop.why}",
                    where=stop.node.where,
                    fix="Pass calibration_data, or remove the pass.",
                )
            return known | {node: torch.zeros(_channels(node), dtype=torch.float64) for node in rest}
        observers = {node: MinMaxObserver(node.name, axis=Layer(node).output_axis) for node in rest}
        shown = {node.output: observer for node, observer in observers.items()}
        _, seen = observe(graph, context.calibration_data, shown, context.processes, context.progress)
        return known | {node: seen[node.output].range()[0].to(torch.float64) for node in rest}


def _rectified(group: Group) -> bool:
    """Whether some channel has no values below zero, which limits the shift."""
    lows = [limits_of(cap.node, len(cap.channels))[0] for cap in group.caps]
    rectifies = any(node.definition.has(Trait.RECTIFIER) for node in group.between)
    return rectifies or any(bool((low >= 0).any()) for low in lows)


def _caps_of(cap: PerChannel, count: int) -> Tensor:
    """The highest value after all clamps, per channel of the producer."""
    own = cap.channels != FOREIGN
    _, high = limits_of(cap.node, len(own))
    least = torch.full((count,), torch.inf, dtype=torch.float64)
    return least.scatter_reduce(0, cap.channels[own], high[own], "amin")


def _shift_limits(node: Node, shift: Tensor, axis: int, rewriter: Rewriter) -> None:
    """Shift the limits of a clamp; a lower limit of at least 0 stays at least 0."""
    low, high = limits_of(node, len(shift))
    moved = torch.where(low >= 0, (low + shift).clamp(min=0.0), low + shift)
    node = set_limits(node, moved, high + shift, axis, rewriter)
    rewriter.note(node, LIMITS_MOVED(shift=float(shift.abs().max())))


def _channels(layer: Node) -> int:
    return Layer(layer).outputs


def _shifts(group: Group, rewriter: Rewriter, *, padded: bool) -> bool:
    """Whether a shift of the producer's channels reaches the consumers unchanged."""
    layers = (group.producer, *(consumer.node for consumer in group.consumers))
    reason = next((NO_BIAS(layer=layer.name) for layer in layers if len(layer.inputs) < 3), None)
    for node in group.between:
        averages_padding = node.definition.has(Trait.AVERAGE) and any(node.integers("padding", ()))
        if averages_padding or node.op in ("pad", "masked") or not node.definition.has(*_KEEP_A_SHIFT):
            reason = reason or NO_SHIFT(between=node.name)
    for consumer in group.consumers:
        layer = Layer(consumer.node)
        if layer.transposed or (not padded and layer.pads):
            reason = reason or (FEWER_TAPS if layer.transposed else PADS)(layer=consumer.node.name)
    if reason is not None:
        rewriter.refuse(group.producer, reason)
    return reason is None


def _through(consumer: Consumer, c: Tensor) -> tuple[Tensor, float]:
    """W2 c per output channel, and the largest part of it that border positions lack because taps meet the padding."""
    own = consumer.channels != FOREIGN
    shift = torch.where(own, c[consumer.channels.clamp(min=0)], 0.0)
    layer = Layer(consumer.node)
    weight = layer.rows().to(torch.float64)
    per_tap = (weight * shift.reshape(layer.groups, 1, -1, 1)).sum(2)  # [groups, outputs, taps]
    border = float(per_tap.abs().sum(2).max()) if layer.pads else 0.0
    return per_tap.sum(2).reshape(-1), border


def _bias_shifts(group: Group, c: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Names of the biases that change if c moves through a group, and what is added to them."""
    yield _bias_name(group.producer), -c
    for consumer in group.consumers:
        yield _bias_name(consumer.node), _through(consumer, c)[0]


def _bias_name(layer: Node) -> str:
    leaf = leaf_of(layer.inputs[2]).producer
    assert leaf is not None, "the bias of a layer is a tensor of the model"
    return leaf.text("ref")


def _add(layer: Node, shift: Tensor, rewriter: Rewriter) -> None:
    """Add to the bias of a layer."""
    bias = leaf_of(layer.inputs[2])
    tensor = leaf_tensor(bias)
    rewriter.write_tensor(bias, (tensor.to(torch.float64) + shift).to(tensor.dtype))
