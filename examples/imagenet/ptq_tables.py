"""The tables of post-training quantization: those of the white paper, and those of AIMET.

The ways to quantize of the white paper stand in `benchmarks/ptq_tables.py`, which measures them on small networks.

Source: Nagel et al. 2021, arXiv:2106.08295, tables 1 to 6 (the white paper); Siddegowda et al. 2022, arXiv:2201.08442,
and the README and the model zoo of AIMET.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.ptq_tables import ACTIVATIONS, METHODS, WEIGHTS, Row, Table
from examples.imagenet.cells import Cells, Make, bits_of, gathered
from examples.imagenet.results import Line, Sheet, slug
from qcompiler.passes.absorb_bias import AbsorbBias
from qcompiler.passes.adaptive_rounding.adaround import AdaRound
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization

__all__ = ["FLOAT", "TABLES", "Cell", "sheets"]

_EQUALIZED = (CrossLayerEqualization(), AbsorbBias())
PIPELINE = Row("pipeline", before=_EQUALIZED, weights="mse", after=(AdaRound(),), activations="mse")
"""The standard pipeline of the white paper, section 8: equalize, least squares for weights, AdaRound, least squares for
activations."""
AIMET = (
    Row("nearest rounding", per_channel=True),
    Row("equalization, bias correction (DFQ)", per_channel=True, before=_EQUALIZED, after=(CorrectBias(),)),
    Row("AdaRound", per_channel=True, weights="mse", after=(AdaRound(),)),
    Row("equalization, AdaRound", per_channel=True, before=_EQUALIZED, weights="mse", after=(AdaRound(),)),
)
"""Techniques of AIMET, with a scale per channel of weights as its simulated hardware has by default."""
FLOAT = Row("FP32")
"""The network as it is."""


@dataclass(frozen=True)
class Cell:
    """One network, quantized in one way, with one draw of calibration images."""

    network: str
    width: str
    row: Row
    seed: int

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of weights and of activations."""
        return bits_of(self.width)

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.row == FLOAT

    @property
    def name(self) -> str:
        """Beginning of the name of the cell's file; rows of equal passes share a file."""
        if self.is_float:
            return slug(self.network, "FP32")
        return slug(self.network, self.width, "per channel" if self.row.per_channel else "per tensor", self.seed)

    @property
    def pipeline(self) -> str:
        """The passes as text."""
        return "" if self.is_float else ", ".join(map(str, self.row.pipeline(*self.bits)))


Name = Callable[[Cell], str]
"""Function from a cell to the name of its file; cells of equal pipelines have one name."""


_Maker = Cells[Cell, Row]
_Make = Make[Cell, Row]


def _summary(make: _Maker, networks: Sequence[str], widths: Sequence[str] | None) -> Iterator[Sheet]:
    chosen = tuple(widths or ("W8A8", "W4A8"))
    rows = [(word, dataclasses.replace(PIPELINE, per_channel=word == "per channel")) for word in KINDS]
    columns = ("FP32", *(f"{word} {width}" for word, _ in rows for width in chosen))
    lines = tuple(
        Line((name,), (make.exact(name), *(make.place(name, width, row) for _, row in rows for width in chosen)))
        for name in networks
    )
    about = "Table 6 of the white paper: equalization, absorption, least-squares ranges, AdaRound."
    yield Sheet("Networks", about, ("network",), columns, lines)


KINDS = ("per tensor", "per channel")


def _of(table: Table) -> _Make:
    """The sheets of a table of the benchmarks: one per network, rows by widths."""

    def make(maker: _Maker, networks: Sequence[str], widths: Sequence[str] | None) -> Iterator[Sheet]:
        chosen = tuple(widths or table.widths)
        for network in networks:
            lines = [
                Line((row.name,), tuple(maker.place(network, width, row) for width in chosen)) for row in table.rows
            ]
            exact = Line(("FP32",), (maker.exact(network),) * len(chosen))
            yield Sheet(f"{table.title}: {network}", table.about, ("",), chosen, (exact, *lines))

    return make


def _aimet(make: _Maker, networks: Sequence[str], widths: Sequence[str] | None) -> Iterator[Sheet]:
    chosen = tuple(widths or ("W8A8", "W4A8"))
    lines = tuple(
        Line((row.name, name), (make.exact(name), *(make.place(name, width, row) for width in chosen)))
        for row in AIMET
        for name in networks
    )
    about = "Techniques by networks, as in the README and the model zoo of AIMET; weights have a scale per channel."
    yield Sheet("Techniques", about, ("technique", "network"), ("FP32", *chosen), lines)


TABLES: dict[str, _Make] = {
    "summary": _summary,
    "methods": _of(METHODS),
    "weights": _of(WEIGHTS),
    "activations": _of(ACTIVATIONS),
    "aimet": _aimet,
}
"""Tables by the name in `--tables`."""


def sheets(
    tables: Sequence[str], networks: Sequence[str], widths: Sequence[str] | None, seeds: Sequence[int], name: Name
) -> tuple[list[Sheet], dict[str, Cell]]:
    """The tables, and their cells by name in the order in which they are measured.

    Args:
        tables: Names in `TABLES`.
        networks: Names of the networks.
        widths: Widths of all tables; None: those of the papers.
        seeds: Draws of the calibration images.
        name: See `Name`.
    """
    return gathered(Cells(Cell, FLOAT, seeds, name), TABLES, tables, networks, widths)
