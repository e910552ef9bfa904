"""The results of an analysis: causes of lost accuracy with remedies, and the measurements that led to them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from qcompiler.analysis.diagnosis import Diagnosis
from qcompiler.analysis.page import Page, analysis_html, analysis_summary
from qcompiler.analysis.parts import Part
from qcompiler.analysis.plain import finite
from qcompiler.errors import InputError
from qcompiler.storage.writing import write_file
from qcompiler.targets import Target

__all__ = ["Analysis", "Cause", "Finding", "typed"]


class Cause(StrEnum):
    """Reasons for lost accuracy, in words."""

    UNTRAINED = "untrained batch norms"
    """The statistics of batch norms are those of a new module."""
    PREPROCESSING = "wrong preprocessing of the calibration data"
    """The calibration data has other numbers than the evaluation, or than the batch norms have seen."""
    CONCAT = "concat of unlike ranges"
    """The grid of a concat is too coarse for one of its parts."""
    FEW_BITS = "few bits"
    """A tensor has fewer bits than the target offers."""
    DEPTHWISE = "depthwise layer with one scale"
    """One scale serves channels that each have only few weights, of different sizes."""
    DEAD_CHANNEL = "dead channel of a batch norm"
    """A channel with almost no variance makes its folded weights far larger than the others."""
    WEIGHT_OUTLIER = "outlier channel in the weight"
    """One channel of a weight is far larger than the others, which share its scale."""
    WEIGHT_TAIL = "long tail of the weight"
    """Few weights are far larger than the others."""
    SATURATION = "saturating input of a sigmoid"
    """Most of the range of an input lies where the function hardly changes."""
    RESIDUAL = "8-bit residual stream"
    """Additions of residual branches round a sum that all later layers read."""
    ACTIVATION_OUTLIER = "outlier channel in the activation"
    """One channel of an activation is far larger than the others, which share its scale."""
    ACTIVATION_TAIL = "long tail of the activation"
    """Few numbers of an activation are far larger than the others."""
    CLIPPED = "clipped activation"
    """Many numbers are outside of the range that calibration found."""
    ROUNDING = "rounding"
    """The tensor is sensitive, and nothing is unusual about its numbers."""


@dataclass(frozen=True)
class Finding:
    """A cause of lost accuracy, with a remedy.

    Args:
        layer: Name of the layer or operator, which starts with its path in the model.
        cause: The cause; see `Cause`.
        remedy: Keywords for `qcompiler.compile` that replace those of the analyzed call; empty if no keyword helps.
        predicted_gain: Gain of the score with the remedy alone: in the unit of `evaluate`, or in dB without it.
        measured: Whether the gain was measured on the exact simulation; otherwise it follows from the table of parts.
        evidence: Facts that led to the cause, and what to change in the model if no keyword helps.
        layers: All layers concerned.
        noise: Noise of the outputs from these layers alone, as a share of the power of the outputs.
    """

    layer: str
    cause: Cause
    remedy: Mapping[str, object]
    predicted_gain: float
    measured: bool
    evidence: str
    layers: tuple[str, ...] = ()
    noise: float = 0.0

    def keywords(self) -> str:
        """The remedy as it is typed."""
        return typed(self.remedy)

    def gain(self) -> str:
        """The gain as it is printed."""
        return f"{self.predicted_gain:+.4g}{'' if self.measured else ' expected'}"

    def __str__(self) -> str:
        remedy = f"compile(..., {self.keywords()})" if self.remedy else "no keyword of compile helps"
        return f"{self.layer}: {self.cause}. {self.evidence} Remedy: {remedy} ({self.gain()})."


def typed(remedy: Mapping[str, object]) -> str:
    """Keywords of a remedy as they are typed."""
    return ", ".join(f"{name}={_typed(value)}" for name, value in remedy.items())


def _typed(value: object) -> str:
    """Python text of a value of a remedy."""
    if isinstance(value, Target):
        return value.typed
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{len(value)} batches that evaluate used]"
    return repr(value)


@dataclass(frozen=True)
class Analysis:
    """The measurements of a quantized model and the causes of its loss.

    Args:
        model: Name of the model.
        target: Name of the target.
        metric: `evaluate`, or `SQNR` in dB if no function was given.
        scores: Score of the float model, with only weights and only activations quantized (float fake quantization),
            and of the exact simulation, `quantized`.
        parts: One row per weight and activation, in order.
        findings: Causes, the worst first.
        samples: Number of samples of the table of parts.
        evaluations: Number of quantized models that were scored.
        notes: Sentences for the user.
        seconds: Wall-clock time by step, seconds.
        walk: Function that `diagnose` calls with the allowed drop.
        divergences: Without `evaluate`, for a model with one output [samples, classes]: Kullback-Leibler divergence of
            the softmax of the outputs from that of the float model, nats per sample, by the names of `scores`. It means
            something only if the outputs are logits of classes.
    """

    model: str
    target: str
    metric: str
    scores: Mapping[str, float]
    parts: tuple[Part, ...]
    findings: tuple[Finding, ...]
    samples: int
    evaluations: int
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    walk: Callable[[float], Diagnosis] | None = field(default=None, compare=False, repr=False)
    divergences: Mapping[str, float] = field(default_factory=dict)

    def diagnose(self, allowed_drop: float = 0.01) -> Diagnosis:
        """Walk through the debugging flow of the white paper, and measure the score after each fix.

        Args:
            allowed_drop: Share of the float score that may be lost. Without `evaluate`, the path ends at 25 dB.

        Returns:
            The path; `print` draws it.

        Raises:
            InputError: The drop is out of range.
        """
        if not 0.0 <= allowed_drop < 1.0:
            raise InputError(f"allowed_drop is {allowed_drop!r}", expected="a share of the score, from 0 to below 1")
        assert self.walk is not None, "analyze sets it"
        return self.walk(allowed_drop)

    def worst(self, count: int = 10) -> tuple[Part, ...]:
        """The parts that lose most by themselves, the worst first."""
        return tuple(sorted(self.parts, key=lambda part: part.alone_db)[:count])

    def to_dict(self) -> dict[str, object]:
        """The result as data for JSON; numbers that are not finite are None."""
        findings = [
            {
                "layer": item.layer,
                "cause": str(item.cause),
                "remedy": item.keywords(),
                "predicted_gain": finite(item.predicted_gain),
                "measured": item.measured,
                "evidence": item.evidence,
                "layers": list(item.layers),
            }
            for item in self.findings
        ]
        parts = [
            {key: finite(value) if isinstance(value, float) else value for key, value in dataclasses.asdict(p).items()}
            for p in self.parts
        ]
        return {
            "model": self.model,
            "target": self.target,
            "metric": self.metric,
            "scores": {name: finite(score) for name, score in self.scores.items()},
            "divergences": dict(self.divergences),
            "samples": self.samples,
            "evaluations": self.evaluations,
            "findings": findings,
            "parts": parts,
            "notes": list(self.notes),
        }

    def report(self, path: str | Path, diagnosis: Diagnosis | None = None) -> Path:
        """Write an HTML page: scores, findings, all parts in a table that sorts, histograms of the worst parts.

        The page needs no network. Histograms need matplotlib (`qcompiler[plots]`).

        Args:
            path: File to write.
            diagnosis: Result of `diagnose`, which the page then draws.

        Returns:
            The path.
        """
        return write_file(path, analysis_html(self._page(), diagnosis).encode())

    def _repr_html_(self) -> str:
        """Verdict and findings, for notebooks."""
        return analysis_summary(self._page())

    def _page(self) -> Page:
        findings = [(i.layer, str(i.cause), i.evidence, i.keywords(), i.gain()) for i in self.findings]
        unit = "SQNR, dB" if self.metric == "SQNR" else "score"
        worst = self.worst(len(self.parts))
        return Page(
            self.model, self.target, self.verdict(), unit, self.scores, findings, self.notes, self.samples, worst
        )

    def verdict(self) -> str:
        """The result in a sentence."""
        shown = ", ".join(f"{name} {_number(score)}" for name, score in self.scores.items())
        unit = "dB against the float model" if self.metric == "SQNR" else "score of evaluate"
        text = f"{self.model} on {self.target}, {unit}: {shown}."
        if self.divergences:
            shown = ", ".join(f"{name} {value:.3g}" for name, value in self.divergences.items())
            text += f" If the outputs are logits, their softmax diverges by (nats per sample): {shown}."
        return text

    def __str__(self) -> str:
        lines = [self.verdict()]
        lines += [f"{index}. {item}" for index, item in enumerate(self.findings, 1)] or ["No cause stands out."]
        lines += [f"note: {text}" for text in self.notes]
        head = ("tensor", "kind", "bits", "alone dB", "without dB", "spread", "tail", "clipped")
        rows = [
            (
                part.name,
                part.kind,
                str(part.bits),
                _number(part.alone_db),
                _number(part.without_db),
                f"{part.spread:.1f}",
                f"{part.tail:.1f}",
                f"{100 * part.clipped:.2f} %",
            )
            for part in self.worst()
        ]
        widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
        ]
        return "\n".join(line.rstrip() for line in lines)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "exact"
