"""Locations of calls in the user's code: `module:qualified_name:line`, never the path of a file."""

from __future__ import annotations

import ast
import functools
import linecache
import re
import sys
from pathlib import Path
from types import FrameType, TracebackType

_INTERNAL = ("torch", "qcompiler")
_STACK_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def _is_user_module(module: str) -> bool:
    return module.partition(".")[0] not in _INTERNAL


def _is_user_frame(frame: FrameType) -> bool:
    """Whether a frame is in neither torch's code nor ours, nor in code that torch.fx generated, which has no module."""
    module = str(frame.f_globals.get("__name__", ""))
    return bool(module) and not frame.f_code.co_filename.startswith("<eval_with_key>") and _is_user_module(module)


def _place(frame: FrameType, line: int) -> str:
    return f"{frame.f_globals.get('__name__', '')}:{frame.f_code.co_qualname}:{line}"


def source_of_frame(frame: FrameType | None, outermost: FrameType | None, libraries: tuple[str, ...] = ()) -> str:
    """The innermost user line at or above `frame`, or an empty string.

    Args:
        frame: First frame of the search.
        outermost: Frame that calls the model: frames above it belong to the caller, not to the model.
        libraries: Prefixes of modules whose lines are not the user's either.
    """
    while frame is not None and frame is not outermost:
        if _is_user_frame(frame) and not str(frame.f_globals["__name__"]).startswith(libraries):
            return _place(frame, frame.f_lineno)
        frame = frame.f_back
    return ""


def source_of_stack(stack: str) -> str:
    """The innermost user line of a stack trace in torch's text form."""
    for match in reversed(list(_STACK_LINE.finditer(stack))):
        file, line = match["file"], int(match["line"])
        module = _module_of(file)
        if module is not None and _is_user_module(module):
            return f"{module}:{_qualified_name(file, line)}:{line}"
    return ""


def failing_line(error: BaseException) -> tuple[str | None, str]:
    """Place and text of the innermost user line in the traceback of `error`, below the front end's own frames."""
    place, text = None, ""
    inside = False
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        inside |= str(frame.f_globals.get("__name__", "")).startswith("qcompiler.")
        if inside and _is_user_frame(frame):
            place = _place(frame, traceback.tb_lineno)
            text = linecache.getline(frame.f_code.co_filename, traceback.tb_lineno).strip()
        traceback = traceback.tb_next
    return place, text


def passes_through(error: BaseException, module: str) -> bool:
    """Whether a function of `module`, by its full name, stands in the traceback of `error`."""
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") == module:
            return True
        traceback = traceback.tb_next
    return False


@functools.lru_cache(maxsize=256)
def _module_of(file: str) -> str | None:
    """The name of the loaded module that was read from `file`."""
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == file:
            return name
    return None


@functools.lru_cache(maxsize=4096)
def _qualified_name(file: str, line: int) -> str:
    """The function around `line` as Python's `co_qualname` spells it."""
    parts: list[str] = []
    body: list[ast.stmt] = _parse(file)
    while True:
        around = [
            node
            for statement in body
            for node in ast.walk(statement)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and node.lineno <= line <= (node.end_lineno or node.lineno)
        ]
        if not around:
            break
        outer = min(around, key=lambda node: node.lineno)
        parts.append(outer.name)
        if not isinstance(outer, ast.ClassDef):
            parts.append("<locals>")
        body = outer.body
    while parts and parts[-1] == "<locals>":
        parts.pop()
    return ".".join(parts) or "<module>"


@functools.lru_cache(maxsize=64)
def _parse(file: str) -> list[ast.stmt]:
    try:
        return ast.parse(Path(file).read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, UnicodeDecodeError):
        return []
