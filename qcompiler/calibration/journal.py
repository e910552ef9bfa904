"""Finished pieces of long steps, on disk, so that an interrupted compile can resume.

Each piece of work is a file, named by a digest of all its inputs and written under another name first, so that an
existing file is complete. Only the name decides whether a piece fits; pieces of another model, other data or other
options are never used.
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
        folder: Folder of the pieces, created for the first piece; None to repeat all work each time.
        processes: Processes of the compile; only the first one reads and writes, and sends the tensors to the others.
    """

    def __init__(self, folder: Path | None = None, processes: Processes | None = None) -> None:
        self.folder, self.processes = folder, processes or Processes()
        self.found = 0
        """Number of pieces read instead of computed."""

    def key(self, module: Module, *parts: str) -> str:
        """The key of a step: the current module, and texts for all other inputs of its pieces."""
        if self.folder is None:
            return ""
        return _digest(metadata.version("qcompiler"), module_hash(module), *parts)

    def piece(self, key: str, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A piece of the step `key`: read if present, else computed and written.

        Args:
            key: Key from `key`.
            name: Name of the piece within the step.
            make: Function that returns tensors by name; called in all processes or in none.

        Returns:
            The tensors in one form, whether computed or read: see `storage.tensors`.

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
