"""From causes to keywords of `compile`, each measured: a remedy costs a quantization, not a compile."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qcompiler.analysis.budget import Budget
from qcompiler.analysis.causes import Suspect
from qcompiler.analysis.divergence import is_classifier, summed_divergence
from qcompiler.analysis.evaluation import exact_model, scored
from qcompiler.analysis.findings import Cause, Finding
from qcompiler.calibration.journal import Journal
from qcompiler.errors import QCompilerError
from qcompiler.passes.base import Override
from qcompiler.session.session import Session
from qcompiler.targets import Target
from qcompiler.validation.partial import noise_decibels, relative_noise

__all__ = ["EFFORTS", "Bench", "changed_overrides", "per_channel_target", "remedied", "widest"]

Remedy = Mapping[str, object]
NEAR = 0.02
"""Share of the gain that a cheaper remedy may lack."""
EFFORTS = ("fast", "default", "best")
ENOUGH_DB = 20.0
"""Gain in dB after which the most expensive remedy is not tried."""
ENOUGH = 0.1
"""Share of the lost score that may remain before the most expensive remedy is tried."""


@dataclass
class Bench:
    """Quantizes one captured model in many ways and scores each.

    Args:
        session: The analyzed session; its captured model is shared.
        samples: Flat inputs, used without `evaluate`.
        wanted: Outputs of the float model for them.
        evaluate: Function of the caller; None: the signal-to-noise ratio of the outputs in dB is the score.
        budget: Budget of scored models.
        journal: Finished measurements.
        key: Key of the measurements in the journal: all that decides about a score but for the remedy.
    """

    session: Session
    samples: Sequence[Tensor]
    wanted: Sequence[Tensor]
    evaluate: Callable[[nn.Module], float] | None
    budget: Budget
    journal: Journal = field(default_factory=Journal)
    key: str = ""
    count: int = 0
    found: dict[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin(self.budget)

    def begin(self, budget: Budget) -> None:
        """Begin a budget: earlier models and earlier time no longer count."""
        self.budget, self._first, self._begun, self._earlier = budget, self.count, time.perf_counter(), 0.0

    @property
    def is_spent(self) -> bool:
        """Whether no further model may be scored."""
        return self.budget.is_spent(self.count - self._first, time.perf_counter() - self._begun + self._earlier)

    def recorded(self, name: str, measure: Callable[[], Sequence[float]]) -> list[float]:
        """Numbers from the journal, or measured. Time of an interrupted analysis counts.

        Args:
            name: Name of the measurement.
            measure: Function that measures; what it raises is not recorded.
        """
        measured: list[float] = []

        def piece() -> dict[str, Tensor]:
            begun = time.perf_counter()
            numbers = torch.tensor(list(measure()), dtype=torch.float64)
            measured.append(time.perf_counter() - begun)
            return {"numbers": numbers, "seconds": torch.tensor(measured, dtype=torch.float64)}

        found = self.journal.piece(self.key, name, piece)
        if not measured:
            self._earlier += float(found["seconds"])
        return [float(number) for number in found["numbers"]]

    def quantized(self) -> tuple[float, float | None]:
        """The score of the analyzed model, and without `evaluate` the divergence of the outputs of a classifier."""
        score, *divergence = self.recorded("quantized", lambda: self._numbers(self.session))
        self.count += 1
        return score, divergence[0] if divergence else None

    def _numbers(self, session: Session) -> list[float]:
        """The score of a session's exact simulation, and the divergence of its outputs, nats per sample."""
        model = exact_model(session.quantized.module.main, session.target.arithmetic)
        if self.evaluate is not None:
            return [scored(self.evaluate, model)]
        with torch.no_grad():
            outputs = [x for x in model.run(list(self.samples)) if isinstance(x, Tensor)]
        score = noise_decibels(relative_noise(self.wanted, outputs))
        if not is_classifier(self.wanted):
            return [score]
        return [score, summed_divergence(self.wanted[0], outputs[0]) / len(outputs[0])]

    def try_remedy(self, remedy: Remedy) -> float | None:
        """The score with a remedy; None if it is refused or the budget is spent."""
        key = repr(sorted((name, _key(value)) for name, value in remedy.items()))
        if key not in self.found:
            if self.is_spent:
                return None

            def measure() -> list[float]:
                with contextlib.suppress(QCompilerError):
                    changed = self.changed(remedy)
                    numbers = self._numbers(changed)
                    _ = changed.integer  # accumulators and biases must fit, too
                    return numbers
                return []

            numbers = self.recorded(f"remedy\n{key}", measure)
            self.count += 1
            self.found[key] = numbers[0] if numbers else None
        return self.found[key]

    def changed(self, remedy: Remedy) -> Session:
        """The session of a compile with a remedy."""
        options, target = self.session.options, self.session.target
        fields = {name: value for name, value in remedy.items() if name != "target"}
        chosen = remedy.get("target")
        if isinstance(chosen, Target):
            target = chosen
        options = dataclasses.replace(options, **fields)  # type: ignore[arg-type]
        passes = options.deployment_passes(target)
        if "calibration_data" in fields:
            return Session(self.session.source, target, options, passes)
        return self.session.with_passes(passes, target=target, options=options)


