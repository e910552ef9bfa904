"""The path through the flow chart of debugging, with the score after each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Diagnosis", "Step"]

MARKS = {True: "+", False: "-", None: "?"}
"""Signs of a step in the drawing: kept, not kept, or a question."""


@dataclass(frozen=True)
class Step:
    """One box of the flow chart.

    Args:
        title: Question, or fix that was tried.
        answer: Answer to the question, or keywords of the fix.
        score: Score after the step; None without a measurement.
        kept: Whether a fix was kept, because it raised the score; None for a question.
    """

    title: str
    answer: str
    score: float | None = None
    kept: bool | None = None


@dataclass(frozen=True)
class Diagnosis:
    """The result of the flow chart.

    Args:
        steps: The boxes on the path, in order.
        start: Score before the first fix.
        score: Score with all fixes that were kept.
        whole: Score of the float model; infinite if the score is a signal-to-noise ratio.
        met: Whether the score is within the allowed drop.
        remedy: Keywords for `qcompiler.compile` of all fixes that were kept.
        keywords: The same as they are typed.
    """

    steps: tuple[Step, ...]
    start: float
    score: float
    whole: float
    met: bool
    remedy: Mapping[str, object]
    keywords: str

    def to_dict(self) -> dict[str, object]:
        """The result as data for JSON."""
        return {
            "steps": [vars(step) for step in self.steps],
            "start": self.start,
            "score": self.score,
            "float": self.whole if math.isfinite(self.whole) else None,
            "met": self.met,
            "remedy": self.keywords,
        }

    def __str__(self) -> str:
        """The path as a drawing in text: one line per box, joined by lines."""
        lines = []
        for index, step in enumerate(self.steps):
            score = "" if step.score is None else f"  [{step.score:.4g}]"
            lines += ["  │"] if index and step.kept is None else []
            indent = "  " if step.kept is None else "  ├─ "
            lines.append(f"{indent}{MARKS[step.kept]} {step.title}: {step.answer}{score}")
        return "\n".join(lines)
