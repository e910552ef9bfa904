"""Costs of a quantized graph as a function of the widths of its groups, for one sample.

    bit_operations   products times width of both operands; a converted element counts with its wider width
    bytes            bytes moved: each operand and each result of an operator once
    cycles           the largest of computation and memory, operator by operator, from the descriptor's figures
    energy           picojoules of products and of bytes, from the descriptor's figures

An elementwise operator whose operands differ in width converts the narrower one: its elements are read and written once
more. Ties are one group, so that a concat never converts. The figures are those of `program.roofline`, before aliases
and bursts are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from qcompiler.analysis.assignment import Operator, Table
from qcompiler.analysis.parts import Group, owner_of
from qcompiler.errors import TargetError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantizers import is_quantizer, leaf_tensor, quantizer_of
from qcompiler.ops.work import count, multiply_accumulates
from qcompiler.targets import Target

__all__ = ["UNITS", "CostKind", "operators_of"]

CostKind: TypeAlias = Literal["bit_operations", "bytes", "cycles", "energy"]
UNITS: Mapping[str, str] = {
    "bit_operations": "bit operations",
    "bytes": "bytes",
    "cycles": "cycles",
    "energy": "picojoules",
}
"""Unit by kind of cost."""

Pairs = frozenset[tuple[int, int]]


def operators_of(
    graph: Graph,
    groups: Sequence[Group],
    widths: Sequence[Sequence[int]],
    target: Target,
    kind: CostKind,
    pairs: Pairs | None,
) -> tuple[Operator, ...]:
    """The costs of all operators.

    Args:
        graph: At stage QUANTIZED.
        groups: Groups of quantizers.
        widths: Possible widths of each group.
        target: Target with figures and with the widths that each operator multiplies.
        kind: Kind of cost.
        pairs: Allowed widths of the activation and the weight of a layer; None for all that the target multiplies.

    Raises:
        TargetError: The descriptor lacks the figures of this kind of cost.
    """
    costs = _Costs(groups, widths, target, kind, pairs)
    nodes = [node for node in graph.nodes if not node.definition.has(Trait.LEAF, Trait.MOVEMENT)]
    return tuple(found for node in nodes if not is_quantizer(node) and (found := costs.operator(node)) is not None)


@dataclass
class _Figures:
    """Figures of a descriptor for activations and for constants; None where it has none."""

    bytes_per_cycle: dict[bool, Fraction | None]
    memory: dict[bool, str]
    picojoules: dict[bool, float | None]

    @classmethod
    def of(cls, target: Target) -> _Figures:
        found = cls({}, {}, {})
        for constant, name in ((False, "activations"), (True, "constants")):
            place = next((memory for memory in target.descriptor.memory if name in memory.holds), None)
            speed = None if place is None else place.bytes_per_cycle
            found.bytes_per_cycle[constant] = None if speed is None else Fraction(speed)
            found.memory[constant] = "" if place is None else place.name
            found.picojoules[constant] = None if place is None else place.picojoules_per_byte
        return found


class _Costs:
    def __init__(
        self,
        groups: Sequence[Group],
        widths: Sequence[Sequence[int]],
        target: Target,
        kind: CostKind,
        pairs: Pairs | None,
    ) -> None:
        self.groups, self.widths, self.target, self.kind, self.pairs = groups, widths, target, kind, pairs
        self.number = {node: index for index, group in enumerate(groups) for node in group.quantizers}
        self.results = {
            owner: index
            for index, group in enumerate(groups)
            if not group.is_weight
            for node in group.quantizers
            if (owner := owner_of(node)) is not None
        }
        self.figures = _Figures.of(target)
        self.compute = target.descriptor.compute

    def operator(self, node: Node) -> Operator | None:
        """The costs of an operator; None if it has none."""
        computed = tuple(self._products(node)) or tuple(self._elements(node))
        moved = list(self._moved(node))
        if self.kind == "bit_operations":
            return _sum([*computed, *self._conversions(node)])
        if self.kind == "bytes":
            return _sum([table for table, _ in (*moved, *self._moved_by_conversions(node))] + self._forbidden(node))
        every = [*moved, *self._moved_by_conversions(node)]
        if self.kind == "energy":
            energy = [_times(table, self._picojoules(constant)) for table, constant in every]
            return _sum([*energy, *computed])
        memories: dict[str, list[Table]] = {}
        for table, constant in every:
            speed = self.figures.bytes_per_cycle[constant]
            if speed is not None:
                cycles = _times(table, float(1 / speed))
                memories.setdefault(self.figures.memory[constant], []).append(cycles)
        resources = [[*computed, *self._conversions(node)], *memories.values()]
        found = tuple(tuple(tables) for tables in resources if tables)
        return Operator(found) if found else None

    def _products(self, node: Node) -> Iterator[Table]:
        """Costs of the products of a layer or a contraction, by the widths of both operands."""
        macs = multiply_accumulates(node)
        if not macs or node.callee is not None:
            return
        first, second = (self._group(value) for value in node.inputs[:2])
        if first is None or second is None:
            return
        values = {}
        for a, b in self._pairs_of(first, second):
            if is_weighted(node) and not self._multiplies(node, first, a, b):
                continue
            cost = self._cost_of_products(node, macs, a, b)
            if cost is not None:
                values[a, b] = cost
        if not values:
            raise TargetError(
                f"{self.target.name} has no {UNITS[self.kind]} for {node.op}",
                where="[compute]",
                fix='Add the figures to the descriptor, or choose cost="bit_operations" or cost="bytes".',
            )
        yield _table(first, second, values)

    def _multiplies(self, node: Node, first: int, a: int, b: int) -> bool:
        """Whether a layer may have these widths; the width of a group without a choice is always allowed."""
        free = len(self.widths[first]) > 1
        if self.pairs is not None and free and (a, b) not in self.pairs:
            return False
        return not self.target.unmultiplied(node.op, a, b)

    def _cost_of_products(self, node: Node, macs: int, a: int, b: int) -> float | None:
        if self.kind == "bit_operations":
            return float(macs * a * b)
        if self.kind == "energy":
            each = self.compute.picojoules_per_mac
            return None if each is None else macs * each
        if self.kind == "cycles":
            rate = self.compute.macs_per_cycle.get(f"{_stored(a)}x{_stored(b, packed=self._packs)}")
            if rate is None:
                return None
            channels = node.output.type.size(Layer(node).output_axis) if is_weighted(node) else 1
            multiple = self.target.descriptor.layout.channel_multiple if is_weighted(node) else 1
            return float(-(-channels // multiple) * multiple * macs / (channels * rate))
        return 0.0

    @property
    def _packs(self) -> bool:
        return self.target.packing != "none"

    def _forbidden(self, node: Node) -> list[Table]:
        """Tables of cost 0 that exclude widths which a layer does not multiply."""
        return list(self._products(node)) if self.kind == "bytes" else []

    def _elements(self, node: Node) -> Iterator[Table]:
        """Cycles of an operator that is not a sum of products; other costs of it are those of moved bytes."""
        group = self._written(node)
        if self.kind != "cycles" or group is None or node.callee is not None:
            return
        rate = self.compute.elementwise_per_cycle
        if rate is not None:
            work = max(count(node.output), *(count(value) for value in node.inputs[:1]))
            yield Table((group,), dict.fromkeys(((width,) for width in self.widths[group]), float(-(-work // rate))))

    def _moved(self, node: Node) -> Iterator[tuple[Table, bool]]:
        """Bytes of operands and results by width, and whether they are constants."""
        for value in dict.fromkeys(node.inputs):
            group = self._group(value)
            if group is None:
                continue
            constant = self.groups[group].is_weight
            elements = leaf_tensor(self.groups[group].quantizers[0].inputs[0]).numel() if constant else count(value)
            yield self._bytes(group, elements, packed=constant and self._packs), constant
        group = self._written(node)
        if group is not None:
            yield self._bytes(group, count(node.output), packed=False), False

    def _bytes(self, group: int, elements: int, *, packed: bool) -> Table:
        widths = self.widths[group]
        return Table((group,), {(width,): elements * _stored(width, packed=packed) / 8 for width in widths})

    def _joined(self, node: Node) -> tuple[int, int, int] | None:
        """Groups of both operands of an elementwise operator, and the elements of one; None for other operators."""
        if node.callee is not None or multiply_accumulates(node) or len(node.inputs) < 2 or is_weighted(node):
            return None
        first, second = (self._group(value) for value in node.inputs[:2])
        if first is None or second is None or first == second:
            return None
        return first, second, min(count(value) for value in node.inputs[:2])

    def _conversions(self, node: Node) -> Iterator[Table]:
        """Conversions of operands as bit operations or cycles."""
        joined = self._joined(node)
        if joined is None:
            return
        first, second, elements = joined
        rate = self.compute.elementwise_per_cycle
        if self.kind == "cycles" and rate is None:
            return

        def cost(a: int, b: int) -> float:
            if a == b:
                return 0.0
            return float(-(-elements // rate) if self.kind == "cycles" and rate else elements * max(a, b))

        yield _table(first, second, {(a, b): cost(a, b) for a, b in self._pairs_of(first, second)})

    def _moved_by_conversions(self, node: Node) -> Iterator[tuple[Table, bool]]:
        joined = self._joined(node)
        if joined is None:
            return
        first, second, elements = joined
        moved = {
            (a, b): 0.0 if a == b else elements * (_stored(a) + _stored(b)) / 8
            for a, b in self._pairs_of(first, second)
        }
        yield _table(first, second, moved), False

    def _picojoules(self, constant: bool) -> float:
        found = self.figures.picojoules[constant]
        if found is None:
            raise TargetError(
                f"{self.target.name} has no energy per byte",
                where="memory.picojoules_per_byte",
                fix='Add the figures to the descriptor, or choose cost="bit_operations" or cost="bytes".',
            )
        return found

    def _pairs_of(self, first: int, second: int) -> list[tuple[int, int]]:
        if first == second:
            return [(width, width) for width in self.widths[first]]
        return list(itertools.product(self.widths[first], self.widths[second]))

    def _group(self, value: Value) -> int | None:
        """The group of the grid of an operand; None for operands without a grid, such as a sum inside a supergroup."""
        quantizer = quantizer_of(value)
        return None if quantizer is None else self.number.get(quantizer)

    def _written(self, node: Node) -> int | None:
        """The group of the result of an operator and of the activation after it."""
        return self.results.get(node)


def _table(first: int, second: int, values: Mapping[tuple[int, int], float]) -> Table:
    """A table for two groups, which may be the same one."""
    if first == second:
        return Table((first,), {(a,): value for (a, b), value in values.items() if a == b})
    return Table((first, second), {(a, b): value for (a, b), value in values.items()})


def _sum(tables: Sequence[Table]) -> Operator | None:
    return Operator((tuple(tables),)) if tables else None


def _times(table: Table, factor: float) -> Table:
    return Table(table.groups, {widths: value * factor for widths, value in table.values.items()})


def _stored(bits: int, *, packed: bool = False) -> int:
    """Width of the storage of a code."""
    if bits > 8:
        return 16
    return 4 if packed and bits <= 4 else 8
