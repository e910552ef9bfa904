"""The result of a search for accuracy: the best compiled model, and all candidates that were tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qcompiler.analysis.plain import finite
from qcompiler.session.compile import Compiled

__all__ = ["Search", "Tried", "call_text"]


def call_text(function: str, keywords: Mapping[str, str]) -> str:
    """A call as it is typed, one argument per line; the first argument is `model`.

    Args:
        function: Name of the function.
        keywords: Texts of the values by keyword.
    """
    lines = [f"{function}(", "    model,", *(f"    {name}={value}," for name, value in keywords.items()), ")"]
    return "\n".join(lines)


@dataclass(frozen=True)
class Tried:
    """One candidate of a search.

    Args:
        name: Words for what differs from the default compile.
        keywords: Keywords of `compile`, as they are typed.
        score: Score of the integer program; None if the candidate failed.
        error: The error of a failed candidate, with its class; empty otherwise.
        same_as: Name of an earlier candidate with the same graph, whose score it has without an evaluation; or empty.
        best: Whether the candidate was the best one so far, and was verified.
        seconds: Wall-clock time of the quantization and the evaluation, seconds.
    """

    name: str
    keywords: Mapping[str, str]
    score: float | None
    error: str = ""
    same_as: str = ""
    best: bool = False
    seconds: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        if self.score is None:
            return f"- {self.name}: failed: {self.error}"
        notes = f", the same graph as: {self.same_as}" if self.same_as else ""
        notes += f", not verified: {self.error}" if self.error else ""
        return f"{'+' if self.best else '-'} {self.name}: {self.score:.4g}{notes}"


@dataclass(frozen=True)
class Search:
    """The result of `autoquant`.

    Args:
        compiled: The best candidate, compiled and verified.
        tried: All candidates, in order.
        call: Text of the call of `compile` that gives `compiled` again.
        score: Score of `compiled`, the integer program.
        whole: Score of the float model.
        wanted: Smallest score within the allowed drop.
        evaluations: Number of quantized models that were scored.
        reason: Why the search ended, in a sentence.
        parts: If `score` is below `wanted`: scores of the best candidate with only its weights and only its activations
            quantized, `weights only` and `activations only`. Both are float fake quantization, not the program.
        training: If `score` is below `wanted`: text of a call that trains with quantization; otherwise empty.
        seconds: Wall-clock time of the search, seconds, without that of an interrupted search.
    """

    compiled: Compiled
    tried: tuple[Tried, ...]
    call: str
    score: float
    whole: float
    wanted: float
    evaluations: int
    reason: str
    parts: Mapping[str, float] = field(default_factory=dict)
    training: str = ""
    seconds: float = field(default=0.0, compare=False)

    @property
    def met(self) -> bool:
        """Whether the score is within the allowed drop."""
        return self.score >= self.wanted

    def to_dict(self) -> dict[str, object]:
        """The result as data for JSON; numbers that are not finite are None. Times are left out."""
        tried = [
            {
                "name": item.name,
                "keywords": dict(item.keywords),
                "score": None if item.score is None else finite(item.score),
                "error": item.error,
                "same_as": item.same_as,
                "best": item.best,
            }
            for item in self.tried
        ]
        return {
            "target": self.compiled.target.name,
            "score": finite(self.score),
            "float": finite(self.whole),
            "wanted": finite(self.wanted),
            "met": self.met,
            "evaluations": self.evaluations,
            "reason": self.reason,
            "parts": {name: finite(score) for name, score in self.parts.items()},
            "call": self.call,
            "training": self.training,
            "tried": tried,
        }

    def verdict(self) -> str:
        """The result in a sentence."""
        drop = "within" if self.met else "NOT within"
        return (
            f"score {self.score:.4g}, {drop} the allowed drop: float {self.whole:.4g}, wanted {self.wanted:.4g}, "
            f"{self.evaluations} evaluations. {self.reason}"
        )

    def __str__(self) -> str:
        lines = [self.verdict(), *(f"  {item}" for item in self.tried), "", self.call]
        if self.training:
            shown = ", ".join(f"{name} {score:.4g}" for name, score in self.parts.items())
            lines += ["", f"Float fake quantization of parts of it: {shown}.", "To win the rest, train:", self.training]
        return "\n".join(lines)
