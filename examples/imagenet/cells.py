"""Cells of tables: which there are, and in which order they are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from examples.imagenet.results import Place, Sheet

__all__ = ["Cells", "Make", "bits_of", "gathered"]

FLOAT_WIDTH = "W32A32"


class _Cell(Protocol):
    @property
    def seed(self) -> int:
        """Draw of the calibration images."""


C = TypeVar("C", bound=_Cell)
W = TypeVar("W")


def bits_of(width: str) -> tuple[int, int]:
    """Bits of weights and of activations of a width such as W4A8."""
    weights, activations = width.removeprefix("W").split("A")
    return int(weights), int(activations)


class Cells(Generic[C, W]):
    """Makes places of cells, and remembers the cells.

    Args:
        make: Function from network, width, way to quantize and seed to a cell.
        unquantized: The way of the float network.
        seeds: Draws of the calibration images.
        name: Function from a cell to the name of its file; cells with equal results have one name.
    """

    def __init__(
        self, make: Callable[[str, str, W, int], C], unquantized: W, seeds: Sequence[int], name: Callable[[C], str]
    ) -> None:
        self.make, self.unquantized, self.seeds, self.name = make, unquantized, seeds, name
        self.found: dict[str, C] = {}

    def place(self, network: str, width: str, way: W) -> Place:
        """The cells of a place, one per seed."""
        cells = {self.name(cell): cell for cell in (self.make(network, width, way, seed) for seed in self.seeds)}
        for name, cell in cells.items():
            self.found.setdefault(name, cell)
        return list(cells)

    def exact(self, network: str) -> Place:
        """The cells of the float network."""
        return self.place(network, FLOAT_WIDTH, self.unquantized)


Make = Callable[[Cells[C, W], Sequence[str], Sequence[str] | None], Iterator[Sheet]]
"""Function from cells, networks and widths (None: those of the papers) to the sheets of a table."""


def gathered(
    cells: Cells[C, W],
    tables: Mapping[str, Make[C, W]],
    chosen: Sequence[str],
    networks: Sequence[str],
    widths: Sequence[str] | None,
) -> tuple[list[Sheet], dict[str, C]]:
    """The chosen tables, and their cells by name in the order in which they are measured.

    The first seed of all cells comes before the second one, so that an unfinished run has whole tables.
    """
    for network in networks:
        cells.exact(network)
    sheets = [sheet for table in chosen for sheet in tables[table](cells, networks, widths)]
    return sheets, dict(sorted(cells.found.items(), key=lambda item: cells.seeds.index(item[1].seed)))
