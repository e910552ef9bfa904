"""What long steps have finished, on disk, so that a compile that was ended at any point goes on from there.

Each piece of work is a file, named by a digest of all that it depends on and written under another name first: one that
is there is whole. Whether a piece fits is a matter of its name alone, so that nothing of another model, other data or
other options is ever taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from torch import Tensor

from qcompiler.calibration.processes import Processes
from qcompiler.ir.graph import Module
from qcompiler.ir.hashing import module_hash
from qcompiler.storage.tensors import read_tensors, row_major, write_tensors


class Journal:
    """Finished pieces of work.

    Args:
        folder: Where they are, made when the first one is written; None: nowhere, all work is done each time.
        processes: Of them only the first one reads and writes; the others are told.
    """

    def __init__(self, folder: Path | None = None, processes: Processes | None = None) -> None:
        self.folder, self.processes = folder, processes or Processes()
        self.found = 0
        """Pieces that did not have to be done again."""

    def key(self, module: Module, *parts: str) -> str:
        """What all pieces of a step depend on: the module as it is now, and texts for all else."""
        if self.folder is None:
            return ""
        return _digest(metadata.version("qcompiler"), module_hash(module), *parts)

    def piece(self, key: str, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A piece of the step `key`: read if it is there, else made and written.

        Args:
            key: From `key`.
            name: Which piece of the step.
            make: Gives tensors by name; called in all processes or in none.

        Returns:
            The tensors in one form, whether they were made or read: see `storage.tensors`.

        Raises:
            ArtifactError: The piece cannot be written.
        """
        if self.folder is None:
            return _plain(make())
        path = self.folder / f"{_digest(key, name)}.safetensors"
        first = self.processes.rank == 0
        there = read_tensors(path) if first else {}
        names = self.processes.gather(list(there))[0]
        if names:
            self.found += 1
            tensors = self.processes.share([there[name] for name in names] if first else None, 0)
            return dict(zip(names, tensors, strict=True))
        made = _plain(make())
        if first:
            write_tensors(path, made)
        return made


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: row_major(tensor) for name, tensor in tensors.items()}


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
