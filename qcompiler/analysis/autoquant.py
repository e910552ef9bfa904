"""`autoquant`: search for the cheapest way to quantize a model within an allowed drop of its score.

    for hardware of rising cost:           given target ─► scale per channel ─► more bits for some layers ─► for all
        for techniques of rising cost:     ranges ─► equalization ─► biases ─► smoothing ─► adaptive rounding
            score the integer program, keep what helps, stop within the allowed drop

Techniques that won nothing on the given target are tried on other hardware only after everything else. A candidate
whose graph equals that of an earlier one has its score without an evaluation.

Source: AIMET's AutoQuant (cheap methods first, the best one so far is kept); the rest is of this compiler.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qcompiler.analysis.budget import Budget
from qcompiler.analysis.evaluation import Seen, exact_model, float_model, partial_model, scored
from qcompiler.analysis.expected_widths import without_quantizers, worst_layers
from qcompiler.analysis.requests import load_float
from qcompiler.analysis.search import Search, Tried, call_text
from qcompiler.analysis.search_space import (
    ROUNDING,
    TECHNIQUES,
    Candidate,
    Hardware,
    given_hardware,
    wider_targets,
    with_layers,
)
from qcompiler.analysis.work import digest_of
from qcompiler.artifact.artifact import Artifact
from qcompiler.calibration.journal import Journal
from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.errors import ArtifactError, InputError, QCompilerError
from qcompiler.ir.hashing import module_hash
from qcompiler.ir.settings import own_defaults
from qcompiler.passes.base import Override
from qcompiler.session.batches import Forward
from qcompiler.session.compile import Compiled, compile_session
from qcompiler.session.options import Options
from qcompiler.session.pipeline import Io
from qcompiler.session.progress import Steps, steps
from qcompiler.session.session import Session
from qcompiler.session.source import Model
from qcompiler.storage.destination import Destination
from qcompiler.targets import Target
from qcompiler.targets.loader import load_hardware

__all__ = ["autoquant"]

BUDGET = 40
"""Quantized models that are scored by default."""
LEAST = 0.05
"""Share of the missing score that a technique has to win back to be kept for the following candidates."""


@own_defaults()
def autoquant(
    model: Model,
    target: str | Path | Target,
    calibration_data: Iterable[object],
    evaluate: Callable[[nn.Module], float],
    allowed_drop: float = 0.01,
    *,
    budget: int | str | Budget = BUDGET,
    output: str | Path | None = None,
    example_inputs: object = None,
    fixed_inputs: Mapping[str, object] | None = None,
    forward: Forward | None = None,
    overrides: Mapping[str, Override] | None = None,
    io: Io = "float",
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    device: torch.device | str | None = None,
) -> Search:
    """Search for the cheapest way to quantize a model within an allowed drop of its score.

    Candidates differ in ranges, equalization, absorbed biases, bias correction, smoothing, rounding, granularity of
    weight scales and widths, as far as the target allows. Cheap ones come first, and the search ends with the first
    one whose score is within the allowed drop. Each score is that of the integer program. The best candidate so far is
    compiled and verified, and with `output` written. A candidate that fails is recorded in `tried`. The search runs in
    one process.

    Args:
        model: As for `compile`.
        target: As for `compile`.
        calibration_data: As for `compile`.
        evaluate: Function that returns a score of its argument, larger is better. The argument is called like the
            model. It must return the same score for the same model.
        allowed_drop: Share of the float score that may be lost, from 0 to below 1.
        budget: Number of evaluations, or wall-clock time such as `"20 min"`. Two searches with the same number of
            evaluations end alike. When time is up no candidate begins, but a running one is completed.
        output: Folder for the artifact of the best candidate so far. Finished candidates are recorded in
            `<output>.work`; after an interruption, the same call goes on from there.
        example_inputs: As for `compile`.
        fixed_inputs: Inputs of an ONNX file that become constants; see `compile`.
        forward: As for `compile`.
        overrides: As for `compile`; they hold for all candidates.
        io: As for `compile`.
        seed: As for `compile`.
        memory: As for `compile`.
        device: As for `compile`.

    Raises:
        InputError: An argument is out of range, there is no data, or `evaluate` returns no number.
        UnsupportedError: The target is for simulation only, or the model was prepared for training.
        ArtifactError: The output is refused or cannot be written.
        QCompilerError: The model cannot be captured, or no candidate can be compiled; see `compile`.
    """
    limit = Budget.of(budget)
    _check(evaluate, allowed_drop)
    hardware = load_hardware(target)
    options = Options(
        example_inputs=example_inputs,
        fixed_inputs=fixed_inputs,
        calibration_data=calibration_data,
        forward=forward,
        overrides=overrides or {},
        io=io,
        seed=seed,
        memory=memory,
        device=device,
    )
    source = load_float("autoquant", model, options)
    destination = None if output is None else Artifact.destination(output)
    text = f'qcompiler.load_target("{target}")' if isinstance(target, str | Path) else "target"
    with contextlib.ExitStack() as stack:
        if destination is not None:
            stack.enter_context(destination)
        progress = stack.enter_context(steps(limit.evaluations or BUDGET))
        journal = Journal(None if destination is None else destination.finished)
        session = Session(source, hardware, options, options.deployment_passes(hardware), journal=journal)
        try:
            found = _Run(session, evaluate, allowed_drop, limit, destination, text, progress).result()
        except ArtifactError:
            raise  # A disk problem: repeating the same call goes on from the records.
        except QCompilerError:
            if destination is not None:
                destination.discard_finished()
            raise
        if destination is not None:
            destination.discard_finished()
    return found


def _check(evaluate: object, allowed_drop: object) -> None:
    """Refuse arguments that no search can use."""
    if not callable(evaluate):
        raise InputError(
            f"evaluate is {evaluate!r}", expected="a function of the model that returns a score, larger is better"
        )
    if isinstance(allowed_drop, bool) or not isinstance(allowed_drop, int | float) or not 0.0 <= allowed_drop < 1.0:
        raise InputError(f"allowed_drop is {allowed_drop!r}", expected="a share of the float score, 0 to below 1")


@dataclass(frozen=True)
class _Best:
    """The best candidate so far: its place among the tried ones, and its artifact unless an earlier call made it."""

    candidate: Candidate
    score: float
    compiled: Compiled | None


class _Run:
    """One search."""

    def __init__(
        self,
        session: Session,
        evaluate: Callable[[nn.Module], float],
        allowed_drop: float,
        budget: Budget,
        destination: Destination | None,
        target: str,
        progress: Steps,
    ) -> None:
        self.session, self.evaluate, self.budget, self.progress = session, evaluate, budget, progress
        self.destination, self.target = destination, target
        self.journal = session.context.journal
        self.begun = time.perf_counter()
        self.earlier = 0.0  # seconds of recorded candidates
        self.tried: dict[str, Tried] = {}
        self.programs: dict[tuple[str, str], Tried] = {}
        self.best: _Best | None = None
        self.evaluations = 0
        self.whole = scored(evaluate, float_model(session.captured.module.main, Seen()))
        self.wanted = self.whole - allowed_drop * abs(self.whole)
        self.key = self._key()

    def result(self) -> Search:
        """Search, and put the result together."""
        reason = self._searched()
        best = self.best
        if best is None:
            raise self._failure()
        compiled = best.compiled or self._compiled(self._session(best.candidate))
        keywords = best.candidate.keywords(self.session.options, self.target)
        missed = best.score < self.wanted
        return Search(
            compiled,
            tuple(self.tried.values()),
            call_text("qcompiler.compile", self._whole_keywords(keywords)),
            best.score,
            self.whole,
            self.wanted,
            self.evaluations,
            reason,
            self._parts(best.candidate) if missed else {},
            self._training(best.candidate) if missed else "",
            time.perf_counter() - self.begun,
        )

    def _searched(self) -> str:
        """Try candidates until one is good enough or the budget is spent.

        Returns:
            The reason of the end.
        """
        for candidate in self._candidates():
            key = candidate.key(self.session.options)
            if key in self.tried:
                continue
            if self.tried and self.budget.is_spent(self.evaluations, time.perf_counter() - self.begun + self.earlier):
                return f"The budget ({self.budget}) is spent."
            self._try(candidate, key)
            if self.best is not None and self.best.score >= self.wanted:
                return "The cheaper candidates are not within the drop." if len(self.tried) > 1 else ""
        return "No candidate that the target allows is within the drop."

    def _candidates(self) -> Iterator[Candidate]:
        """The candidates; each depends on the scores of those before it."""
        kept: tuple[str, ...] = ()
        useless: set[str] = set()
        ends: list[Candidate] = []
        for number, hardware in enumerate(self._hardware(ends)):
            current = Candidate(hardware)
            yield current
            if kept:
                following = Candidate(hardware, kept)
                yield following
                current = following if self._score(following) > self._score(current) else current
            for name in TECHNIQUES:
                if name in current.techniques or (name in useless and name != ROUNDING):
                    continue
                following = current.with_technique(name)
                yield following
                if self._helps(following, current):
                    current = following
                elif not number:
                    useless.add(name)
            kept = current.techniques or kept
            ends.append(current)
        for current in sorted(ends, key=self._score, reverse=True):
            for name in TECHNIQUES:
                following = current.with_technique(name)
                yield following
                if self._helps(following, current):
                    current = following

    def _hardware(self, ends: list[Candidate]) -> Iterator[Hardware]:
        """Hardware of rising cost; `ends` holds the last candidate on each one so far."""
        options = self.session.options
        given = given_hardware(self.session.target, options.overrides)
        yield given
        finer = given.per_channel()
        if finer is not None:
            yield finer
        base = max(reversed(ends), key=self._score)
        if self._score(base) == -math.inf:
            return  # nothing could be compiled
        widths = worst_layers(self._session(base))
        if widths:
            yield with_layers(base.hardware, widths)
        for hardware in (given, finer) if finer is not None else (given,):
            yield from wider_targets(hardware)

    def _score(self, candidate: Candidate) -> float:
        found = self.tried.get(candidate.key(self.session.options))
        return -math.inf if found is None or found.score is None else found.score

    def _helps(self, candidate: Candidate, before: Candidate) -> bool:
        """Whether a candidate wins back a part of the score that is missing."""
        score, old = self._score(candidate), self._score(before)
        return score > old + LEAST * max(self.wanted - old, 0.0) if old > -math.inf else score > old

    def _try(self, candidate: Candidate, key: str) -> None:
        """Score a candidate; compile, verify and write it if it is the best so far."""
        session: list[Session] = []  # of this process; empty if the journal has the score

        def measure() -> dict[str, Tensor]:
            session.append(self._session(candidate))
            return self._measured(session[0])

        found = self.journal.piece(self.key, f"candidate\n{key}", measure)
        keywords = candidate.keywords(self.session.options, self.target)
        error, program = _text(found["error"]), (_text(found["program"]), candidate.hardware.target.digest())
        score = float(found["score"]) if not error else None
        same = self.programs.get(program) if score is not None else None
        tried = Tried(candidate.name, keywords, score, error, same.name if same else "", False, float(found["seconds"]))
        if not session:
            self.earlier += tried.seconds
        if score is not None and same is None:
            self.evaluations += 1
            self.programs[program] = tried
            if self.best is None or score > self.best.score:
                tried = self._improved(tried, candidate, key, score, session)
        self.tried[key] = tried
        self.progress.finished(candidate.name)

    def _measured(self, session: Session) -> dict[str, Tensor]:
        """Score, program and time of a candidate; the error if it fails."""
        begun = time.perf_counter()
        score, program, error = 0.0, "", ""
        try:
            graph = session.quantized.module.main
            program = module_hash(session.quantized.module)
            known = self.programs.get((program, session.target.digest()))
            _ = session.integer  # accumulators and biases must fit, too
            if known is not None and known.score is not None:
                score = known.score
            else:
                score = scored(self.evaluate, exact_model(graph, session.target.arithmetic))
        except ArtifactError:
            raise  # a problem of the disk is no property of the candidate
        except Exception as failure:  # noqa: BLE001  # a candidate that fails must not end the search
            error = _failed(failure)
        return {
            "score": torch.tensor(score, dtype=torch.float64),
            "seconds": torch.tensor(time.perf_counter() - begun, dtype=torch.float64),
            "program": _bytes(program),
            "error": _bytes(error),
        }

    def _improved(self, tried: Tried, candidate: Candidate, key: str, score: float, session: list[Session]) -> Tried:
        """Compile, verify and write a candidate with the best score; the journal knows whether it passed."""
        made: list[Compiled] = []

        def verified() -> dict[str, Tensor]:
            try:
                made.append(self._compiled(session[0] if session else self._session(candidate)))
            except ArtifactError:
                raise
            except Exception as failure:  # noqa: BLE001  # as above
                return {"error": _bytes(_failed(failure))}
            return {"error": _bytes("")}

        error = _text(self.journal.piece(self.key, f"verified\n{key}", verified)["error"])
        if error:
            return Tried(tried.name, tried.keywords, score, error, "", False, tried.seconds)
        self.best = _Best(candidate, score, made[0] if made else None)
        return Tried(tried.name, tried.keywords, score, "", "", True, tried.seconds)

    def _compiled(self, session: Session) -> Compiled:
        """A verified artifact, written if there is an output."""
        compiled = compile_session(session)
        if self.destination is not None:
            self.destination.replace(compiled.artifact.files())
        return compiled

    def _session(self, candidate: Candidate) -> Session:
        options = candidate.options(self.session.options)
        passes = options.deployment_passes(candidate.hardware.target)
        return self.session.with_passes(passes, target=candidate.hardware.target, options=options)

    def _key(self) -> str:
        """Key of the records: model, data, and the score of the float model, which tells a changed evaluation."""
        if self.journal.folder is None:
            return ""
        digest = digest_of(self.session.context.calibration_data or ())
        options = self.session.options
        settings = (str(options.seed), str(options.memory), options.io, self.whole.hex(), self.wanted.hex())
        return self.journal.key(self.session.captured.module, "autoquant", digest, *settings)

    def _failure(self) -> QCompilerError:
        """The error of the first candidate, as `compile` raises it."""
        try:
            session = self._session(Candidate(given_hardware(self.session.target, self.session.options.overrides)))
            _ = session.integer
            compile_session(session)
        except QCompilerError as error:
            return error
        first = next(iter(self.tried.values()))
        return InputError(f"no candidate could be scored: {first.error}", fix="Run evaluate on the float model.")

    def _whole_keywords(self, keywords: Mapping[str, str]) -> dict[str, str]:
        """Keywords of a candidate and those of the caller."""
        options = self.session.options
        found = {"target": keywords["target"], "calibration_data": "calibration_data"}
        given = ("example_inputs", "forward", "device")
        found.update({name: name for name in given if getattr(options, name) is not None})
        found.update({name: value for name, value in keywords.items() if name != "target"})
        if options.io != "float":
            found["io"] = repr(options.io)
        if options.seed:
            found["seed"] = str(options.seed)
        return found

    def _training(self, candidate: Candidate) -> str:
        """A call that trains with quantization, from the target and the widths of the best candidate."""
        keywords = self._whole_keywords(candidate.keywords(self.session.options, self.target))
        chosen = {name: value for name, value in keywords.items() if name not in ("effort", "pipeline", "io")}
        return f"qat = {call_text('qcompiler.prepare_qat', chosen)}\n# Train qat, then qcompiler.compile(qat)."

    def _parts(self, candidate: Candidate) -> dict[str, float]:
        """Scores of the best candidate with only weights and only activations quantized, as float fake quantization."""
        runs, tensors = without_quantizers(self._session(candidate))
        score = functools.partial(scored, self.evaluate)
        return {
            "weights only": score(partial_model(runs.graph, runs.fused, tensors, weights=True)),
            "activations only": score(partial_model(runs.graph, runs.fused, tensors, weights=False)),
        }


def _failed(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _text(tensor: Tensor) -> str:
    return bytes(tensor.tolist()).decode()
