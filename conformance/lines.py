"""A line: one check against an oracle, and what came out of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from conformance.environments import missing

__all__ = ["Line", "Outcome", "Status", "Tally", "run"]

Array = npt.NDArray[Any]
NOTES = 6
"""Notes that are printed of each line."""
Status = Literal["passed", "failed", "measured", "skipped"]


@dataclass
class Tally:
    """Counts values that are compared.

    Args:
        compared: How many.
        mismatches: How many of them differ.
        notes: Remarks: the first difference, omissions and their reasons.
    """

    compared: int = 0
    mismatches: int = 0
    notes: list[str] = field(default_factory=list)

    def compare(self, what: str, found: Array, expected: Array, describe: Callable[[int], str] | None = None) -> None:
        """Add the elements of two arrays that should be equal.

        Args:
            what: Name of the comparison, for the note on its first difference.
            found: Ours.
            expected: The oracle's.
            describe: Says what led to the element at a flat index.
        """
        if found.shape != expected.shape:
            self.compared += expected.size
            self.mismatches += max(expected.size, 1)
            self.notes.append(f"{what}: shape {found.shape}, the oracle has {expected.shape}")
            return
        different = np.flatnonzero(found.reshape(-1) != expected.reshape(-1))
        self.compared += expected.size
        self.mismatches += len(different)
        if len(different):
            first = int(different[0])
            inputs = "" if describe is None else f" for {describe(first)}"
            ours, theirs = found.reshape(-1)[first], expected.reshape(-1)[first]
            self.notes.append(f"{what}: {len(different)} differ, first {ours} where the oracle has {theirs}{inputs}")


@dataclass(frozen=True)
class Line:
    """One check.

    Args:
        name: Parts with slashes between them: what is checked, against whom.
        check: Does the work.
        needs: Environments and programs without which it is skipped.
        exact: Whether a mismatch is a failure. A line that is not exact measures a difference that is known.
    """

    name: str
    check: Callable[[], Tally]
    needs: tuple[str, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class Outcome:
    """The result of a line.

    Args:
        name: Name of the line.
        status: `failed`: it has mismatches, compared nothing, or broke. `measured`: its mismatches are no failure.
        compared: Values compared.
        mismatches: Number of values that differ.
        seconds: It took.
        notes: See `Tally`; why it was skipped; how it broke.
    """

    name: str
    status: Status
    compared: int = 0
    mismatches: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.status:8} {self.name:44} {self.compared:>10} {self.mismatches:>8} {self.seconds:7.1f} s"
        shown = [f"         {note}" for note in self.notes[:NOTES]]
        if len(self.notes) > NOTES:
            shown.append(f"         and {len(self.notes) - NOTES} more notes: --json has them")
        return "\n".join([text, *shown])


def run(line: Line) -> Outcome:
    """Run a line, or say why it is skipped. Whatever it raises is a failure of the line, not of the run."""
    absent = tuple(reason for need in line.needs if (reason := missing(need)))
    if absent:
        return Outcome(line.name, "skipped", notes=absent)
    begun = time.perf_counter()
    try:
        tally = line.check()
    except Exception as error:  # noqa: BLE001  # whatever an oracle, a compiler or we raise
        broken = f"{type(error).__name__}: {error}"
        return Outcome(line.name, "failed", seconds=time.perf_counter() - begun, notes=(broken,))
    seconds, notes = time.perf_counter() - begun, tally.notes
    status: Status = "measured"
    if line.exact:
        status = "failed" if tally.mismatches else "passed"
    if not tally.compared:
        status, notes = "failed", [*notes, "nothing was compared"]
    return Outcome(line.name, status, tally.compared, tally.mismatches, seconds, tuple(notes))
