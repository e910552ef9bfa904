"""torch's defaults during a compile: they belong to the user and must not affect the result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch

_callers: ContextVar[tuple[torch.dtype, torch.device] | None] = ContextVar("callers", default=None)


@contextlib.contextmanager
def own_defaults() -> Iterator[None]:
    """float32 and the CPU as defaults, and no autocast; the defaults of the caller are restored afterwards."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with contextlib.ExitStack() as stack:
        if _callers.get() is None:
            token = _callers.set((dtype, device))
            stack.callback(_callers.reset, token)
        _enter(stack, (dtype, device), (torch.float32, torch.device("cpu")))
        for kind in {"cpu", device.type, *(["cuda"] if torch.cuda.is_initialized() else [])} - {"meta"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def callers_defaults() -> Iterator[None]:
    """The defaults of the outermost caller, for code of the caller, such as data loading."""
    callers = _callers.get()
    with contextlib.ExitStack() as stack:
        if callers is not None:
            _enter(stack, (torch.get_default_dtype(), torch.get_default_device()), callers)
        yield


def _enter(
    stack: contextlib.ExitStack, now: tuple[torch.dtype, torch.device], wanted: tuple[torch.dtype, torch.device]
) -> None:
    if now[0] != wanted[0]:
        torch.set_default_dtype(wanted[0])  # noqa: TID251  # the next line gives the former one back
        stack.callback(torch.set_default_dtype, now[0])  # noqa: TID251
    if now[1] != wanted[1]:
        stack.enter_context(wanted[1])
