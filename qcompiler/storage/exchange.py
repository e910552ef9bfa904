"""Exchanging the names of two folders in one step, if the system supports it."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path

RENAME_EXCHANGE = 2
"""Flag of Linux's renameat2: both names exist at all times."""

AT_FDCWD = -100
"""Placeholder of the working directory in calls that take a folder."""

UNSUPPORTED = frozenset(
    # EPERM: sandboxes that do not know the call. EXDEV: a layered file system whose lower layer holds the folder.
    {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}
)


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders.

    Returns:
        Whether the names were exchanged; False if the system or the file system has no such call.

    Raises:
        OSError: The call failed for another reason.
    """
    call = _renameat2()
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """The function of the C library; None if absent."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        function = library.renameat2
    except (AttributeError, OSError, TypeError):  # TypeError: Windows names no library that way
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    function.restype = ctypes.c_int
    return function
