"""Finished trainings or other cells of a benchmark: one file each on this machine, one line each in the repository."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["CellT", "Json", "RunT", "Store", "lines", "plain"]

Json = dict[str, Any]


class Named(Protocol):
    """A training with a name."""

    @property
    def name(self) -> str: ...


CellT = TypeVar("CellT", bound=Named)
RunT = TypeVar("RunT")


class Store(Generic[CellT, RunT]):
    """Finished trainings: files in a folder, and the lines of a file that is committed.

    A key names a training, its data, its weights and the numerics of training; a result counts for its key alone.

    Args:
        folder: Folder of the files, which are read first.
        key: Key of a training.
        cells: Trainings of a run.
        whole: Run whose results are committed.
        rows: JSON lines that are committed.
        fresh: Whether results that are there count for nothing.
    """

    def __init__(
        self,
        folder: Path,
        key: Callable[[CellT, RunT], str],
        cells: Callable[[RunT], Iterable[CellT]],
        whole: RunT,
        *,
        rows: Path,
        fresh: bool = False,
    ) -> None:
        self.folder, self.key, self.cells, self.whole = folder, key, cells, whole
        self.rows, self.fresh = rows, fresh
        self._committed = {row["key"]: row["result"] for row in lines(rows)}

    def path(self, cell: CellT, run: RunT) -> Path:
        """File of a training."""
        return self.folder / f"{cell.name}-{self.key(cell, run)}.json"

    def find(self, cell: CellT, run: RunT) -> Json | None:
        """A result; None where the training is not finished."""
        path = self.path(cell, run)
        if path.exists():
            found: Json = json.loads(path.read_text(encoding="utf-8"))
            return found
        return self._committed.get(self.key(cell, run))

    def get(self, cell: CellT, run: RunT, make: Callable[[], Json]) -> Json:
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

    def done(self, run: RunT) -> dict[CellT, Json]:
        """Finished trainings of a run."""
        found = {cell: self.find(cell, run) for cell in self.cells(run)}
        return {cell: result for cell, result in found.items() if result is not None}

    def collect(self) -> int:
        """Write the finished trainings of the whole run into the committed file.

        Returns:
            Number of lines that were dropped: their key is that of no training of the run any more.
        """
        done = {cell.name: (self.key(cell, self.whole), result) for cell, result in self.done(self.whole).items()}
        rows = [json.dumps({"training": name, "key": key, "result": result}) for name, (key, result) in done.items()]
        self.rows.parent.mkdir(parents=True, exist_ok=True)
        self.rows.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        dropped = set(self._committed) - {key for key, _ in done.values()}
        self._committed = dict(done.values())
        return len(dropped)


def plain(*words: object) -> str:
    """A name of a training made of words, of characters that a file name may have."""
    return "-".join(re.sub(r"[^a-z0-9_.]+", "_", str(word), flags=re.IGNORECASE).strip("_") for word in words)


def lines(path: Path) -> Iterator[Json]:
    """The rows of a file of JSON lines; none if the file is missing."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
