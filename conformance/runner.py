"""Runs lines and says whether what is required came out."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.lines import Line, Outcome, run

__all__ = ["Verdict", "judge", "read_required", "run_lines", "select", "write_json"]


@dataclass(frozen=True)
class Verdict:
    """Whether a run is good.

    Args:
        problems: Why it is not; empty where it is.
        compared: Values compared.
        lines: Lines that were not skipped.
        seconds: They took.
    """

    problems: tuple[str, ...]
    compared: int
    lines: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __str__(self) -> str:
        text = f"{self.lines} lines, {self.compared} values compared in {self.seconds:.0f} s"
        return "\n".join([*(f"PROBLEM  {problem}" for problem in self.problems), text])


def read_required(path: Path) -> list[str]:
    """The names of the lines that must pass."""
    lines: list[str] = tomllib.loads(path.read_text(encoding="utf-8"))["lines"]
    return lines


def select(lines: Sequence[Line], patterns: Sequence[str]) -> list[Line]:
    """The lines that one of the patterns fits; all where there are no patterns."""
    if not patterns:
        return list(lines)
    return [line for line in lines if any(fnmatch.fnmatchcase(line.name, pattern) for pattern in patterns)]


def run_lines(lines: Sequence[Line]) -> Iterator[Outcome]:
    """One outcome after the other."""
    for line in lines:
        yield run(line)


def judge(outcomes: Sequence[Outcome], required: Sequence[str], *, allow_missing: bool = False) -> Verdict:
    """The faults of a run.

    A line that failed is wrong, required or not. So is a required line that there is not, for then a check was taken
    away; and one that only measures, which proves nothing. One that was skipped is wrong unless `allow_missing`.

    Args:
        outcomes: Outcomes of the lines.
        required: Names of those that must pass.
        allow_missing: For machines that do not have every tool.
    """
    found = {outcome.name: outcome for outcome in outcomes}
    problems = [f"{outcome.name} failed" for outcome in outcomes if outcome.status == "failed"]
    for name in required:
        if name not in found:
            problems.append(f"{name} is required, and there is no such line")
        elif found[name].status == "measured":
            problems.append(f"{name} is required, and measures without judging")
        elif found[name].status == "skipped" and not allow_missing:
            problems.append(f"{name} is required, and was skipped: {'; '.join(found[name].notes)}")
    ran = [outcome for outcome in outcomes if outcome.status != "skipped"]
    return Verdict(tuple(problems), sum(o.compared for o in ran), len(ran), sum(o.seconds for o in ran))


def write_json(path: Path, outcomes: Sequence[Outcome], verdict: Verdict) -> None:
    """Outcomes and verdict for machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "passed": verdict.passed,
        "problems": list(verdict.problems),
        "compared": verdict.compared,
        "lines": [dataclasses.asdict(outcome) for outcome in outcomes],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
