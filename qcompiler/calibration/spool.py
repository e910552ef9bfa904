"""Batches from a one-time source, kept on disk for repeated reading."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from qcompiler.storage.tensors import read_temporary, write_tensors


class Spool:
    """Writes batches to a temporary folder while they are first read, and reads them from there afterwards.

    A batch is in memory only during use. The folder is removed with the object.

    Args:
        batches: Source of batches, read once and on demand.
    """

    def __init__(self, batches: Iterable[list[Tensor]]) -> None:
        self._source: Iterator[list[Tensor]] | None = iter(batches)
        self._folder = Path(tempfile.mkdtemp(prefix="qcompiler-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._count = 0
        self._devices: list[list[torch.device]] = []
        """Devices of the tensors of each batch, which files do not store."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        position = 0
        while position < self._count or self._fetch():
            tensors = read_temporary(self._file(position))
            yield [tensors[str(index)].to(device) for index, device in enumerate(self._devices[position])]
            position += 1

    def _fetch(self) -> bool:
        """Write the next batch of the source, if any is left."""
        if self._source is None:
            return False
        try:
            batch = next(self._source)
        except StopIteration:
            self._source = None
            return False
        write_tensors(self._file(self._count), {str(i): x for i, x in enumerate(batch)}, temporary=True)
        self._devices.append([x.device for x in batch])
        self._count += 1
        return True

    def _file(self, position: int) -> Path:
        return self._folder / f"{position}.safetensors"


def reiterable(batches: Iterable[list[Tensor]], *, once: bool) -> Iterable[list[Tensor]]:
    """`batches` in a form that can be read repeatedly: spooled if the source can be read only `once`."""
    return Spool(batches) if once else batches
