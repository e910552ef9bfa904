"""The parts of a quantized model that share a grid, and how much each of them loses.

A part is a weight, or the activations whose quantizers share one scale. Each part is measured twice: quantized alone,
with all others in float, and left in float, with all others quantized. Both are float fake quantization.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.analysis.divergence import is_classifier, summed_divergence
from qcompiler.analysis.work import digest_of
from qcompiler.calibration.journal import Journal
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.hashing import module_hash
from qcompiler.ir.interpret import Tensors
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantizers import code_limits, grid, is_leaf, is_quantizer, leaf_tensor, quantizes_parameter
from qcompiler.ops.work import count, multiply_accumulates
from qcompiler.quant.affine import along_axis, channel_rows
from qcompiler.validation.layers import QUANTIZED_NAME
from qcompiler.validation.partial import PartialRuns, Replay, float_run, fused_activations, noise_decibels

__all__ = ["Group", "Part", "Table", "groups_of", "measure_group", "noise_alone", "owner_of", "table"]

Progress: TypeAlias = Callable[[str, float, float], None]

BINS = 32
"""Bars of a histogram."""
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Part:
    """One part of a quantized model.

    Args:
        name: Name of its tensor; several, separated by commas, if they share a scale.
        layer: Name of the layer or operator that the part belongs to, which starts with its module path.
        kind: `weight` or `activation`.
        bits: Width of its codes.
        per_channel: Whether each channel has a scale.
        alone_db: Signal-to-noise ratio of the outputs if only this part is quantized, dB.
        without_db: The same if everything but this part is quantized.
        limits: Smallest and largest real number that its grid represents.
        reach: Smallest and largest number of the tensor.
        clipped: Share of its numbers outside of the limits.
        spread: Largest magnitude of a channel over that of the median channel.
        tail: Largest magnitude over the root mean square.
        macs: Share of the multiply-accumulates of the layer in those of the model; 0 for activations.
        bytes: Share of the bytes of all weights, or of all activations.
        histogram: Counts of the numbers in equal bins over `reach`.
    """

    name: str
    layer: str
    kind: str
    bits: int
    per_channel: bool
    alone_db: float
    without_db: float
    limits: tuple[float, float]
    reach: tuple[float, float]
    clipped: float
    spread: float
    tail: float
    macs: float
    bytes: float
    histogram: tuple[int, ...]

    @property
    def noise(self) -> float:
        """Noise of the outputs if only this part is quantized, as a share of their power."""
        return 10.0 ** (-self.alone_db / 10.0) if math.isfinite(self.alone_db) else 0.0


@dataclass(frozen=True, eq=False)
class Group:
    """The quantizers of a part.

    Args:
        quantizers: Quantizers that share one scale, in order.
        layer: Operator that the part belongs to: the layer of a weight, or the first operator of the supergroup that
            computes an activation; None for inputs of the model and for copies of quantized values.
    """

    quantizers: tuple[Node, ...]
    layer: Node | None

    @property
    def is_weight(self) -> bool:
        """Whether the part is a tensor of the model."""
        return quantizes_parameter(self.quantizers[0])

    @property
    def name(self) -> str:
        """Names of the tensors, without repetition."""
        return ", ".join(dict.fromkeys(item.name.removesuffix(QUANTIZED_NAME) for item in self.quantizers))

    @property
    def place(self) -> str:
        """Name of the layer."""
        return self.name if self.layer is None else self.layer.name


@dataclass(frozen=True)
class Table:
    """All parts and the whole.

    Args:
        parts: One entry per group, in order.
        groups: The groups.
        weights_db: Signal-to-noise ratio of the outputs if only weights are quantized, dB.
        activations_db: The same if only activations are.
        all_db: The same if all parts are, as float fake quantization.
        divergences: Divergence of the outputs of a classifier with only weights and only activations quantized, nats
            per sample, by `weights only` and `activations only`; empty for other models.
        fused: Activations that code limits of quantizers replace, by quantizer.
        tensors: Tensors with which the graph without quantizers gives the outputs of the float model.
    """

    parts: tuple[Part, ...]
    groups: tuple[Group, ...]
    weights_db: float
    activations_db: float
    all_db: float
    divergences: Mapping[str, float]
    fused: Mapping[Node, Node]
    tensors: Tensors


def groups_of(graph: Graph) -> tuple[Group, ...]:
    """The groups of quantizers that share a scale, in order of their first quantizer."""
    by_scale: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        if is_quantizer(node):
            by_scale.setdefault(node.inputs[1], []).append(node)
    return tuple(Group(tuple(nodes), owner_of(nodes[0])) for nodes in by_scale.values())


def owner_of(quantizer: Node) -> Node | None:
    """The operator that a quantizer belongs to; None for an input of the model, and for a copy of quantized values."""
    if quantizes_parameter(quantizer):
        readers = [user for user in quantizer.output.users if is_weighted(user)]
        return readers[0] if readers else next(iter(quantizer.output.users), None)
    node = quantizer.inputs[0].producer
    while node is not None and node.definition.has(Trait.ACTIVATION, Trait.MOVEMENT):
        before = node.inputs[0].producer
        if before is None or is_quantizer(before) or before.definition.has(Trait.LEAF):
            break
        node = before
    return None if is_quantizer(node) else node


def table(
    reference: Graph,
    graph: Graph,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    memory: int,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Table:
    """Measure all parts.

    Args:
        reference: Graph before quantizers were inserted.
        graph: At stage QUANTIZED, calibrated.
        inputs: Flat inputs, with samples along the first axis.
        wanted: Outputs of the float model.
        memory: Mebibytes of activations that are kept; more samples are measured in turns.
        journal: Finished measurements.
        progress: Callback with the name of a part, the number of finished parts, and the number of all.
    """
    groups = groups_of(graph)
    found = [_Statistics(group) for group in groups]
    alone, without = ([_Noise() for _ in groups] for _ in range(2))
    weights, activations, everything = _Noise(), _Noise(), _Noise()
    divergences = dict.fromkeys(("weights only", "activations only"), 0.0) if is_classifier(wanted) else {}
    fused = fused_activations(reference, graph)
    tensors: Tensors = graph.module.tensors
    journal = journal or Journal()
    key = ""
    if journal.folder is not None:
        key = journal.key(graph.module, "parts", module_hash(reference.module), digest_of([inputs]), str(memory))
    chunks = list(_chunks(graph, inputs, wanted, memory))
    with torch.no_grad():
        for number, (rows, outputs) in enumerate(chunks):
            runs = PartialRuns(graph, rows, fused)
            tensors, clean = float_run(runs, graph.module.tensors, reference.module.tensors, outputs)
            still = Replay(runs, tensors, active=False)
            acting = Replay(runs, tensors, active=True)
            everything.add(clean, acting.outputs)
            for name, total, chosen in (("weights only", weights, True), ("activations only", activations, False)):
                nodes = {node for group in groups if group.is_weight is chosen for node in group.quantizers}
                some = still.switched(nodes)
                total.add(clean, some)
                if divergences:
                    divergences[name] += summed_divergence(clean[0], some[0]) / len(wanted[0])
            for index, group in enumerate(groups):
                if progress is not None:
                    progress(group.name, number * len(groups) + index, len(chunks) * len(groups))
                found[index].add(still.values)
                measured = journal.piece(
                    key,
                    f"part {number} {index}",
                    functools.partial(measure_group, clean, still, acting, group),
                )
                alone[index].add_sums(measured["alone"])
                without[index].add_sums(measured["without"])
    shares = _shares(graph, groups)
    parts = [
        item.part(first.decibels(), second.decibels(), *shares[group])
        for group, item, first, second in zip(groups, found, alone, without, strict=True)
    ]
    decibels = [noise.decibels() for noise in (weights, activations, everything)]
    return Table(tuple(parts), groups, decibels[0], decibels[1], decibels[2], divergences, fused, tensors)


def measure_group(clean: Sequence[Tensor], still: Replay, acting: Replay, group: Group) -> dict[str, Tensor]:
    """Squared errors and signals of the outputs with a group alone, and with all but this group."""
    return {
        "alone": _squares(clean, still.switched(group.quantizers)),
        "without": _squares(clean, acting.switched(group.quantizers)),
    }


def noise_alone(
    reference: Graph,
    graph: Graph,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    memory: int,
    groups: Sequence[Group],
) -> list[float]:
    """Measured noise of the outputs if only one group is quantized, as a share of their power.

    Args:
        reference: As for `table`.
        graph: As for `table`.
        inputs: As for `table`.
        wanted: As for `table`.
        memory: As for `table`.
        groups: Groups of the graph, each measured by itself.
    """
    found = [_Noise() for _ in groups]
    fused = fused_activations(reference, graph)
    with torch.no_grad():
        for rows, outputs in _chunks(graph, inputs, wanted, memory):
            runs = PartialRuns(graph, rows, fused)
            tensors, clean = float_run(runs, graph.module.tensors, reference.module.tensors, outputs)
            still = Replay(runs, tensors, active=False)
            for group, noise in zip(groups, found, strict=True):
                noise.add(clean, still.switched(group.quantizers))
    return [noise.share() for noise in found]


def _chunks(
    graph: Graph, inputs: Sequence[Tensor], wanted: Sequence[Tensor], memory: int
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Inputs and outputs of few samples at a time; all at once if the batch size is fixed."""
    free = all(
        value.type.rank and not isinstance(value.type.shape[0], int) for value in (*graph.inputs, *graph.outputs)
    )
    samples = len(inputs[0]) if free else 1
    # Two runs are kept, and a third one is computed.
    bytes_each = 3 * 4 * sum(count(value) for value in graph.values() if not is_leaf(value))
    size = max(1, memory * MEBIBYTE // max(bytes_each, 1)) if free else 1
    for begin in range(0, samples, size):
        part = slice(begin, begin + size) if free else slice(None)
        yield [x[part] for x in inputs], [y[part] for y in wanted]


def _squares(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
    """Squared error and squared signal of each float output, float64 [outputs, 2].

    Elements that are not finite in the float model do not count.
    """
    rows = []
    for reference, output in zip(wanted, found, strict=True):
        if reference.is_floating_point():
            finite = torch.isfinite(reference)
            error = torch.where(finite, reference - output, 0.0).double().square().sum()
            rows.append((float(error), float(torch.where(finite, reference, 0.0).double().square().sum())))
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)


class _Noise:
    """Squared errors and squared signals of each float output, summed over chunks."""

    def __init__(self) -> None:
        self.sums = torch.zeros(1, 2, dtype=torch.float64)

    def add(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Add some samples."""
        self.add_sums(_squares(wanted, found))

    def add_sums(self, sums: Tensor) -> None:
        """Add squared errors and signals."""
        self.sums = self.sums + sums

    def share(self) -> float:
        """Mean of the relative noise of all outputs."""
        ratios = [error / signal if signal > 0.0 else error for error, signal in self.sums.tolist()]
        return sum(ratios) / len(ratios) if ratios else 0.0

    def decibels(self) -> float:
        """Signal-to-noise ratio of the mean of the relative noise of all outputs, dB."""
        return noise_decibels(self.share())


class _Statistics:
    """The numbers of the tensors of a part."""

    def __init__(self, group: Group) -> None:
        self.group = group
        node = group.quantizers[0]
        params, self.spec = grid(node)
        low, high = code_limits(node)
        scale, zero = params.scale.double(), params.zero_point.double()
        self.limits = float(((low - zero) * scale).min()), float(((high - zero) * scale).max())
        self.ends = (low - zero) * scale, (high - zero) * scale
        self.axis = params.axis
        self.least, self.most, self.square, self.clipped, self.size = math.inf, -math.inf, 0.0, 0, 0
        self.channels: Tensor | None = None
        self.kept: list[Tensor] = []

    def add(self, values: Mapping[Value, Tensor]) -> None:
        """Add the numbers of some samples; those of a weight are always the same."""
        if self.group.is_weight and self.size:
            return
        for quantizer in self.group.quantizers:
            tensor = values[quantizer.output].double()  # after an activation that the code limits replace
            finite = tensor[torch.isfinite(tensor)]
            if not finite.numel():
                continue
            self.least, self.most = min(self.least, float(finite.min())), max(self.most, float(finite.max()))
            self.square += float(finite.square().sum())
            self.size += finite.numel()
            low, high = (along_axis(end, tensor.dim(), self.axis) if end.dim() else end for end in self.ends)
            step = (high - low) / max(2**self.spec.bits - 1, 1)
            self.clipped += int(((tensor < low - step / 2) | (tensor > high + step / 2)).sum())
            self.kept.append(finite.flatten()[:: max(1, finite.numel() // 4096)])
            magnitudes = _channel_magnitudes(tensor, _channel_axis(self.group, tensor))
            same = self.channels is not None and self.channels.shape == magnitudes.shape
            self.channels = (
                torch.maximum(self.channels, magnitudes) if same and self.channels is not None else magnitudes
            )

    def part(self, alone: float, without: float, macs: float, size: float) -> Part:
        least, most = (self.least, self.most) if self.size else (0.0, 0.0)
        kept = torch.cat(self.kept) if self.kept else torch.zeros(1)
        bars = torch.histc(kept, BINS, min=least, max=most) if most > least else torch.tensor([float(len(kept))])
        level = math.sqrt(self.square / self.size) if self.size else 0.0
        return Part(
            self.group.name,
            self.group.place,
            "weight" if self.group.is_weight else "activation",
            self.spec.bits,
            self.axis is not None,
            alone,
            without,
            self.limits,
            (least, most),
            self.clipped / self.size if self.size else 0.0,
            _spread(self.channels),
            max(abs(least), abs(most)) / level if level else 0.0,
            macs,
            size,
            tuple(int(bar) for bar in bars.tolist()),
        )


def _channel_axis(group: Group, tensor: Tensor) -> int:
    layer = group.layer
    if layer is not None and is_weighted(layer):
        return Layer(layer).weight_axis if group.is_weight else Layer(layer).output_axis
    return 1 if tensor.dim() == 4 else tensor.dim() - 1


def _channel_magnitudes(tensor: Tensor, axis: int) -> Tensor:
    """The largest magnitude of each channel."""
    if not tensor.dim() or axis >= tensor.dim():
        return tensor.abs().max().reshape(1)
    finite = torch.where(torch.isfinite(tensor), tensor, 0.0)
    return channel_rows(finite, axis).abs().amax(1)


def _spread(channels: Tensor | None) -> float:
    """The largest channel over the median of the channels that are not 0."""
    if channels is None:
        return 1.0
    real = channels[channels > 0]
    return float(real.max() / real.median()) if len(real) > 1 else 1.0


def _shares(graph: Graph, groups: Sequence[Group]) -> dict[Group, tuple[float, float]]:
    """Shares of each part in the multiply-accumulates and in the bytes of all weights or activations."""
    macs = {node: multiply_accumulates(node) for node in graph.nodes if is_weighted(node)}
    sizes = {group: sum(_bits(node) for node in group.quantizers) for group in groups}
    totals = [max(1, sum(sizes[group] for group in groups if group.is_weight is kind)) for kind in (False, True)]
    whole = max(1, sum(macs.values()))
    return {
        group: (
            macs.get(group.layer, 0) / whole if group.is_weight and group.layer is not None else 0.0,
            sizes[group] / totals[group.is_weight],
        )
        for group in groups
    }


def _bits(quantizer: Node) -> int:
    value = quantizer.inputs[0]
    elements = leaf_tensor(value).numel() if is_leaf(value) else count(value)
    return elements * quantizer.spec.bits
