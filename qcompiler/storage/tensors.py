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
from qcompiler.storage.files import NEW, sync

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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file, which appears when it is whole and on disk.

    Raises:
        ArtifactError: It cannot be written, for want of room for one.
    """
    beside = path.with_suffix(NEW)
    # Clones: safetensors refuses tensors that share memory.
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
