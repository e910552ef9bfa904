"""Single files: the old content or the new one, whatever happens."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from qcompiler.errors import InputError
from qcompiler.storage.writing import write_file
from tests.support.faults import BROKEN, DISK_FULL, Ended, end, faulty


def calls_of(path: Path) -> int:
    with faulty() as calls:
        write_file(path, b"counted")
    return len(calls.names)


@pytest.mark.parametrize("before", [b"old", None], ids=["over an old one", "new"])
def test_ended_at_any_call_the_old_or_the_new_content_is_there(before: bytes | None, tmp_path: Path) -> None:
    for at in range(calls_of(tmp_path / "counted")):
        path = tmp_path / f"{at}.html"
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(Ended), faulty(at, end):
            write_file(path, b"new")
        assert (path.read_bytes() if path.exists() else None) in (before, b"new"), at


@pytest.mark.parametrize("fault", [DISK_FULL, BROKEN], ids=["full disk", "broken disk"])
def test_an_error_at_any_call_leaves_the_old_content_and_nothing_else(
    fault: Callable[[str], None], tmp_path: Path
) -> None:
    path, refused = tmp_path / "report.html", 0
    for at in range(calls_of(tmp_path / "counted")):
        path.write_bytes(b"old")
        try:
            with faulty(at, fault, for_good=False):
                write_file(path, b"new")
        except InputError:
            refused += 1
            assert path.read_bytes() == b"old"
        else:
            assert path.read_bytes() == b"new"
        assert sorted(item.name for item in tmp_path.iterdir()) == ["counted", "report.html"], at
    assert refused >= 4  # open, write, chmod, sync, replace: after the last the content is in place


def test_a_link_stays_and_so_do_permissions(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


def test_a_new_file_has_the_permissions_of_every_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_file(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", b"new")
    assert os.read(reading, 10) == b"new"
    os.close(reading)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize(
    ("path", "message"), [(".", "is a folder"), ("absent/x", "cannot be written: No such file"), ("a\0b", "cannot be")]
)
def test_what_cannot_be_written_is_refused(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_file(tmp_path / path, b"new")
