"""`analyze`: where a quantized model loses accuracy, why, and which keywords of `compile` help."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qcompiler.analysis import causes
from qcompiler.analysis.budget import Budget
from qcompiler.analysis.diagnose import Flow
from qcompiler.analysis.diagnosis import Diagnosis
from qcompiler.analysis.evaluation import Seen, bypassed_model, first_samples, float_model, partial_model, scored
from qcompiler.analysis.findings import Analysis, Cause, Finding
from qcompiler.analysis.parts import Table, table
from qcompiler.analysis.remedies import Bench, remedied
from qcompiler.analysis.requests import check_count, load_float
from qcompiler.analysis.work import digest_of, work_journal
from qcompiler.calibration.journal import Journal
from qcompiler.calibration.store import DEFAULT_MEMORY
from qcompiler.ir import tree
from qcompiler.ir.graph import Graph
from qcompiler.ir.interpret import interpret
from qcompiler.ir.settings import own_defaults
from qcompiler.ir.types import Stage
from qcompiler.passes.base import Override
from qcompiler.session.batches import Forward
from qcompiler.session.options import Effort, Options
from qcompiler.session.progress import Steps, steps
from qcompiler.session.session import Session
from qcompiler.session.source import Model
from qcompiler.targets import Target
from qcompiler.targets.loader import load_hardware
from qcompiler.validation.partial import PartialRuns, noise_decibels, relative_noise

__all__ = ["analyze"]

SAMPLES = 32
"""Samples on which parts are measured."""
BUDGET = 24
"""Models that are scored exactly by default."""
GOOD_DB = 25.0
"""Signal-to-noise ratio of the outputs above which, without `evaluate`, no cause is searched."""
SAME = 0.005
"""Share of the float score that may be lost before causes are searched."""
FINDINGS = 6
"""Largest number of findings with a measured remedy."""


@own_defaults()
def analyze(
    model: Model,
    target: str | Path | Target = "int8_dsp",
    calibration_data: Iterable[object] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    *,
    example_inputs: object = None,
    fixed_inputs: Mapping[str, object] | None = None,
    forward: Forward | None = None,
    effort: Effort = "default",
    overrides: Mapping[str, Override] | None = None,
    samples: int = SAMPLES,
    budget: int | str | Budget = BUDGET,
    work: str | Path | None = None,
    seed: int = 0,
    memory: int = DEFAULT_MEMORY,
    device: torch.device | str | None = None,
) -> Analysis:
    """Find the layers that lose accuracy through quantization, the causes, and remedies.

    The model is captured once and quantized once per remedy; nothing is emitted. Each weight and each activation is
    quantized alone, and left in float alone, on some samples of the calibration data; only what follows it is computed
    again. Each finding names a layer and a cause; its remedy holds keywords for `compile` that were tried: the gain is
    that of the exact simulation.

    Args:
        model: As for `compile`.
        target: As for `compile`.
        calibration_data: As for `compile`, and required.
        evaluate: Function that returns a score of its argument, larger is better. The argument is called like the
            model. None: the score is the signal-to-noise ratio of the outputs against the float model, dB.
        example_inputs: As for `compile`.
        fixed_inputs: Inputs of an ONNX file that become constants; see `compile`.
        forward: As for `compile`.
        effort: Effort of the analyzed compile.
        overrides: Widths of the analyzed compile.
        samples: Number of samples on which parts are measured.
        budget: Number of quantized models that are scored, or wall-clock time such as `"20 min"` after which no further
            model is scored. With the same number two calls give the same result.
        work: Folder for finished measurements. After an interruption, the same call goes on from there; a call with
            other arguments uses those that are still right. Only you remove it.
        seed: As for `compile`.
        memory: Memory for activations in MiB; with less, samples are measured in turns.
        device: As for `compile`.

    Raises:
        InputError: An argument is out of range, there is no data, or `evaluate` returns no number.
        UnsupportedError: The target is for simulation only, or the model was prepared for training.
        ArtifactError: The work folder holds anything else, or cannot be written.
        QCompilerError: The model cannot be compiled; see `compile`.
    """
    check_count("samples", samples)
    limit = Budget.of(budget)
    journal = work_journal(work)
    hardware = load_hardware(target)
    options = Options(
        example_inputs=example_inputs,
        fixed_inputs=fixed_inputs,
        calibration_data=calibration_data,
        forward=forward,
        effort=effort,
        overrides=overrides or {},
        seed=seed,
        memory=memory,
        device=device,
    )
    source = load_float("analyze", model, options)
    passes = options.deployment_passes(hardware)
    with steps(len(passes) + 4) as progress:
        session = Session(source, hardware, options, passes, journal=journal, progress=progress)
        return _Run(session, evaluate, samples, limit, progress).result()


class _Run:
    """One analysis."""

    def __init__(
        self,
        session: Session,
        evaluate: Callable[[nn.Module], float] | None,
        samples: int,
        budget: Budget,
        progress: Steps,
    ) -> None:
        self.session, self.evaluate, self.budget, self.progress = session, evaluate, budget, progress
        captured = session.captured.module.main
        batches = session.context.calibration_data
        assert batches is not None
        self.samples = first_samples(captured, batches, samples)
        with torch.no_grad():
            self.wanted = interpret(captured, self.samples, captured.module.tensors)[0]
        self.seen = Seen()
        self.whole = math.inf if evaluate is None else scored(evaluate, float_model(captured, self.seen))
        journal = session.context.journal
        self.bench = Bench(session, self.samples, self.wanted, evaluate, budget, journal, self._key(journal, batches))

    def _key(self, journal: Journal, batches: Iterable[Sequence[Tensor]]) -> str:
        """Key of all scores; the score of the float model tells a changed evaluation."""
        if journal.folder is None:
            return ""
        session, data = self.session, (digest_of(batches), digest_of([self.samples]), digest_of(self.seen.batches))
        options = session.options
        settings = (options.effort, repr(sorted(options.overrides.items())), str(options.seed), str(options.memory))
        parts = (session.target.digest(), *data, *settings, self.whole.hex())
        return journal.key(session.captured.module, "analysis", *parts)

    def result(self) -> Analysis:
        session = self.session
        canonical, graph = session.canonical.module.main, session.quantized.module.main
        assert canonical.stage is Stage.CANONICAL
        context = session.context
        found = table(
            canonical, graph, self.samples, self.wanted, session.options.memory, context.journal, context.progress
        )
        self.progress.finished("parts")
        now, divergence = self.bench.quantized()
        scores = self._scores(now, graph, found)
        self.progress.finished("scores")
        findings = self._findings(canonical, graph, found, now)
        self.progress.finished("remedies")
        return Analysis(
            session.captured.name,
            session.target.name,
            "SQNR" if self.evaluate is None else "evaluate",
            scores,
            found.parts,
            tuple(findings),
            len(self.samples[0]) if self.samples[0].dim() else 1,
            self.bench.count,
            tuple(map(str, session.captured.diagnostics)),
            dict(self.progress.seconds),
            lambda allowed_drop: self._walk(found, scores, allowed_drop),
            {} if divergence is None else {**found.divergences, "quantized": divergence},
        )

    def _walk(self, found: Table, scores: Mapping[str, float], allowed_drop: float) -> Diagnosis:
        """The debugging flow on the models of this analysis; see `Analysis.diagnose`."""
        runs = PartialRuns(self.session.quantized.module.main, self.samples, found.fused)
        if self.evaluate is None:
            enough = GOOD_DB
            with torch.no_grad():
                bypassed = noise_decibels(relative_noise(self.wanted, runs(found.tensors)))
        else:
            enough = scores["float"] - allowed_drop * abs(scores["float"])
            model, evaluate = bypassed_model(runs.graph, found.fused, found.tensors), self.evaluate
            (bypassed,) = self.bench.recorded("bypassed", lambda: [scored(evaluate, model)])
        self.bench.begin(self.budget)
        with own_defaults():
            return Flow(self.bench, scores, bypassed, found.parts, enough).result()

    def _scores(self, now: float, graph: Graph, found: Table) -> dict[str, float]:
        """Scores of the float model, of weights and activations alone, and of the exact simulation."""
        if self.evaluate is None:
            return {"weights only": found.weights_db, "activations only": found.activations_db, "quantized": now}
        evaluate, partial = self.evaluate, {}
        for name, weights in (("weights only", True), ("activations only", False)):
            model = partial_model(graph, found.fused, found.tensors, weights=weights)
            (partial[name],) = self.bench.recorded(name, lambda model=model: [scored(evaluate, model)])  # type: ignore[misc]
        return {"float": self.whole, **partial, "quantized": now}

    def _findings(self, canonical: Graph, graph: Graph, found: Table, now: float) -> list[Finding]:
        """Findings about the data first, then those about parts, the largest noise first."""
        whole = self.whole
        captured = self.session.captured.module.main
        about_data, data = self._about_data(captured)
        lost = now < GOOD_DB if self.evaluate is None else whole - now > SAME * abs(whole)
        suspects = list(about_data)
        if not about_data:  # other measurements say nothing if the data is wrong
            found_suspects = causes.suspects(captured, canonical, graph, found, self.samples)
            suspects = found_suspects if lost else [item for item in found_suspects if item.cause is Cause.CONCAT]
        findings = [remedied(self.bench, item, now, whole, data) for item in suspects[:FINDINGS]]
        return [item for item in findings if item.remedy or item.cause is not Cause.ROUNDING]

    def _about_data(self, captured: Graph) -> tuple[Sequence[causes.Suspect], object]:
        """Suspects whose numbers make all other measurements worthless, and data that replaces wrong data."""
        untrained = causes.untrained(captured)
        if untrained is not None:
            return (untrained,), None
        unlike = causes.unlike_inputs(captured, self.samples, self.seen.batches)
        if unlike is not None:
            return (unlike,), [self._as_arguments(captured, batch) for batch in self.seen.batches]
        unlike = None if self.seen.batches else causes.unlike_batch_norm(captured, self.samples)
        return ((unlike,) if unlike is not None else ()), None

    def _as_arguments(self, captured: Graph, batch: Sequence[Tensor]) -> object:
        """A batch of flat inputs as the arguments of the model."""
        arguments = tree.unflatten(captured.input_tree, batch)
        return arguments[0] if isinstance(arguments, tuple) and len(arguments) == 1 else arguments
