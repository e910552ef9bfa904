"""Finished trainings of `qat_accuracy`: one file each on this machine, one line each in the repository."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import finished
from benchmarks.finished import Json, lines
from benchmarks.qat_tables import WHOLE, Cell, Run, cells

__all__ = ["COMMITTED", "EARLIER", "Earlier", "Json", "Store"]

RESULTS = Path(__file__).with_name("results")
COMMITTED = RESULTS / "qat_accuracy.jsonl"
"""Finished trainings of the whole run, in the order in which they are made."""
EARLIER = RESULTS / "qat_accuracy_earlier.jsonl"
"""Figures of the page as they were printed before the numerics of training changed: numerics 1."""


class Store(finished.Store[Cell, Run]):
    """Finished trainings of quantization-aware training.

    Args:
        folder: Folder of the files, which are read first.
        key: Key of a training.
        rows: JSON lines that are committed.
        fresh: Whether results that are there count for nothing.
    """

    def __init__(
        self, folder: Path, key: Callable[[Cell, Run], str], *, rows: Path = COMMITTED, fresh: bool = False
    ) -> None:
        super().__init__(folder, key, cells, WHOLE, rows=rows, fresh=fresh)


@dataclass(frozen=True)
class Earlier:
    """Figures that the page showed before, as text: by table, row and column."""

    figures: dict[tuple[str, str, str], str]

    @classmethod
    def read(cls, path: Path = EARLIER) -> Earlier:
        """Read the committed file: a row of a table per line."""
        rows = list(lines(path))
        return cls({(r["table"], r["row"], column): text for r in rows for column, text in r["figures"].items()})

    def of(self, table: str, row: str, *columns: str) -> list[str]:
        """Figures of a row; empty texts where there was no such row."""
        return [self.figures.get((table, row, column), "") for column in columns]
