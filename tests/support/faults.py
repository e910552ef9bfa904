"""Ends, or disturbs, what runs at the n-th call of the system that changes the disk."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import pytest

from qcompiler.storage import exchange

CALLS = ("open", "write", "fsync", "chmod", "replace", "rename", "mkdir", "rmdir", "unlink")
"""Functions of `os` that writers use."""


class Ended(BaseException):
    """Stands for a kill: nothing of the process reaches the disk afterwards."""


@dataclass
class Calls:
    """The calls so far, and what happens at number `at`.

    Args:
        at: Number of the call, from 0; -1 for none.
        fault: Called in its place with its name; an exception that it raises leaves the call undone.
        for_good: Whether all later calls meet the same.
    """

    at: int
    fault: Callable[[str], None]
    for_good: bool
    names: list[str] = field(default_factory=list)

    def begin(self, name: str) -> None:
        """Count a call."""
        number = len(self.names)
        self.names.append(name)
        if number == self.at or (self.for_good and 0 <= self.at < number):
            self.fault(name)


def end(name: str) -> None:
    """Be killed."""
    raise Ended(name)


def fail(code: int) -> Callable[[str], None]:
    """Give the error `code` of the system."""

    def fault(name: str) -> None:
        raise OSError(code, os.strerror(code), name)

    return fault


DISK_FULL, BROKEN = fail(errno.ENOSPC), fail(errno.EIO)


@contextlib.contextmanager
def faulty(
    at: int = -1, fault: Callable[[str], None] = end, *, for_good: bool = True, exchanging: bool = True
) -> Iterator[Calls]:
    """Let `fault` happen at call number `at`.

    Args:
        at: See `Calls`.
        fault: See `Calls`.
        for_good: See `Calls`.
        exchanging: Whether the system can exchange two names.
    """
    calls = Calls(at, fault, for_good)

    def wrapped(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            if name == "open" and not _writes(arguments):
                return original(*arguments, **keywords)
            try:
                calls.begin(name)
            except BaseException:
                if name == "write" and len(calls.names) - 1 == calls.at:
                    half = bytes(cast("bytes", arguments[1]))
                    original(arguments[0], half[: len(half) // 2])  # what was written before
                raise
            return original(*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        native = exchange._renameat2() if exchanging else None
        replaced = None if native is None else wrapped("exchange", native)
        patch.setattr(exchange, "_renameat2", lambda: replaced)
        yield calls


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[1] if len(arguments) > 1 else 0
    return bool(int(flags) & (os.O_WRONLY | os.O_RDWR))  # type: ignore[call-overload]
