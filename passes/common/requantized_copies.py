"""Decides which operands of joins keep their own grids, so that the join reads requantized copies.

`joined_grids` has the arithmetic. Ranges come from one run over the calibration data, or from batch norms. The
sensitivity of the outputs is measured on calibration data; or each reader counts alike, whatever it computes: the noise
of what it reads, as a share of the power. The power of an operand follows from its range then.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qcompiler.calibration.data_free import DEFAULT_INPUT_RANGE, describe
from qcompiler.calibration.distribution import Distribution
from qcompiler.calibration.observers import MinMaxObserver, Observer
from qcompiler.calibration.runner import observe
from qcompiler.ir.analysis import connected_groups
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import is_quantizer, leaf_tensor, quantizes_parameter
from qcompiler.passes.base import PassContext
from qcompiler.passes.common.covered_values import covered
from qcompiler.passes.common.joined_grids import Edge, JoinedGrids, Operand, Range, Reading, step_of, union
from qcompiler.passes.common.mean_sensitivities import mean_sensitivities
from qcompiler.quant.affine import channel_rows
from qcompiler.validation.noise import Sensitivities, decibels

GAIN = 0.05
"""Share of the expected noise of the whole model that each copy has to remove, because it costs time."""
LEAST_DB = 0.5
"""Expected gain of the whole model, dB, below which there are no copies: new roundings may be less fortunate."""
LEAST_OF_A_PART = 20.0
"""Expected signal-to-noise ratio of an operand, dB, below which a join is computed in float, where allowed.
Eight bits have 20 dB for a range that is a thirtieth of the whole."""
RATIO = 1.25
"""Ratio of the shared step to the own one below which no copy is considered."""
GAIN_OF_A_READER = 1e-3
"""Gain of a copy without sensitivities: noise of the readers, as a share of the power of what they read."""
RATIO_OF_A_READER = 4.0
"""`RATIO` without sensitivities: 12 dB for the other readers."""
SWEEPS = 3
"""Largest number of visits of each part: a copy changes the noise of the whole model."""
DEVIATIONS = 3.0
"""Standard deviations from 0 to the end of a range, where a power follows from a range."""


@dataclass(eq=False)
class Join:
    """An operator that reads operands on one grid.

    Args:
        node: The operator.
        members: The quantizer of each operand; None for operands without one.
        follower: The quantizer of the result, which shares the grid.
        may_part: Whether the operands may keep their own grids, because the join can be computed in float.
        must_part: Whether they do, because given encodings say so.
    """

    node: Node
    members: tuple[Node | None, ...]
    follower: Node | None = None
    may_part: bool = False
    must_part: bool = False

    @functools.cached_property
    def free(self) -> list[Node]:
        """The quantizers that share a grid: those without a range, of one width."""
        open_ = [item for item in self.members if item is not None and is_open(item)]
        return [item for item in dict.fromkeys(open_) if item.spec == open_[0].spec]


@dataclass(frozen=True)
class Copy:
    """A copy that a join reads.

    Args:
        own: Step of the grid that the operand keeps.
        shared: Step of the grid of the join.
    """

    own: float
    shared: float


@dataclass(frozen=True)
class Decision:
    """The copies that were chosen.

    Args:
        copies: By join and quantizer.
        parted: By join that is to be computed in float, the operand that would lose most, and its expected
            signal-to-noise ratio on the shared grid, dB.
        declined: Quantizers for which copies were considered, without success.
        little: Whether the copies were given up because all together gain too little.
        before: Expected noise of the whole model without copies, as a share of the power of the outputs; without
            sensitivities, of what the joined tensors' readers read.
        after: The same with the copies.
        measured: Whether sensitivities were measured.
    """

    copies: Mapping[tuple[Node, Node], Copy]
    parted: Mapping[Node, tuple[Node, float]] = field(default_factory=dict)
    declined: tuple[Node, ...] = ()
    little: bool = False
    before: float = 0.0
    after: float = 0.0
    measured: bool = False


def is_open(quantizer: Node) -> bool:
    """Whether calibration finds the range of `quantizer`."""
    return not is_calibrated(leaf_tensor(quantizer.inputs[1]))


def choose_copies(
    graph: Graph, context: PassContext, joins: Sequence[Join], ties: Iterable[Sequence[Node]], *, measured: bool
) -> Decision:
    """The copies that lower the expected noise enough.

    Args:
        graph: A QUANTIZED graph before calibration.
        context: The context, for data.
        joins: The joins.
        ties: Further quantizers that share a grid.
        measured: Whether sensitivities are measured, if there is data.
    """
    known = [join for join in joins if len(join.free) > 1]
    clusters = _clusters(graph, known, ties)
    shared = any(map(functools.partial(_is_read_elsewhere, joins={join.node for join in known}), clusters))
    may_part = [join for join in joins if join.may_part]
    if not shared and not may_part:
        return Decision({})  # a copy helps other readers only
    quantizers = [node for node in graph.nodes if is_quantizer(node) and not quantizes_parameter(node)]
    quantizers += [node for node in graph.nodes if quantizes_parameter(node) and _is_activation(node)]
    ranges = _ranges(graph, context, quantizers, [*known, *may_part])
    if ranges is None:
        return Decision({})
    weakest = {join: _weakest(join, ranges) for join in may_part}
    parted = {join.node: it for join, it in weakest.items() if join.must_part or it[1] < LEAST_OF_A_PART}
    known = [join for join in known if join.node not in parted]
    plain = _Choice(_clusters(graph, known, ties), known, ranges, _plain(known, ranges))
    if not any(part.grids.candidates(RATIO) for part in plain.parts):
        return Decision({}, parted)
    wanted = measured and context.calibration_data is not None
    facts = _sensed(graph, context, quantizers, known) if wanted else None
    choice = plain if facts is None else _Choice(plain.clusters, known, ranges, facts)
    return dataclasses.replace(choice.decide(quantizers), parted=parted)


def _weakest(join: Join, ranges: _Ranges) -> tuple[Node, float]:
    """The operand with the smallest range, and its expected signal-to-noise ratio on the shared grid, dB."""
    members = [item for item in dict.fromkeys(join.members) if item is not None]
    weakest = min(members, key=lambda item: _power(ranges.of(item)))
    spec = max((item.spec for item in join.free or members), key=lambda spec: spec.bits)
    noise = step_of(*ranges.of_join(join), spec) ** 2 / 12.0
    return weakest, decibels(noise / _power(ranges.of(weakest)))


def _clusters(graph: Graph, joins: Sequence[Join], ties: Iterable[Sequence[Node]]) -> list[list[Node]]:
    """The quantizers of joins that have one grid in any case, such as those before and after an average."""
    alone = [[item] for join in joins for item in (*join.free, join.follower) if item is not None]
    tied = [[item for item in tie if is_open(item) and item.spec == tie[0].spec] for tie in ties if tie]
    members = {item for items in alone for item in items}
    return [cluster for cluster in connected_groups(graph, [*tied, *alone]) if not members.isdisjoint(cluster)]


def _is_read_elsewhere(cluster: Sequence[Node], joins: Collection[Node]) -> bool:
    """Whether quantizers with one grid have several readers, or one that is no join."""
    readers = {reader for item in cluster for reader in _readers(item)}
    for item in cluster:
        readers.discard(item.inputs[0].producer)  # the operator that ties two of them
    return len(readers) > 1 or not readers <= set(joins)


def _is_activation(quantizer: Node) -> bool:
    """Whether a tensor of the model is quantized like an activation: it is not the weight of a layer."""
    return not any(
        user.definition.has(Trait.WEIGHTED, Trait.PARAMETRIC) and quantizer.output in user.inputs[1:]
        for user in quantizer.output.users
    )


def _readers(quantizer: Node) -> Iterator[Node | None]:
    """The nodes that read codes of `quantizer`, through ops that only move elements; None for an output."""
    waiting = [quantizer.output]
    while waiting:
        value = waiting.pop()
        if quantizer.graph.is_output(value):
            yield None
        for user in value.users:
            if user.definition.has(Trait.MOVEMENT) and len(user.inputs) == 1:
                waiting.append(user.output)
            else:
                yield user


class _Ranges:
    """Ranges of values, by what a grid has to cover."""

    def __init__(self, found: Mapping[Value, Range]) -> None:
        self.found = found
        self.of = functools.cache(self._of)
        self.of_join = functools.cache(self._of_join)

    def _of(self, quantizer: Node) -> Range:
        if not is_open(quantizer):
            spec = quantizer.spec
            scale, zero = (float(leaf_tensor(value).max()) for value in quantizer.inputs[1:3])
            return (spec.qmin - zero) * scale, (spec.qmax - zero) * scale
        return self.found[covered(quantizer)]

    def _of_join(self, join: Join) -> Range:
        """The range of the shared grid: of the result for a choice between operands, else of all operands."""
        if _chooses(join.node):
            return self.found[join.node.output]
        return union(map(self.of, filter(None, (*join.members, join.follower))))


def _chooses(node: Node) -> bool:
    return node.definition.has(Trait.ELEMENTWISE)


def _ranges(graph: Graph, context: PassContext, quantizers: Sequence[Node], joins: Sequence[Join]) -> _Ranges | None:
    """The ranges of all quantizers and joins; None if some are not known without data."""
    values = dict.fromkeys(covered(item) for item in quantizers if is_open(item))
    values.update(dict.fromkeys(join.node.output for join in joins if _chooses(join.node)))
    if context.calibration_data is not None:
        observers: dict[Value, Observer] = {value: MinMaxObserver(value.name) for value in values}
        _, seen = observe(graph, context.calibration_data, observers, context.processes, context.progress)
        pairs = {value: seen[value].range() for value in values}
        return _Ranges({value: (float(low), float(high)) for value, (low, high) in pairs.items()})
    known = describe(graph, context.input_range or DEFAULT_INPUT_RANGE) if values else {}
    found = {value: known[value] for value in values}
    described = {value: item.range for value, item in found.items() if isinstance(item, Distribution)}
    return _Ranges(described) if len(described) == len(found) else None


@dataclass(frozen=True)
class _Facts:
    """The cost of errors.

    Args:
        weights: Expected noise of the weights; None if sensitivities are unknown.
        of: Sensitivity to errors of a quantizer, for all of its readers.
        read: Sensitivity to errors of a quantizer that only a join reads.
    """

    weights: float | None
    of: Callable[[Node], float]
    read: Callable[[Join, Node], float]


def _sensed(graph: Graph, context: PassContext, quantizers: Sequence[Node], joins: Sequence[Join]) -> _Facts | None:
    """Sensitivities on calibration data; None if no output depends on the values through differentiable operators."""
    values = {item.output: 0 for item in quantizers if item.output.type.rank}
    values |= {join.node.output: _axis(join.node) for join in joins}
    views = [view for node in graph.nodes if (view := Layer.of(node)) is not None and view.quantizer is not None]
    try:
        found = mean_sensitivities(graph, context, values, list(dict.fromkeys(map(_name, views))), {})
    except RuntimeError:  # a function of an island may have no derivative
        return None
    if found is None:
        return None
    totals = {value: float(rows.sum()) for value, rows in found.values.items()}

    reads = {join.node: _shares(join, found.values[join.node.output]) for join in joins}
    weights = sum(_noise_of_weight(view, found) for view in views)
    return _Facts(
        weights,
        lambda quantizer: totals.get(quantizer.output, 0.0),
        lambda join, quantizer: reads[join.node].get(quantizer, 0.0),
    )


def _shares(join: Join, rows: Tensor) -> dict[Node, float]:
    """The sensitivity to each quantizer that a join reads, from those of the slices of its result."""
    sizes = [value.type.shape[_axis(join.node)] for value in join.node.inputs]
    known = [size for size in sizes if isinstance(size, int)]
    found: dict[Node, float] = {}
    if _chooses(join.node) or len(known) < len(sizes) or sum(known) != len(rows):
        return dict.fromkeys(filter(None, join.members), float(rows.sum()))  # at most
    for member, part in zip(join.members, rows.split(known), strict=True):
        if member is not None:
            found[member] = found.get(member, 0.0) + float(part.sum())
    return found


def _axis(node: Node) -> int:
    return 0 if _chooses(node) else node.integer("axis")


def _name(layer: Layer) -> str:
    leaf = layer.weight.producer
    assert leaf is not None, "the weight of a layer is a tensor of the model"
    return leaf.text("ref")


def _noise_of_weight(layer: Layer, found: Sensitivities) -> float:
    """Expected noise of a quantized weight, on grids that reach to the largest weight."""
    assert layer.quantizer is not None, "the weight has a quantizer"
    spec = layer.quantizer.spec
    weight, sensitivity = layer.weight_tensor().abs(), found.tensors[_name(layer)]
    axis = 0 if spec.axis is None else spec.axis
    largest = channel_rows(weight, axis).amax(1).to(torch.float64)
    sums = channel_rows(sensitivity, axis).sum(1)
    if spec.axis is None:
        largest = largest.max()
    return float(((largest / spec.qmax).square() * sums).sum()) / 12.0


def _plain(joins: Sequence[Join], ranges: _Ranges) -> _Facts:
    """Each reader counts alike."""
    apart = {join.node for join in joins}
    counts = {join: Counter(join.members) for join in joins}
    costs = {join: 1.0 / len(join.members) / _power(ranges.of_join(join)) for join in joins}
    reads: dict[Node, list[Join]] = {}
    for join in joins:
        for item in filter(None, counts[join]):
            reads.setdefault(item, []).append(join)

    def read(join: Join, quantizer: Node) -> float:
        return counts[join][quantizer] * costs[join]

    def of(quantizer: Node) -> float:
        others = any(reader not in apart for reader in _readers(quantizer))
        alone = 1.0 / _power(ranges.of(quantizer)) if others else 0.0
        return alone + sum(read(join, quantizer) for join in reads.get(quantizer, ()))

    return _Facts(None, of, read)


def _power(values: Range) -> float:
    return max((max(map(abs, values)) / DEVIATIONS) ** 2, 1e-30)


class _Choice:
    """The joins of a graph in connected parts.

    Args:
        clusters: Quantizers that have one grid in any case.
        joins: Joins with several free quantizers.
        ranges: Ranges of all quantizers.
        facts: The cost of errors.
    """

    def __init__(
        self, clusters: Sequence[Sequence[Node]], joins: Sequence[Join], ranges: _Ranges, facts: _Facts
    ) -> None:
        self.clusters, self.joins, self.ranges, self.facts = clusters, joins, ranges, facts
        self.cluster_of = {item: number for number, cluster in enumerate(self.clusters) for item in cluster}
        self.parts = list(map(self._part, self._connected()))

    def _connected(self) -> Iterator[tuple[list[int], list[int]]]:
        """Numbers of the clusters and of the joins of each part."""
        import networkx as nx

        net: nx.Graph[tuple[str, int]] = nx.Graph()
        for number, join in enumerate(self.joins):
            for item in self._tied(join):
                net.add_edge(("join", number), ("cluster", self.cluster_of[item]))
        for part in nx.connected_components(net):
            yield (
                sorted(number for kind, number in part if kind == "cluster"),
                sorted(number for kind, number in part if kind == "join"),
            )

    def _tied(self, join: Join) -> list[Node]:
        follower = join.follower
        shares = follower is not None and is_open(follower) and follower.spec == join.free[0].spec
        return [*join.free, *([follower] if follower is not None and shares else [])]

    def _part(self, numbers: tuple[list[int], list[int]]) -> _Part:
        clusters, joins = numbers
        operands = []
        positions = {number: position for position, number in enumerate(clusters)}
        for number in clusters:
            items = self.clusters[number]
            cost = sum(map(self.facts.of, items))
            operands.append(Operand(union(map(self.ranges.of, items)), cost))
        readings: dict[Edge, Reading] = {}
        for position, number in enumerate(joins):
            join = self.joins[number]
            counts = Counter(join.members)
            for item in self._tied(join):
                edge = (positions[self.cluster_of[item]], position)
                known = readings.get(edge, Reading(0.0, 0))
                fixed = known.fixed or item is join.follower
                cost = known.sensitivity + (0.0 if item is join.follower else self.facts.read(join, item))
                readings[edge] = Reading(cost, known.copies + counts[item], fixed)
        for (position, _), reading in readings.items():  # gradients of several readers may cancel each other
            least = max(operands[position].sensitivity, reading.sensitivity)
            operands[position] = Operand(operands[position].range, least)
        spec = self.joins[joins[0]].free[0].spec
        grids = JoinedGrids(spec, operands, [self.ranges.of_join(self.joins[number]) for number in joins], readings)
        return _Part(clusters, joins, grids)

    def decide(self, quantizers: Sequence[Node]) -> Decision:
        """Choose the copies of all parts."""
        shared = sum(part.grids.noise() for part in self.parts)
        if self.facts.weights is None:
            for part in self.parts:
                part.grids.choose(GAIN_OF_A_READER, RATIO_OF_A_READER)
            return self._decision(shared, sum(part.grids.noise() for part in self.parts), little=False)
        rest = self.facts.weights + sum(map(self._own_noise, quantizers))
        before = now = rest + shared
        for _ in range(SWEEPS):
            last = now
            for part in self.parts:
                part.grids.choose(GAIN * now, RATIO)
                now = rest + sum(item.grids.noise() for item in self.parts)
            if now == last:
                break
        little = 0.0 < now < before < now * 10.0 ** (LEAST_DB / 10.0)
        if little:
            for part in self.parts:
                part.grids.copied.clear()
        return self._decision(before, before if little else now, little=little)

    def _own_noise(self, quantizer: Node) -> float:
        if quantizer in self.cluster_of:
            return 0.0
        return step_of(*self.ranges.of(quantizer), quantizer.spec) ** 2 / 12.0 * self.facts.of(quantizer)

    def _decision(self, before: float, after: float, *, little: bool) -> Decision:
        copies: dict[tuple[Node, Node], Copy] = {}
        declined: list[Node] = []
        for part in self.parts:
            grids = part.grids
            members = [set(self.joins[number].members) for number in part.joins]
            for operand, join in sorted(grids.copied):
                node = self.joins[part.joins[join]]
                copy = Copy(grids.shared_step(operand), grids.step_at(join))
                for item in self.clusters[part.clusters[operand]]:
                    if item in members[join]:
                        copies[node.node, item] = copy
            declined += [self.clusters[part.clusters[item]][0] for item in grids.candidates(RATIO)]
        return Decision(copies, {}, tuple(declined), little, before, after, self.facts.weights is not None)


@dataclass(frozen=True)
class _Part:
    """Joins that are connected with each other.

    Args:
        clusters: Numbers of its operands.
        joins: Numbers of its joins.
        grids: Arithmetic of the grids.
    """

    clusters: list[int]
    joins: list[int]
    grids: JoinedGrids
