"""Tensors within a stated amount of memory."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qcompiler.calibration.spool import Spool
from qcompiler.calibration.store import Store
from qcompiler.errors import ArtifactError
from qcompiler.storage import tensors as tensor_files


def test_what_exceeds_the_memory_lies_on_disk_and_comes_back_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = Store(memory=2)
    tensors = [torch.randn(256, 1024).T for _ in range(4)]  # one mebibyte each, and not contiguous
    kept = [store.keep(tensor) for tensor in tensors]
    assert store.spilled == 2 << 20
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    for tensor, item in zip(tensors, kept, strict=True):
        assert torch.equal(item.load(), tensor)
    del kept[0], item
    gc.collect()
    kept.append(store.keep(tensors[0]))
    assert store.spilled == 2 << 20, "there is room again"
    del kept[1:3]
    gc.collect()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 0, "files go with their handles"
    del store, kept
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_types_and_empty_shapes_survive_the_disk(dtype: torch.dtype) -> None:
    store = Store(memory=0)
    for shape in ((2, 3), (), (0, 4)):
        tensor = torch.ones(shape).to(dtype)
        found = store.keep(tensor).load()
        assert (found.dtype, found.shape) == (dtype, tensor.shape)
        assert torch.equal(found, tensor)


@pytest.mark.parametrize("keep", [lambda x: Store(0).keep(x), lambda x: list(Spool([[x]]))], ids=["store", "spool"])
def test_a_full_disk_is_named(keep: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(ArtifactError, match=r"cannot be written: .*No space left on device. Free space"):
        keep(torch.zeros(3))


def test_a_temporary_file_that_others_removed_is_named() -> None:
    store = Store(0)
    kept = store.keep(torch.zeros(3))
    assert kept._path is not None
    kept._path.unlink()
    with pytest.raises(ArtifactError, match=r"the temporary file .* is gone\. Set TMPDIR"):
        kept.load()
