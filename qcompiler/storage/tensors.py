"""Tensors on disk, and one memory form for tensors, so that results do not depend on their origin.

Kernels of torch choose the order of their sums by strides, and libraries below by the alignment of the first byte. A
computed tensor, one read from a file, and one in channels-last order hold the same numbers, but give results that
differ in their last bits. Hence all tensors get one form: row-major strides, and memory as allocated by torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from qcompiler.errors import ArtifactError
from qcompiler.storage.writing import NEW, sync

ALIGNMENT = 64
"""Alignment in bytes of torch's allocator and of the widest vector instructions."""


def row_major(tensor: Tensor) -> Tensor:
    """`tensor` with row-major strides, also along axes of size 1, and aligned memory; itself if it has both."""
    stride = 1
    strides = []
    for size in reversed(tensor.shape):
        strides.append(stride)
        stride *= max(size, 1)
    # `is_contiguous` does not look at axes of size 1; kernels that test for channels last do.
    plain = tensor.stride() == tuple(reversed(strides)) and not tensor.is_conj() and not tensor.is_neg()
    if plain and (tensor.device.type == "meta" or tensor.data_ptr() % ALIGNMENT == 0):
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, temporary: bool = False) -> None:
    """Write a file, which appears only when it is complete and on disk.

    Args:
        path: The file; its folder is created if missing.
        tensors: Tensors by name.
        temporary: Whether only this process will read the file, so that it need not reach the disk.

    Raises:
        ArtifactError: The file cannot be written, for example on a full disk.
    """
    plain = {name: row_major(tensor.detach().cpu()) for name, tensor in tensors.items()}
    if len(plain) > 1:  # safetensors refuses tensors that share memory
        plain = {name: tensor.clone() for name, tensor in plain.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary:
            save_file(plain, path)
            return
        new = path.with_suffix(NEW)
        # Not `save_file`, whose own temporary file stays behind in this folder when the process is killed.
        new.write_bytes(save(plain))
        sync(new)
        os.replace(new, path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} cannot be written: {error}", fix="Free space on that disk, or choose another folder."
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, sorted by name; empty if the file is absent or incomplete."""
    try:
        found = load_file(path) if path.is_file() else {}
    except SafetensorError:  # left by a power failure
        return {}
    return {name: row_major(tensor) for name, tensor in sorted(found.items())}


def read_temporary(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by this process.

    Raises:
        ArtifactError: The file is gone or incomplete.
    """
    found = read_tensors(path)
    if not found:
        raise ArtifactError(
            f"the temporary file {path} is gone",
            fix="Set TMPDIR to a folder whose files are not removed by other programs.",
        )
    return found
