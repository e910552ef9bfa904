"""The errors of the compiler, one class per kind of cause.

An error message has up to four parts in this order: the fact that was found, its place (node, module path, source
line), the expected value, and a remedy. Catch a class for one kind of error, or `QCompilerError` for all. Any other
exception from the compiler is a bug.

Where the place is a line of the model's source, the message quotes it: the name of an operator may not be the word that
the user wrote.
"""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Sequence
from typing import TypeAlias

__all__ = [
    "ArtifactError",
    "CalibrationError",
    "CaptureError",
    "ContractError",
    "EncodingsError",
    "GraphError",
    "InputError",
    "NotSupportedYetError",
    "ParseError",
    "PassError",
    "PipelineError",
    "PluginError",
    "QCompilerError",
    "TargetError",
    "ToolchainError",
    "UnsupportedError",
    "VerificationError",
]


_PLACE = re.compile(r"(?P<module>[\w.]+):[\w.<>]+:(?P<line>\d+)\)?$")
_LONGEST = 160


def quoted(where: str | None) -> str:
    """The line of source at a place that ends in `module:function:line`; empty if there is none.

    Args:
        where: The place of an error.
    """
    place = _PLACE.search(where or "")
    file = getattr(sys.modules.get(place["module"]), "__file__", None) if place is not None else None
    if place is None or not isinstance(file, str):
        return ""
    line = " ".join(linecache.getline(file, int(place["line"])).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


class QCompilerError(Exception):
    """Base class of all errors of the compiler.

    Args:
        found: The fact that was found, as a sentence without a final full stop.
        where: The place: node, module path, file and line, or key of a file.
        expected: The value or condition that would have been accepted.
        fix: One remedy that the reader can apply.
    """

    def __init__(
        self, found: str, *, where: str | None = None, expected: str | None = None, fix: str | None = None
    ) -> None:
        self.found = found
        self.where = where
        self.expected = expected
        self.fix = fix
        code = quoted(where)
        text = found if where is None else f"{found} (at {where}{code and f': `{code}`'})"
        if expected is not None:
            text += f"; expected {expected}"
        if fix is not None:
            text += f". {fix}"
        super().__init__(text)


class InputError(QCompilerError):
    """An argument of a public function is wrong: change the call."""


class CaptureError(QCompilerError):
    """The model could not be turned into a graph, or the results of graph and model differ."""


Missing: TypeAlias = tuple[str, str | None, str | None]
"""Reason, place and remedy of something that is missing."""


class UnsupportedError(QCompilerError):
    """The model holds an operator, or the target lacks a capability, that the compilation needs.

    Args:
        found: As for all errors.
        where: As for all errors.
        expected: As for all errors.
        fix: As for all errors.
        others: Reason, place and remedy of all else that is missing, so that the user sees it at once.
    """

    def __init__(
        self,
        found: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
        others: Sequence[Missing] = (),
    ) -> None:
        super().__init__(found, where=where, expected=expected, fix=fix)
        self.others = tuple(others)
        if others:
            self.args = (f"{self.args[0]}\n\nAlso missing:\n{_listed(others)}",)

    def with_others(self, others: Sequence[Missing]) -> UnsupportedError:
        """The same error with more that is missing."""
        found = [*self.others, *others]
        return UnsupportedError(self.found, where=self.where, expected=self.expected, fix=self.fix, others=found)


def _listed(others: Sequence[Missing]) -> str:
    """One line for each reason, with all its places and its remedy."""
    places: dict[tuple[str, str | None], list[str]] = {}
    for found, where, fix in others:
        code = quoted(where)
        places.setdefault((found, fix), []).append(f"{where or ''}{code and f': `{code}`'}")
    return "\n".join(
        f"    {found} (at {'; '.join(dict.fromkeys(filter(None, at)))}){f'. {fix}' if fix else ''}"
        for (found, fix), at in places.items()
    )


class NotSupportedYetError(QCompilerError):
    """An announced feature that this release does not have.

    Args:
        what: Name of the feature.
        where: As for all errors.
        fix: Alternative that works today.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(f"{what} is not supported yet", where=where, fix=fix)


class TargetError(QCompilerError):
    """A hardware descriptor is malformed, contradictory or unknown: change the descriptor."""


class GraphError(QCompilerError):
    """A graph breaks an invariant of its stage: the pass or front end that built it has a defect."""


class ParseError(QCompilerError):
    """Text that is not a graph, a pipeline or a quantizer specification."""


class PassError(QCompilerError):
    """A pass refused its input or broke its own declaration."""


class PipelineError(QCompilerError):
    """Passes are missing, unknown or in an impossible order. Raised before any pass runs."""


class ContractError(QCompilerError):
    """The numbers after a pass differ from those before it by more than the pass promises."""


class CalibrationError(QCompilerError):
    """Ranges could not be found, or were lost: no data, values that are not finite, a scale that became 0."""


class VerificationError(QCompilerError):
    """The forms of the compiled model disagree."""


class EncodingsError(QCompilerError):
    """A file of encodings is malformed, or does not fit the model or the target."""


class ArtifactError(QCompilerError):
    """An artifact folder is incomplete, altered or written by an unknown version."""


class PluginError(QCompilerError):
    """A plugin could not be loaded, or two plugins claim one name."""


class ToolchainError(QCompilerError):
    """An external program, such as a C compiler, is missing or failed: change the environment."""
