"""Finished trainings of `qat_accuracy`: one file each on this machine, one line each in the repository."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.qat_tables import WHOLE, Cell, Run, cells

__all__ = ["COMMITTED", "EARLIER", "Earlier", "Json", "Store"]

RESULTS = Path(__file__).with_name("results")
COMMITTED = RESULTS / "qat_accuracy.jsonl"
"""Finished trainings of the whole run, in the order in which they are made."""
EARLIER = RESULTS / "qat_accuracy_earlier.jsonl"
"""Figures of the page as they were printed before the numerics of training changed: numerics 1."""

Json = dict[str, Any]


class Store:
    """Finished trainings: files in a folder, and the lines of a file that is committed.

    A key names a training, its data, its weights and the numerics of training; a result counts for its key alone.

    Args:
        folder: Folder of the files, which are read first.
        key: Key of a training.
        rows: JSON lines that are committed.
        fresh: Whether results that are there count for nothing.
    """

    def __init__(
        self, folder: Path, key: Callable[[Cell, Run], str], *, rows: Path = COMMITTED, fresh: bool = False
    ) -> None:
        self.folder, self.key, self.rows, self.fresh = folder, key, rows, fresh
        self._committed = {row["key"]: row["result"] for row in _lines(rows)}

    def path(self, cell: Cell, run: Run) -> Path:
        """File of a training."""
        return self.folder / f"{cell.name}-{self.key(cell, run)}.json"

    def find(self, cell: Cell, run: Run) -> Json | None:
        """A result; None where the training is not finished."""
        path = self.path(cell, run)
        if path.exists():
            found: Json = json.loads(path.read_text(encoding="utf-8"))
            return found
        return self._committed.get(self.key(cell, run))

    def get(self, cell: Cell, run: Run, make: Callable[[], Json]) -> Json:
        """A result, made if it is not there."""
        found = None if self.fresh else self.find(cell, run)
        if found is None:
            path = self.path(cell, run)
            self.folder.mkdir(parents=True, exist_ok=True)
            # Renamed when it is whole: a run that is killed leaves no file, or a whole one.
            unfinished = path.with_suffix(".new")
            unfinished.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
            unfinished.replace(path)
            found = self.find(cell, run)
            assert found is not None
        return found

    def done(self, run: Run) -> dict[Cell, Json]:
        """Finished trainings of a run."""
        found = {cell: self.find(cell, run) for cell in cells(run)}
        return {cell: result for cell, result in found.items() if result is not None}

    def collect(self) -> int:
        """Write the finished trainings of the whole run into the committed file.

        Returns:
            Number of lines that were dropped: their key is that of no training of the run any more.
        """
        done = {cell.name: (self.key(cell, WHOLE), result) for cell, result in self.done(WHOLE).items()}
        lines = [json.dumps({"training": name, "key": key, "result": result}) for name, (key, result) in done.items()]
        self.rows.parent.mkdir(parents=True, exist_ok=True)
        self.rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        dropped = set(self._committed) - {key for key, _ in done.values()}
        self._committed = dict(done.values())
        return len(dropped)


@dataclass(frozen=True)
class Earlier:
    """Figures that the page showed before, as text: by table, row and column."""

    figures: dict[tuple[str, str, str], str]

    @classmethod
    def read(cls, path: Path = EARLIER) -> Earlier:
        """Read the committed file: a row of a table per line."""
        rows = list(_lines(path))
        return cls({(r["table"], r["row"], column): text for r in rows for column, text in r["figures"].items()})

    def of(self, table: str, row: str, *columns: str) -> list[str]:
        """Figures of a row; empty texts where there was no such row."""
        return [self.figures.get((table, row, column), "") for column in columns]


def _lines(path: Path) -> Iterator[Json]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
