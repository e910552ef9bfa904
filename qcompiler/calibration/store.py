"""Tensors within a memory limit; tensors beyond the limit are kept on disk until needed."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from qcompiler.storage.tensors import read_temporary, row_major, write_tensors

MEBIBYTE = 1 << 20

DEFAULT_MEMORY = 1024
"""Default limit of activations in memory, in mebibytes."""


class Store:
    """A store of tensors: up to `memory` mebibytes in memory, the rest in a temporary folder removed with the object.

    Args:
        memory: Memory limit in mebibytes; 0 keeps everything on disk.
    """

    def __init__(self, memory: int = DEFAULT_MEMORY) -> None:
        self._room = memory * MEBIBYTE
        self._folder: Path | None = None
        self._numbers = count()
        self.spilled = 0
        """Number of bytes written to disk so far."""

    def keep(self, tensor: Tensor) -> Kept:
        """A handle for `tensor`; its memory is freed with the handle."""
        tensor = row_major(tensor.detach())
        size = tensor.numel() * tensor.element_size()
        if size <= self._room:
            self._room -= size
            kept = Kept(tensor, None, tensor.device)
            weakref.finalize(kept, self._release, size)
            return kept
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="qcompiler-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / f"{next(self._numbers)}.safetensors"
        write_tensors(path, {"x": tensor}, temporary=True)
        self.spilled += size
        kept = Kept(None, path, tensor.device)
        weakref.finalize(kept, path.unlink, missing_ok=True)
        return kept

    def _release(self, size: int) -> None:
        self._room += size


class Kept:
    """A tensor in a store."""

    def __init__(self, tensor: Tensor | None, path: Path | None, device: torch.device) -> None:
        self._tensor, self._path, self._device = tensor, path, device

    def load(self) -> Tensor:
        """The tensor."""
        if self._tensor is not None:
            return self._tensor
        assert self._path is not None
        return read_temporary(self._path)["x"].to(self._device)
