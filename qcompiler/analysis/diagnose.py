"""The debugging flow of the white paper: each fix in order, and the score after it.

    float check ─► weights or activations? ─► fixes of weights ─► fixes of activations ─► layer by layer ─► what remains

A fix is kept if it wins back a twentieth of the missing score; the next one is tried in addition. The path ends as soon
as the score is within the allowed drop.

Source: Nagel et al. 2021, arXiv:2106.08295, section 3.7 and figure 12.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from qcompiler.analysis.diagnosis import Diagnosis, Step
from qcompiler.analysis.findings import typed
from qcompiler.analysis.parts import Part
from qcompiler.analysis.remedies import EFFORTS, Bench, changed_overrides, per_channel_target, widest
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.session.pipeline import print_pipeline
from qcompiler.targets import Target

__all__ = ["Flow"]

LAYERS = 3
"""Layers that get more bits, one after the other."""
METHODS = ("min_max", "mse")
"""Other ways to choose the ranges of activations."""
LEAST = 0.05
"""Share of the missing score that a fix has to win back to be kept."""
BOTH_DB = 3.0
"""Difference in dB below which weights and activations lose alike."""

Remedy = Mapping[str, object]


class Flow:
    """One walk through the flow chart.

    Args:
        bench: Scores quantized models.
        scores: Scores of the analysis.
        bypassed: Score of the graph with all quantizers bypassed.
        parts: Parts of the analysis.
        enough: Smallest score that ends the path.
    """

    def __init__(
        self, bench: Bench, scores: Mapping[str, float], bypassed: float, parts: Sequence[Part], enough: float
    ) -> None:
        self.bench, self.scores, self.bypassed, self.parts, self.enough = bench, scores, bypassed, parts, enough
        self.steps: list[Step] = []
        self.remedy: dict[str, object] = {}
        self.start = self.score = scores["quantized"]

    def result(self) -> Diagnosis:
        """Walk the chart."""
        if self._is_float_right():
            weights, activations = self._guilty()
            if not self._is_met() and weights:
                self._fixes("fix weights", self._weight_fixes())
            if not self._is_met() and activations:
                self._fixes("fix activations", self._activation_fixes())
            if not self._is_met():
                self._fixes("layer by layer", self._layer_fixes())
            self._remains()
        return Diagnosis(
            tuple(self.steps),
            self.start,
            self.score,
            self.scores.get("float", math.inf),
            self._is_met(),
            self.remedy,
            typed(self.remedy),
        )

    def _is_met(self) -> bool:
        return self.score >= self.enough

    def _is_float_right(self) -> bool:
        right = self.bypassed >= self.enough
        answer = "yes" if right else "no: the loss does not come from quantization. Check evaluate and the model."
        self.steps.append(Step("is the graph right without quantizers?", answer, self.bypassed))
        return right

    def _guilty(self) -> tuple[bool, bool]:
        """Whether weights lose, and whether activations lose."""
        weights, activations = self.scores["weights only"], self.scores["activations only"]
        if math.isfinite(self.scores.get("float", math.inf)):
            found = weights < self.enough, activations < self.enough
        else:
            found = weights <= activations + BOTH_DB, activations <= weights + BOTH_DB
        if not any(found):
            found = True, True
        names = [name for name, lost in zip(("weights", "activations"), found, strict=True) if lost]
        answer = f"{' and '.join(names)} (only weights: {weights:.4g}, only activations: {activations:.4g})"
        if self._is_met():
            answer = "neither: the score is within the allowed drop"
        self.steps.append(Step("weights or activations?", answer, self.score))
        return found

    def _fixes(self, title: str, fixes: Iterator[tuple[str, Remedy]]) -> None:
        """Try fixes until the score is high enough."""
        self.steps.append(Step(title, "in order"))
        for name, fix in fixes:
            remedy = {**self.remedy, **fix}
            score = self.bench.try_remedy(remedy)
            if score is None:
                self.steps.append(Step(name, "refused by the target, or the budget is spent", None, kept=False))
                continue
            kept = score > self.score + LEAST * max(self.enough - self.score, 0.0)
            self.steps.append(Step(name, typed(fix), score, kept=kept))
            if kept:
                self.remedy, self.score = remedy, score
            if self._is_met():
                return

    def _weight_fixes(self) -> Iterator[tuple[str, Remedy]]:
        options = self.bench.session.options
        if options.effort == "fast":
            yield "equalization", {"effort": "default"}
        target = per_channel_target(self.bench.session.target)
        if target is not None:
            yield "a scale per channel", {"target": target}
        if options.effort != EFFORTS[-1]:
            yield "adaptive rounding", {"effort": "best"}

    def _activation_fixes(self) -> Iterator[tuple[str, Remedy]]:
        if self.bench.session.options.effort == "fast" and "effort" not in self.remedy:
            yield "equalization", {"effort": "default"}
        for method in METHODS:
            session = self.bench.changed(self.remedy)
            passes = [
                dataclasses.replace(item, method=method) if isinstance(item, CalibrateActivations) else item
                for item in session.passes
            ]
            if tuple(passes) != session.passes:
                yield f"ranges by {method}", {"pipeline": print_pipeline(passes)}

    def _layer_fixes(self) -> Iterator[tuple[str, Remedy]]:
        """More bits for the layers that lose most, one in addition to the other."""
        target = self.remedy.get("target", self.bench.session.target)
        assert isinstance(target, Target)
        done: set[str] = set()
        for part in sorted(self.parts, key=lambda item: item.alone_db):
            if part.layer in done or len(done) == LAYERS:
                continue
            bits = widest(target, part.kind)
            if bits <= part.bits:
                continue
            done.add(part.layer)
            now = self.remedy.get("overrides", self.bench.session.options.overrides)
            assert isinstance(now, Mapping)
            change = {part.layer: {f"{part.kind}_bits": bits}}
            yield f"{bits} bits for the {part.kind} of {part.layer}", {"overrides": changed_overrides(now, change)}

    def _remains(self) -> None:
        if self._is_met():
            answer = "nothing: the score is within the allowed drop"
        else:
            answer = "a larger loss than allowed. Train with qcompiler.prepare_qat, or use wider numbers"
        self.steps.append(Step("what remains?", answer, self.score))
