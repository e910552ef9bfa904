"""The output folder of the user: checked first, locked during writing, and replaced in one step.

    out/                  the whole old content until the new one is whole and on disk, then the whole new one
    out.work/lock         held by the writing process, and released whenever the process ends
             finished/    the journal of a running or interrupted compile
             artifact/    the new content during writing; after the exchange, the old content during removal
             commit.json  if names cannot be exchanged: `artifact/` is complete and is to become `out/`
             aside/       if names cannot be exchanged: the old content

If the system can exchange two names (`exchange`), a process killed at any instruction leaves the old or the new content
under `out/`. Elsewhere two renames are needed, and the commit record exists from before the first to after the second:
the next reader or writer completes them.

    artifact/  ─►  commit.json  ─►  out/ to aside/  ─►  artifact/ to out/  ─►  no commit.json  ─►  no aside/

Files are removed one by one, and only files that the marker of their folder lists with their hash.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from filelock import FileLock, Timeout

from qcompiler.errors import ArtifactError
from qcompiler.storage.exchange import exchange
from qcompiler.storage.occupant import SHOWN, Kind, content, entries, is_mount, listed, refuse_occupied, sha256
from qcompiler.storage.writing import NEW, sync_folder, write_all, write_new

T = TypeVar("T")

LOCK, FINISHED, STAGED, ASIDE, COMMIT = "lock", "finished", "artifact", "aside", "commit.json"

PIECE = re.compile(rf"[0-9a-f]{{32}}(\.safetensors|{re.escape(NEW)})")
"""Names in the journal; see `calibration.journal`."""

HOLDER = re.compile(r"(p?r?o?c?e?s?s?|process (\d*|\d+ (o|on|on \S*)))\n?")
"""Content of a lock file: the holder, or a prefix of the text."""

PATIENCE = 1.0
"""Seconds of waiting for a lock; a reader that completes a commit holds the lock for less."""

CHECKS = 3
"""Number of checks of an output before it is refused, while other processes may finish there."""

ATTEMPTS = 20
"""Number of reads of a folder, while other processes keep replacing it, before a failure is reported."""


def resolved(path: str | Path) -> Path:
    """The folder that `path` leads to: links followed, `..` applied to names that do not exist too.

    Raises:
        ArtifactError: The path is not valid on this system.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # ValueError: a null byte; OSError: the working directory is gone
        raise ArtifactError(f"{str(path)!r} is not a valid path: {error}", fix="Choose another output.") from error


