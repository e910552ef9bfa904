"""Writing single files: a reader gets the complete old or the complete new content."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qcompiler.errors import InputError

NEW = ".new"
"""Ending of a file during writing; it gets its real name when complete and on disk."""


def write_file(path: str | Path, data: bytes) -> Path:
    """Write a file named by the user; an existing file is replaced by one rename.

    A link stays, and its target is replaced. A device or a pipe, such as `/dev/stdout`, is written to.

    Raises:
        InputError: The file cannot be written; the old content is unchanged.
    """
    try:
        place = Path(os.path.realpath(path))
        if place.exists() and not place.is_file():
            if place.is_dir():
                raise InputError(f"{path} is a folder", expected="the name of a file")
            with place.open("wb") as device:
                device.write(data)
            return Path(path)
        _replace(place, data)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise InputError(f"{path} cannot be written: {_reason(error)}", fix="Choose another file.") from error
    return Path(path)


def _replace(place: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{place.name[:100]}.", suffix=NEW, dir=place.parent)
    try:
        try:
            write_all(descriptor, data)
            os.chmod(descriptor, _mode(place))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(name, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(place.parent)


def _mode(place: Path) -> int:
    """Permissions of the replaced file, or of a new file."""
    if place.exists():
        return stat.S_IMODE(place.stat().st_mode)
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def write_new(files: Mapping[Path, bytes]) -> None:
    """Write files, each of which appears only when complete and on disk; existing files are replaced."""
    for path, data in files.items():
        new = path.with_name(path.name + NEW)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)
    # All are written before the first is synchronized: most file systems then write the others, too.
    for path in files:
        sync(path.with_name(path.name + NEW))
    for path in files:
        os.replace(path.with_name(path.name + NEW), path)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, in as many system calls as needed."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync(path: Path) -> None:
    """Synchronize the content of a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Synchronize renames within `folder` to disk, if the system can."""
    with contextlib.suppress(OSError):  # Windows cannot open folders; some network file systems cannot synchronize them
        sync(folder)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
