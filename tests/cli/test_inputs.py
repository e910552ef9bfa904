"""Files of arrays hold numbers, and as many as they say."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qcompiler.cli.inputs import load_tensors
from qcompiler.errors import InputError


def array(text: str) -> bytes:
    """A file of NumPy with this header."""
    head = (text + "\n").encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64)


def saved(item: object) -> bytes:
    stream = io.BytesIO()
    torch.save(item, stream)
    return stream.getvalue()


def numpy_saved(item: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, item, allow_pickle=True)  # type: ignore[arg-type]
    return stream.getvalue()


def bomb() -> bytes:
    """An archive that says that its member takes more than any memory."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(1000))
    data = bytearray(stream.getvalue())
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = b"\xfe\xff\xff\xff"
    return bytes(data)


class Thing:
    """Objects that are not tensors."""


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }"
BAD: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "objects": ("x.npy", lambda: numpy_saved(np.array([Thing()], object)), "cannot be read"),
    "text": ("x.npy", lambda: numpy_saved(np.array(["a"])), "has the type <U1"),
    "structures": ("x.npy", lambda: numpy_saved(np.zeros(2, "i4, f8")), "has the type"),
    "dates": ("x.npy", lambda: numpy_saved(np.zeros(2, "M8[s]")), "has the type datetime64"),
    "complex numbers": ("x.npy", lambda: numpy_saved(np.zeros(2, np.complex64)), "has the type complex64"),
    "a header of 10^15 elements": ("x.npy", lambda: array(HUGE), "declares 1000000000000000 elements"),
    "a header that is none": ("x.npy", lambda: array("{" * 300), "cannot be read"),
    "a truncated array": ("x.npy", lambda: numpy_saved(np.zeros(100))[:-8], "expected 800 bytes"),
    "an empty file": ("x.npz", bytes, "cannot be read"),
    "a bomb": ("x.npz", bomb, "cannot be read|needs"),
    "a pickle of an object": ("x.pt", lambda: saved(Thing()), "objects other than tensors"),
    "a number among tensors": ("x.pt", lambda: saved([torch.zeros(1), 3]), "objects other than tensors"),
    "an expanded tensor": ("x.pt", lambda: saved(torch.zeros(1).expand(10**15)), "needs 4000000000000000 bytes"),
    "a sparse tensor": ("x.pt", lambda: saved(torch.eye(3).to_sparse()), "a dense tensor"),
    "a complex tensor": ("x.pt", lambda: saved(torch.zeros(2, dtype=torch.complex64)), "the tensor is complex"),
    "a truncated pickle": ("x.pt", lambda: saved(torch.zeros(100))[:200], "objects other than tensors"),
    "a header of safetensors": ("x.safetensors", lambda: b"\xff" * 8 + b"{}", "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_holds_no_numbers_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, make, words = BAD[case]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(InputError, match=words) as caught:
        load_tensors(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "|u1", "<i8", "|b1"])
def test_numbers_of_every_kind_are_read(dtype: str, tmp_path: Path) -> None:
    numbers = np.arange(6).reshape(2, 3).astype(dtype)
    np.save(tmp_path / "x.npy", numbers)
    np.savez_compressed(tmp_path / "x.npz", a=numbers, b=numbers[:1])
    (one,) = load_tensors(tmp_path / "x.npy")
    first, second = load_tensors(tmp_path / "x.npz")
    assert np.array_equal(one.numpy(), numbers)
    assert torch.equal(first, one)
    assert torch.equal(second, one[:1])