class Destination:
    """An output folder.

    As a context manager, the folder is locked from the check to the replacement.

    Args:
        output: The path as the user gave it.
        kind: Kind of folder to write.

    Raises:
        ArtifactError: `output` is not a valid path, or is the root.
    """

    def __init__(self, output: str | Path, kind: Kind) -> None:
        self.kind, self.folder = kind, resolved(output)
        if self.folder == self.folder.parent:
            raise ArtifactError(f"{self.folder} is the root of the file system", fix="Choose a folder within it.")
        self.work = self.folder.with_name(f"{self.folder.name}.work")
        self._lock: FileLock | None = None
        self._made: list[Path] = []

    @property
    def finished(self) -> Path:
        """Folder for the journal."""
        return self.work / FINISHED

    def check(self) -> None:
        """Refuse an output whose replacement would lose something.

        Raises:
            ArtifactError: The folder holds anything that the compiler did not write, or cannot be read.
        """
        with _typed(self.folder):
            refuse_occupied(self.folder, self.kind)
            self._check_work()

    def _check_work(self) -> None:
        """Refuse a work folder with anything in it that the compiler did not put there."""
        if not os.path.lexists(self.work):
            return
        if self.work.is_symlink() or not self.work.is_dir() or is_mount(self.work):
            foreign = ["it is not a regular folder"]
        else:
            foreign = list(self._foreign_work())
        if foreign:
            raise ArtifactError(
                f"{self.work} exists and is not the work folder of a compile: {listed(foreign)}",
                expected="no such folder, or the rest of an interrupted compile",
                fix="Choose another output, or move your files out of it.",
            )

    def _foreign_work(self) -> Iterator[str]:
        for entry in entries(self.work):
            place, plain = self.work / entry.name, entry.is_dir(follow_symlinks=False)
            if entry.name == FINISHED and plain:
                for piece in entries(place):
                    if not PIECE.fullmatch(piece.name) or not piece.is_file(follow_symlinks=False):
                        yield f"{FINISHED}/{piece.name}"
            elif entry.name in (STAGED, ASIDE) and plain:
                yield from (f"{entry.name}/{name}" for name in self.kind.foreign(place, unfinished=True))
            elif entry.name == LOCK and entry.is_file(follow_symlinks=False):
                if not HOLDER.fullmatch(_text(place)):
                    yield LOCK
            elif entry.name == COMMIT and entry.is_file(follow_symlinks=False):
                if _replaced(place) is None:
                    yield COMMIT
            elif not (entry.name == COMMIT + NEW and entry.is_file(follow_symlinks=False)):
                yield entry.name

    def __enter__(self) -> Destination:
        """Check, lock, and complete or undo the work of an interrupted process.

        Raises:
            ArtifactError: The output is refused, another process writes it, or it cannot be written.
        """
        for attempt in range(CHECKS):
            try:
                self.check()
                break
            except ArtifactError:
                # Files seen during another process's write, or removed just now, are no reason for a refusal.
                self._refuse_held()
                if attempt == CHECKS - 1:
                    raise
        try:
            with _typed(self.folder):
                self._acquire()
                self._recover()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlock; an empty work folder is removed."""
        self._release()

    def replace(self, files: Mapping[str, bytes]) -> Path:
        """Write `files`; at any time, the folder holds the complete old or the complete new content.

        Args:
            files: Content by path within the folder, the marker included.

        Returns:
            The folder.

        Raises:
            ArtifactError: The output has changed since the check, or cannot be written. The old
                content is still there then.
        """
        assert self._lock is not None, "the destination is locked"
        self.check()
        with _typed(self.folder):
            self._remove(STAGED)
            try:
                self._stage(files)
                self._put_in_place()
            except BaseException:
                if not (self.work / COMMIT).exists():
                    with contextlib.suppress(OSError, ArtifactError):
                        self._remove(STAGED)
                raise
            # The new content is in place. The next call removes or reports files that cannot be removed now.
            with contextlib.suppress(OSError, ArtifactError):
                self._remove(STAGED)
                self._remove(ASIDE)
        return self.folder

    def discard_finished(self) -> None:
        """Remove the journal."""
        with contextlib.suppress(OSError):
            for entry in entries(self.finished):
                if PIECE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)
            os.rmdir(self.finished)

    def _stage(self, files: Mapping[str, bytes]) -> None:
        staged, marker = self.work / STAGED, self.kind.marker
        self._make(staged)
        # The marker first: it identifies every other file, complete or not, as the compiler's.
        write_new({staged / marker: files[marker]})
        rest = {staged / name: data for name, data in sorted(files.items()) if name != marker}
        folders = sorted({place.parent for place in rest} | {staged})
        for folder in folders:
            folder.mkdir(exist_ok=True)
        write_new(rest)
        for folder in (*reversed(folders), self.work):
            sync_folder(folder)

    def _put_in_place(self) -> None:
        staged = self.work / STAGED
        if not self.folder.exists() or not entries(self.folder):
            os.rename(staged, self.folder)
        elif exchange(staged, self.folder):
            self._look_again()
        else:
            record = {"schema": "qcompiler.commit/1", "replaced": sha256(self.folder / self.kind.marker)}
            write_new({self.work / COMMIT: json.dumps(record).encode()})
            sync_folder(self.work)
            self._complete()
        sync_folder(self.folder.parent)

    def _look_again(self) -> None:
        """Put the old content back if the user has written into it since the check."""
        foreign = list(self.kind.foreign(self.work / STAGED))[: SHOWN + 1]
        if foreign and exchange(self.work / STAGED, self.folder):
            raise ArtifactError(
                f"{self.folder} contains your files: {listed(foreign)}",
                expected="only unaltered files that are listed in the manifest",
                fix="Move them elsewhere, or choose another output.",
            )

    def _recover(self) -> None:
        """Complete a commit, and remove uncommitted content."""
        if _replaced(self.work / COMMIT) is not None:
            self._complete()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.work / (COMMIT + NEW))
        self._remove(STAGED)
        self._remove(ASIDE)

    def _complete(self) -> None:
        """The two renames of a commit, or the remaining one."""
        staged, aside = self.work / STAGED, self.work / ASIDE
        marker = sha256(self.folder / self.kind.marker)
        if staged.exists() and marker in (None, _replaced(self.work / COMMIT)):
            refuse_occupied(self.folder, self.kind)
            if marker is not None:
                self._remove(ASIDE)
                try:
                    os.rename(self.folder, aside)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    # A folder in the lower layer of a layered file system cannot be moved.
                    self._remove_known(self.folder)
            os.rename(staged, self.folder)
            sync_folder(self.folder.parent)
        os.unlink(self.work / COMMIT)

    def _remove(self, part: str) -> None:
        """Remove a part of the work folder that holds content, old or unfinished."""
        if (self.work / part).is_dir():
            self._remove_known(self.work / part, unfinished=True)

    def _remove_known(self, folder: Path, *, unfinished: bool = False) -> None:
        foreign = list(self.kind.foreign(folder, unfinished=unfinished))
        if foreign:
            raise ArtifactError(
                f"{folder} contains your files: {listed(foreign)}", fix="Move them elsewhere, and try again."
            )
        for place, folders, files in os.walk(folder, topdown=False):
            # The marker last: it identifies the remaining files as the compiler's.
            for name in sorted(files, key=lambda name: name == self.kind.marker and Path(place) == folder):
                os.unlink(Path(place) / name)
            for name in folders:
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(Path(place) / name)
        os.rmdir(folder)

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, remembering which ones."""
        missing = [item for item in (folder, *folder.parents) if not item.exists()]
        for item in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(item)
                self._made.append(item)

    def _acquire(self) -> None:
        place = self.work / LOCK
        lock = FileLock(place, thread_local=False)
        for attempt in range(ATTEMPTS):
            self._make(self.work)
            try:
                lock.acquire(timeout=PATIENCE)
                break
            except Timeout:
                raise self._held() from None
            except FileNotFoundError:  # the holder before us has just removed the folder
                if attempt == ATTEMPTS - 1:
                    raise
        self._lock = lock
        descriptor = os.open(place, os.O_WRONLY | os.O_TRUNC)
        try:
            write_all(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        finally:
            os.close(descriptor)

    def _held(self) -> ArtifactError:
        holder = _text(self.work / LOCK).strip()
        return ArtifactError(
            f"{self.folder} is being written by {holder if HOLDER.fullmatch(holder) and holder else 'another process'}",
            expected="one writer at a time",
            fix="Wait until the other compile ends, or choose another output.",
        )

    def _refuse_held(self) -> None:
        """Refuse if another process is writing."""
        place = self.work / LOCK
        if not place.is_file() or not HOLDER.fullmatch(_text(place)):
            return
        lock = FileLock(place, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise self._held() from None
        except OSError:
            return
        lock.release()

    def _release(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.work / LOCK)  # while held: a process that opened it before detects the removal
            lock, self._lock = self._lock, None
            lock.release()
        for folder in dict.fromkeys((self.work, *reversed(self._made))):
            with contextlib.suppress(OSError):  # not empty, or absent
                os.rmdir(folder)
        self._made = []


def read_whole(destination: Destination, read: Callable[[Path], T]) -> T:
    """Read a folder that another process may replace meanwhile: the old content or the new one, never a mixture.

    An interrupted commit is completed, or read in place if nothing may be written.

    Args:
        destination: The folder.
        read: Function that reads the folder, and fails if its parts do not belong together.

    Raises:
        ArtifactError: `read` fails on a folder that does not change.
    """
    for attempt in range(ATTEMPTS):
        before, folder = _identities(destination), destination.folder
        if _replaced(destination.work / COMMIT) is not None:
            with contextlib.suppress(ArtifactError), destination:
                pass
            if not folder.exists():
                folder = destination.work / STAGED
        try:
            return read(folder)
        except (ArtifactError, OSError):
            if attempt == ATTEMPTS - 1 or before == _identities(destination):
                raise
    raise AssertionError("the last attempt returns or raises")


def _identities(destination: Destination) -> list[tuple[int, int, int] | None]:
    """Identity of the folder and of its possible replacement, to detect an exchange."""
    found: list[tuple[int, int, int] | None] = []
    for place in (destination.folder, destination.work / COMMIT, destination.work / STAGED):
        try:
            status = place.stat()
        except OSError:
            found.append(None)
        else:
            # A new folder may reuse the inode number of a removed one: hence the time.
            found.append((status.st_dev, status.st_ino, status.st_mtime_ns))
    return found


def _replaced(commit: Path) -> str | None:
    """The sha256 of the marker that a commit replaces; None without a commit record."""
    try:
        record = json.loads(_text(commit))
    except ValueError:
        return None
    is_ours = isinstance(record, dict) and record.get("schema") == "qcompiler.commit/1"
    return str(record.get("replaced")) if is_ours else None


def _text(path: Path) -> str:
    """The content of a small file; "" if absent."""
    return (content(path) or b"").decode(errors="replace")


@contextlib.contextmanager
def _typed(folder: Path) -> Iterator[None]:
    """Convert system errors to errors of the compiler."""
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename and str(error.filename) != str(folder) else ""
        raise ArtifactError(
            f"{folder} cannot be written: {error.strerror or error}{place}", fix="Choose another output."
        ) from error
