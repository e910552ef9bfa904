"""Reading untrusted files: each failure is a typed error with the name of the file, and no read blocks.

All reads of the compiler from disk go through `read_file`, and JSON through `parse_json`, which is stricter than
Python's parser: no NaN or infinity, no duplicate keys, no unbounded nesting.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path

from qcompiler.errors import ArtifactError, QCompilerError

DEEPEST = 200
"""Most levels of lists and objects in JSON. Inputs nest by two levels per container; recursion ends near 1000."""
WIDEST_INTEGER = 64
"""Most bits of an integer in JSON; no written integer has more."""
_UNKNOWN_MEMORY = 2**38
"""Memory in bytes assumed if the system does not report it."""

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN_MEMORY


def exists(path: str | Path) -> bool:
    """Whether the path exists; False for an invalid name."""
    try:
        Path(path).stat()
    except (OSError, ValueError):
        return False
    return True


def read_file(path: str | Path, kind: type[QCompilerError] = ArtifactError, where: str | None = None) -> bytes:
    """The bytes of a regular file.

    Args:
        path: The file.
        kind: Class of the error.
        where: Place for messages, when `path` is one of several files.

    Raises:
        QCompilerError: An error of class `kind`: no such file exists, the file is not regular or not readable, or it is
            larger than the memory of this machine.
    """
    name = str(path) if where is None else Path(path).name
    try:
        check_regular(Path(path).stat(), name, kind, where)
        # O_NONBLOCK: a pipe that replaces the file in between is opened without waiting for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            check_regular(status, name, kind, where)
            if status.st_size > machine_memory():
                raise kind(
                    f"{name} has {status.st_size} bytes", where=where, expected="less than the memory of this machine"
                )
            return file.read()
    except FileNotFoundError:
        raise kind(f"there is no file {name!r}", where=where) from None
    except OSError as error:
        raise kind(f"{name} cannot be read: {error.strerror}", where=where) from None
    except ValueError as error:  # a name with a NUL or with characters that the file system cannot encode
        raise kind(f"{name!r} is not a valid file name: {error}", where=where) from None


def check_regular(
    status: os.stat_result, name: str, kind: type[QCompilerError] = ArtifactError, where: str | None = None
) -> None:
    """Refuse anything but a regular file.

    Raises:
        QCompilerError: An error of class `kind`, for anything else.
    """
    if not stat.S_ISREG(status.st_mode):
        found = next((text for test, text in _KINDS if test(status.st_mode)), "no file")
        raise kind(f"{name} is {found}", where=where, expected="a regular file")


def decode(data: bytes, name: str, kind: type[QCompilerError] = ArtifactError) -> str:
    """Decode UTF-8.

    Raises:
        QCompilerError: An error of class `kind`, with the position of the first invalid byte.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise kind(f"the text is not UTF-8: byte {error.start}", where=name) from None


def parse_json(data: bytes | str, name: str, kind: type[QCompilerError] = ArtifactError) -> object:
    """Parse JSON strictly.

    Args:
        data: The text.
        name: The file, for messages.
        kind: Class of the error.

    Raises:
        QCompilerError: An error of class `kind`: the data is not UTF-8 or not JSON, has a non-finite or too large
            number, a duplicate key, or too deep nesting.
    """
    text = decode(data, name, kind) if isinstance(data, bytes) else data

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                raise kind(f"the key {key!r} appears twice", where=name)
            found[key] = value
        return found

    def integer(digits: str) -> int:
        if len(digits) > WIDEST_INTEGER or int(digits).bit_length() > WIDEST_INTEGER:
            raise kind(f"a number has {len(digits)} digits", where=name, expected=f"at most {WIDEST_INTEGER} bits")
        return int(digits)

    def real(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            raise kind(f"the number {digits[:20]} is not finite", where=name)
        return number

    try:
        found: object = json.loads(
            text, object_pairs_hook=unique, parse_int=integer, parse_float=real, parse_constant=real
        )
    except json.JSONDecodeError as error:
        raise kind(f"the text is not JSON: {error}", where=name) from None
    except RecursionError:
        raise kind("the nesting is too deep", where=name, expected=f"at most {DEEPEST} levels") from None
    level: list[object] = [found]
    for _ in range(DEEPEST):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return found
    raise kind("the nesting is too deep", where=name, expected=f"at most {DEEPEST} levels")
