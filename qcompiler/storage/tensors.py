"""Tensors on disk, and tensors whose numbers do not depend on where they have been.

Kernels of torch choose the order of their sums by strides, and libraries below them by the alignment of the first byte.
A tensor that was computed, one that was read from a file, and one that the user keeps with its channels last hold the
same numbers, and give results that differ in their last bits. Hence one form for all of them: row-major strides, and
memory as the allocator of torch gives it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qcompiler.errors import ArtifactError
from qcompiler.storage.writing import NEW, sync

ALIGNMENT = 64
"""Bytes: what torch's allocator gives, and what the widest vector instructions read at once."""


def row_major(tensor: Tensor) -> Tensor:
    """`tensor` with row-major strides, also along axes of size 1, and aligned memory; itself where it has both."""
    stride = 1
    strides = []
    for size in reversed(tensor.shape):
        strides.append(stride)
        stride *= max(size, 1)
    # `is_contiguous` does not look at axes of size 1; kernels that ask for channels last do.
    plain = tensor.stride() == tuple(reversed(strides)) and not tensor.is_conj() and not tensor.is_neg()
    if plain and (tensor.device.type == "meta" or tensor.data_ptr() % ALIGNMENT == 0):
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, temporary: bool = False) -> None:
    """Write a file, which appears when it is whole and on disk.

    Args:
        path: The file; its folder is made where it is missing.
        tensors: Its content.
        temporary: Whether nothing but this process will read it: then it need not reach the disk.

    Raises:
        ArtifactError: It cannot be written, for want of room for one.
    """
    plain = {name: row_major(tensor.detach().cpu()) for name, tensor in tensors.items()}
    if len(plain) > 1:  # safetensors refuses tensors that share memory
        plain = {name: tensor.clone() for name, tensor in plain.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary:
            save_file(plain, path)
            return
        beside = path.with_suffix(NEW)
        save_file(plain, beside)
        sync(beside)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{path} cannot be written: {error}", fix="Make room on that disk, or choose another folder."
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name and in the order of names; none where the file is absent or was torn."""
    try:
        found = load_file(path) if path.is_file() else {}
    except SafetensorError:  # left by a machine that lost power
        return {}
    return {name: row_major(tensor) for name, tensor in sorted(found.items())}


def read_temporary(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that this process has written before.

    Raises:
        ArtifactError: The file is gone or was torn.
    """
    found = read_tensors(path)
    if not found:
        raise ArtifactError(
            f"the temporary file {path} is gone", fix="Set TMPDIR to a folder in which nothing else removes files."
        )
    return found
