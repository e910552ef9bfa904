"""The errors of the compiler, one class per kind of cause.

An error message has up to four parts in this order: the fact that was found, its place (node, module path, source
line), the expected value, and a remedy. Catch a class for one kind of error, or `QCompilerError` for all. Any other
exception from the compiler is a bug.
"""

from __future__ import annotations

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
        text = found if where is None else f"{found} (at {where})"
        if expected is not None:
            text += f"; expected {expected}"
        if fix is not None:
            text += f". {fix}"
        super().__init__(text)


class InputError(QCompilerError):
    """An argument of a public function is wrong: change the call."""


class CaptureError(QCompilerError):
    """The model could not be turned into a graph, or the results of graph and model differ."""


class UnsupportedError(QCompilerError):
    """The model holds an operator, or the target lacks a capability, that the compilation needs."""


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
