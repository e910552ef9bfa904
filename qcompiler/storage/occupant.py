"""Checks of a folder before its replacement: files of the compiler and files of the user."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qcompiler.errors import ArtifactError
from qcompiler.storage.writing import NEW

SHOWN = 5
"""Most files listed in a refusal."""


MOUNTS = Path("/proc/self/mountinfo")
"""List of mount points on Linux."""


@dataclass(frozen=True)
class Kind:
    """A kind of folder that the compiler writes.

    Args:
        noun: The kind in messages, with its article: `an artifact`.
        marker: The file that names all others. It is written first and removed last.
        known: Function from the content of the marker to the sha256 of each other file in hex, by its path within the
            folder; including the marker's own if its content proves that it is unaltered. Raises ValueError for a
            marker that the compiler did not write.
        usual: Names that such a folder has at its top, for folders that have lost their marker.
    """

    noun: str
    marker: str
    known: Callable[[bytes], Mapping[str, str]]
    usual: frozenset[str]

    def named(self, folder: Path) -> dict[str, str]:
        """The expected sha256 of each file of `folder`, the marker included; {} without a valid marker."""
        data = content(folder / self.marker)
        if data is None:
            return {}
        try:
            return {self.marker: hashlib.sha256(data).hexdigest(), **self.known(data)}
        except ValueError:
            return {}

    def foreign(self, folder: Path, *, unfinished: bool = False) -> Iterator[str]:
        """Paths within `folder`, in order, of files that the compiler did not write.

        Args:
            folder: A folder that exists.
            unfinished: Whether the folder was being written: the ending `.new` is then allowed.
        """
        named = self.named(folder)
        folders = {str(parent) for name in named for parent in Path(name).parents}

        def walk(place: Path, prefix: str) -> Iterator[str]:
            for entry in entries(place):
                name = f"{prefix}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    inside = place / entry.name
                    if is_mount(inside):
                        yield f"{name}/ (a mount point)"
                    elif name in folders or (unfinished and not entries(inside)):
                        yield from walk(inside, f"{name}/")
                    else:
                        yield f"{name}/"
                elif name in named:
                    if sha256(place / entry.name) != named[name]:
                        yield f"{name} (altered)"
                elif not (unfinished and name.endswith(NEW) and name.removesuffix(NEW) in {*named, self.marker}):
                    yield name

        return walk(folder, "")


def sha256(path: Path) -> str | None:
    """The sha256 of the content of a regular file, in hex; None if there is no such file."""
    data = content(path)
    return None if data is None else hashlib.sha256(data).hexdigest()


def refuse_occupied(folder: Path, kind: Kind) -> None:
    """Refuse to replace `folder` unless it is absent, empty, or unaltered output of the compiler.

    Raises:
        ArtifactError: `folder` is something else, or has a role that forbids its replacement, such as a mount point.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder} exists and is not {kind.noun}: it is not a folder", fix="Choose another output, or remove it."
        )
    _refuse_place(folder)
    foreign = list(itertools.islice(kind.foreign(folder), SHOWN + 1))
    if not foreign:
        return
    shown = listed(foreign)
    if kind.named(folder):
        fix = "Move them elsewhere, or choose another output."
        if all(name.startswith("c/") for name in foreign):
            fix = f"Move them elsewhere, or run `make -C {folder}/c clean` to remove the files that make built."
        raise ArtifactError(
            f"{folder} is {kind.noun} that also contains your files: {shown}",
            expected="only unaltered files that are listed in the manifest",
            fix=fix,
        )
    names = {entry.name for entry in entries(folder)}
    if names <= kind.usual:
        raise ArtifactError(
            f"{folder} contains a part of {kind.noun} ({shown}) without the {kind.marker} that lists its files",
            expected=f"{kind.noun} as it was written; an interrupted older release may have left the part",
            fix=f"Remove {folder}.",
        )
    raise ArtifactError(
        f"{folder} exists and is not {kind.noun}: it contains {shown}", fix="Choose another output, or remove it."
    )


def _refuse_place(folder: Path) -> None:
    """Refuse folders that must keep their identity."""
    reason = ""
    if is_mount(folder):
        reason = "is a mount point, which cannot be replaced"
    elif _is_above(folder, Path.cwd):
        reason = "is the working directory, or contains it"
    elif _is_above(folder, Path.home):
        reason = "is the home folder, or contains it"
    if reason:
        raise ArtifactError(f"{folder} {reason}", fix="Choose a folder within it.")


def _is_above(folder: Path, place: Callable[[], Path]) -> bool:
    # FileNotFoundError: the working directory was removed. RuntimeError: the home folder is unknown.
    with contextlib.suppress(OSError, RuntimeError):
        return Path(os.path.realpath(place())).is_relative_to(folder)
    return False


def is_mount(folder: Path) -> bool:
    """Whether `folder` is a mount point, even of the same device."""
    if os.path.ismount(folder):
        return True
    try:
        lines = MOUNTS.read_bytes().splitlines()
    except OSError:
        return False
    # The fifth field is the mount point; spaces, tabs, line ends and backslashes are written as octal numbers.
    wanted = os.fsencode(folder)
    for escaped in (b"\\", b" ", b"\t", b"\n"):
        wanted = wanted.replace(escaped, b"\\%03o" % escaped[0])
    return any(line.split(b" ", 5)[4:5] == [wanted] for line in lines)


def listed(names: list[str]) -> str:
    """Names for a message, at most `SHOWN` of them."""
    return ", ".join(names[:SHOWN]) + (", and more" if len(names) > SHOWN else "")


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of `folder`, sorted by name."""
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def content(path: Path) -> bytes | None:
    """The content of a regular file; None if there is no such file."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        return path.read_bytes()
    except OSError:
        return None
