"""Bytes that layers move with static and with dynamic quantization ranges.

A static range is known before the layer runs: accumulators are requantized in registers, and codes are written. A
dynamic range depends on the whole result: accumulators are written, read again when the range is known, and quantized.

    static  = weights + operands + result                            each at the width of its codes
    dynamic = static + 2 * accumulators                              written once and read once

Source: Fournarakis and Nagel 2021, arXiv:2105.04246, In-Hindsight Quantization Range Estimation for Quantized Training
(the question and the comparison; the formula is a reconstruction).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Direction", "Movement", "Place", "Traffic"]

KIBIBYTE = 1024.0


class Direction(StrEnum):
    """The three products of a layer in training."""

    FORWARD = "forward"
    """The result, from the input and the weight."""
    INPUT_GRADIENT = "input gradient"
    """The gradient of the input, from the gradient of the result and the weight."""
    WEIGHT_GRADIENT = "weight gradient"
    """The gradient of the weight, from the gradient of the result and the input; it stays in float32."""


@dataclass(frozen=True)
class Place:
    """The memories that a layer works in, as the descriptor of the target names them.

    Args:
        activations: Memory of activations, gradients and accumulators; empty if none is large enough.
        constants: Memory of the weights; empty if none is large enough.
        cycles: Cycles of all transfers; None if a bandwidth is unknown.
        picojoules: Energy of all transfers; None if the energy of a byte is unknown.
    """

    activations: str
    constants: str
    cycles: int | None = None
    picojoules: float | None = None


@dataclass(frozen=True)
class Movement:
    """The bytes that one product of a layer moves.

    Args:
        layer: Name of the layer.
        op: Operator.
        direction: Which of the products.
        weights: Bytes of the weight that are read.
        read: Bytes of activations and gradients that are read.
        written: Bytes of the quantized result, and of a second copy of a gradient.
        accumulators: Bytes of the result before it is quantized; 0 for a result that is not quantized.
        static_place: Memories with a static range; None for a target without memories.
        dynamic_place: Memories with a dynamic range.
    """

    layer: str
    op: str
    direction: Direction
    weights: int
    read: int
    written: int
    accumulators: int
    static_place: Place | None = None
    dynamic_place: Place | None = None

    @property
    def static(self) -> int:
        """Bytes moved if the range of the result is known before."""
        return self.weights + self.read + self.written

    @property
    def dynamic(self) -> int:
        """Bytes moved if the range is taken from the result itself."""
        return self.static + 2 * self.accumulators

    @property
    def increase(self) -> float:
        """Additional bytes of a dynamic range as a share of those of a static range."""
        return 2 * self.accumulators / self.static if self.static else 0.0


@dataclass(frozen=True)
class Traffic:
    """The bytes that a model moves in one step.

    Args:
        target: Name of the target.
        batch: Samples per step.
        movements: One entry per product, in order of the layers; for each layer the forward product first.
        notes: Parts that are not counted, each with the reason.
    """

    target: str
    batch: int
    movements: tuple[Movement, ...]
    notes: tuple[str, ...] = ()

    HEAD = ("layer", "operation", "product", "static KB", "dynamic KB", "increase", "memory")
    """Column titles of `table`."""

    def of(self, direction: Direction | str) -> tuple[Movement, ...]:
        """The products of one direction."""
        return tuple(item for item in self.movements if item.direction == direction)

    @property
    def static(self) -> int:
        """Bytes of all products with static ranges."""
        return sum(item.static for item in self.movements)

    @property
    def dynamic(self) -> int:
        """Bytes of all products with dynamic ranges."""
        return sum(item.dynamic for item in self.movements)

    @property
    def increase(self) -> float:
        """Additional bytes of dynamic ranges as a share of those of static ranges."""
        return self.dynamic / self.static - 1.0 if self.static else 0.0

    def table(self) -> list[tuple[str, ...]]:
        """One row per product; 1 KB is 1,024 bytes."""
        return [
            (
                item.layer,
                item.op,
                item.direction,
                f"{item.static / KIBIBYTE:.0f}",
                f"{item.dynamic / KIBIBYTE:.0f}",
                _percent(item.increase),
                _memory(item),
            )
            for item in self.movements
        ]

    def summary(self) -> str:
        """Totals in a sentence, and one sentence for each note."""
        shares = []
        for direction in Direction:
            found = Traffic(self.target, self.batch, self.of(direction))
            if found.movements:
                kilobytes = [f"{size / KIBIBYTE:.0f} KB" for size in (found.static, found.dynamic)]
                shares.append(f"{direction} {kilobytes[0]} and {kilobytes[1]} ({_percent(found.increase)})")
        samples = "1 sample" if self.batch == 1 else f"{self.batch} samples"
        moved = "; ".join(shares) or "nothing"
        text = f"{self.target}, {samples}, moved with static and with dynamic ranges: {moved}"
        return "\n".join((text, *map(str, self.notes)))

    def __str__(self) -> str:
        rows = [self.HEAD, *self.table()]
        widths = [max(len(row[index]) for row in rows) for index in range(len(self.HEAD))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join((*lines, self.summary()))

    def to_dict(self) -> dict[str, object]:
        """The result as data for JSON."""
        return {
            "target": self.target,
            "batch": self.batch,
            "static": self.static,
            "dynamic": self.dynamic,
            "increase": self.increase,
            "movements": [
                {
                    **dataclasses.asdict(item),
                    "static": item.static,
                    "dynamic": item.dynamic,
                    "increase": item.increase,
                }
                for item in self.movements
            ],
            "notes": list(self.notes),
        }

    def plot(self, title: str = "", direction: Direction | str = Direction.FORWARD) -> str:
        """Bars of static and dynamic kilobytes by layer, as SVG; needs `qcompiler[plots]`.

        Args:
            title: Title; by default the target and the number of samples.
            direction: Product that is drawn.

        Raises:
            InputError: matplotlib is not installed.
        """
        from qcompiler.pages.plots import Bars

        items = self.of(direction)
        title = title or f"KB moved by the {direction} product on {self.target}, batch {self.batch}"
        kinds = {
            "static range": [item.static / KIBIBYTE for item in items],
            "dynamic range": [item.dynamic / KIBIBYTE for item in items],
        }
        return Bars(title, [item.layer for item in items], kinds).svg()


def _percent(share: float) -> str:
    return f"{100.0 * share:+.0f} %"


def _memory(item: Movement) -> str:
    """The memories of activations with static and dynamic ranges, one name if they are the same."""
    places = [place.activations or "none" for place in (item.static_place, item.dynamic_place) if place is not None]
    return " -> ".join(dict.fromkeys(places))


@dataclass(frozen=True)
class Memories:
    """The memories of a target, and what its layers keep in them.

    Args:
        sizes: Size in bytes by name, in the order in which memories are filled.
        holds: Contents that each memory may hold.
        figures: Bytes per cycle and picojoules per byte of each memory; None where unknown.
        constants: Memory of all weights; empty if none is large enough.
    """

    sizes: Mapping[str, int]
    holds: Mapping[str, Sequence[str]]
    figures: Mapping[str, tuple[float | None, float | None]]
    constants: str

    def place(self, item: Movement, *, dynamic: bool) -> Place:
        """The memories of one product: its operands and its result, or its accumulators, are there together."""
        needed = item.read + (max(item.accumulators, item.written) if dynamic else item.written)
        free = dict(self.sizes)
        activations = next(
            (name for name, size in free.items() if "activations" in self.holds[name] and size >= needed), ""
        )
        moved = {activations: (item.dynamic if dynamic else item.static) - item.weights}
        moved[self.constants] = moved.get(self.constants, 0) + item.weights
        figures = [(self.figures.get(name, (None, None)), size) for name, size in moved.items() if size]
        cycles = _sum(None if rate is None else size / rate for (rate, _), size in figures)
        energy = _sum(None if each is None else size * each for (_, each), size in figures)
        return Place(activations, self.constants, None if cycles is None else math.ceil(cycles), energy)


def _sum(parts: Iterator[float | None]) -> float | None:
    """The sum; None if a part is unknown."""
    found = list(parts)
    known = [part for part in found if part is not None]
    return sum(known) if len(known) == len(found) else None