def _key(value: object) -> object:
    """Text that is the same in each process: data that replaces the given data is that which `evaluate` used."""
    if isinstance(value, Target):
        return value.digest()
    return value if value is None or isinstance(value, str | int | dict) else "data of evaluate"


def remedied(bench: Bench, suspect: Suspect, now: float, whole: float, data: object) -> Finding:
    """A finding with the best remedy for a suspect.

    Args:
        bench: Scores quantized models.
        suspect: The cause.
        now: Score of the analyzed model.
        whole: Score of the float model.
        data: Calibration data for a suspect whose data is wrong; None for ranges from batch norms.
    """
    tried: list[tuple[float, Remedy]] = []
    for remedy in _candidates(bench.session, suspect, data):
        if remedy.get("effort") == "best" and any(_is_enough(score, now, whole) for score, _ in tried):
            continue
        score = bench.try_remedy(remedy)
        if score is not None:
            tried.append((score, remedy))
    best = max((score for score, _ in tried), default=-math.inf)
    if not best > now:
        return _finding(suspect, {}, 0.0, bool(tried))
    score, remedy = next(item for item in tried if item[0] >= best - NEAR * (best - now))
    return _finding(suspect, remedy, score - now, True)


def _finding(suspect: Suspect, remedy: Remedy, gain: float, measured: bool) -> Finding:
    return Finding(
        suspect.layer,
        suspect.cause,
        remedy,
        gain,
        measured,
        suspect.evidence,
        suspect.layers,
        suspect.noise if math.isfinite(suspect.noise) else 1.0,
    )


def _is_enough(score: float, now: float, whole: float) -> bool:
    if math.isinf(whole):
        return score >= now + ENOUGH_DB
    return score >= whole - ENOUGH * max(whole - now, 0.0)


def _candidates(session: Session, suspect: Suspect, data: object) -> Iterator[Remedy]:
    """Keywords that may help, the cheapest first."""
    if suspect.cause is Cause.UNTRAINED:
        return
    if suspect.cause is Cause.PREPROCESSING:
        yield {"calibration_data": data}
        return
    target, overrides = session.target, session.options.overrides
    wider = _wider(target, suspect)
    per_channel = per_channel_target(target) if suspect.per_channel else None
    for change in wider:
        yield {"overrides": changed_overrides(overrides, change)}
    if per_channel is not None:
        yield {"target": per_channel}
        yield from ({"target": per_channel, "overrides": changed_overrides(overrides, change)} for change in wider[-1:])
    if suspect.cause is Cause.RESIDUAL:
        for wide in _whole(per_channel or target):
            yield {"target": wide}
    has_data = session.options.has_data
    for effort in EFFORTS[EFFORTS.index(session.options.effort) + 1 :]:
        if effort != "best" or has_data:
            yield {"effort": effort}


def changed_overrides(overrides: Mapping[str, Override], change: Mapping[str, Override]) -> dict[str, Override]:
    """Overrides with a change, which comes last, because later patterns win."""
    return {**{name: value for name, value in overrides.items() if name not in change}, **change}


def _wider(target: Target, suspect: Suspect) -> list[dict[str, Override]]:
    """Overrides that give the operators of a suspect more bits, one operator first."""
    found: list[dict[str, Override]] = []
    if suspect.cause is Cause.FEW_BITS:
        weight = widest(target, "weight")
        found += [{name: {"weight_bits": weight} for name in suspect.weigh}] if suspect.weigh else []
        both = {"activation_bits": max(target.activation_bits, 8), "weight_bits": weight}
        found.append(dict.fromkeys(suspect.layers[:1], both))
    bits = widest(target, "activation")
    if suspect.widen and bits > target.activation_bits:
        found.append({suspect.widen[0]: {"activation_bits": bits}})
        if len(suspect.widen) > 1:
            found.append({name: {"activation_bits": bits} for name in suspect.widen})
    return found


def widest(target: Target, role: str) -> int:
    """The largest width of activations or weights."""
    numbers = target.descriptor
    if role == "activation":
        names = (numbers.defaults.activation, *numbers.defaults.other_activations)
    else:
        names = (numbers.defaults.weight, *numbers.defaults.other_weights)
    return max(width for name in names for width in numbers.dtypes[name].widths)


def per_channel_target(target: Target) -> Target | None:
    """The target with a scale per channel of a weight, if its hardware can have that."""
    if target.per_channel or not target.descriptor.requantize.per_channel:
        return None
    with contextlib.suppress(QCompilerError):
        return target.override(per_channel=True)
    return None


def _whole(target: Target) -> Iterator[Target]:
    """The target with its widest activations."""
    bits = widest(target, "activation")
    if bits > target.activation_bits:
        with contextlib.suppress(QCompilerError):
            yield target.override(activation_bits=bits)
