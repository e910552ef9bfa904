"""A session: one model and the stages of its compilation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from qcompiler.artifact.artifact import Artifact
from qcompiler.calibration.journal import Journal
from qcompiler.calibration.processes import Processes
from qcompiler.errors import PipelineError
from qcompiler.frontends import Subject
from qcompiler.ir.graph import Module
from qcompiler.ir.interpret import interpret
from qcompiler.ir.types import Stage
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.manager import Between
from qcompiler.session.emission import emit
from qcompiler.session.options import Options
from qcompiler.session.progress import Steps
from qcompiler.session.source import capture_model, captured_training
from qcompiler.session.stages import Captured, State
from qcompiler.targets import Target
from qcompiler.training.module import QATModule
from qcompiler.verification.deployed import Trial
from qcompiler.verification.inputs import input_diagnostics
from qcompiler.verification.report import Report, not_verified

__all__ = ["Session"]


class Session:
    """A model, its target and options, and the stages that lead to an artifact.

        source + target + options -> captured -> canonical -> quantized -> integer -> artifact

    Each stage is computed from the previous stage on first access and cached; each pass runs once. `with_passes` gives
    a session on the same capture. It also shares the canonical stage if target, overrides, encodings and the passes up
    to that stage are equal.

    Args:
        source: Model, or the module of `prepare_qat`.
        target: Hardware target.
        options: All other settings of the caller.
        passes: All passes, in order; their order is checked before the first pass runs.
        group: Processes that share the work.
        journal: Saved progress of long passes.
        progress: Progress display, updated after each step.
        between: Callback between passes; see `PassManager`.
    """

    def __init__(
        self,
        source: Subject,
        target: Target,
        options: Options,
        passes: Sequence[Pass],
        *,
        group: Processes | None = None,
        journal: Journal | None = None,
        progress: Steps | None = None,
        between: Between | None = None,
    ) -> None:
        self.source, self.target, self.options, self.passes = source, target, options, tuple(passes)
        self.progress = progress or Steps(0, None)
        self._between = between
        given = options.encodings
        self.context = PassContext(
            target,
            overrides={**dict.fromkeys(given.excluded if given else (), "float"), **options.overrides},
            encodings=given,
            seed=options.seed,
            memory=options.memory,
            processes=group or Processes(),
            journal=journal or Journal(),
            progress=self.progress.within,
        )

    @cached_property
    def captured(self) -> Captured:
        """The captured graph, usually at stage FLOAT; its samples and calibration data are then in `context`."""
        if isinstance(self.source, QATModule):
            found = captured_training(self.source, self.context)
        else:
            found = capture_model(self.source, self.options, self.context)
        self.progress.finished("capture")
        return found

    @cached_property
    def canonical(self) -> State:
        """The state before the first pass that makes the graph QUANTIZED."""
        captured = self.captured
        start = State(captured.module, captured.records, self.context.generator.get_state())
        return self._advanced(start, 0, self._borders[0])

    @cached_property
    def quantized(self) -> State:
        """The calibrated state, evaluated by `simulate`: before the first pass that makes the graph INTEGER."""
        self._check_end(Stage.QUANTIZED, "insert-quantizers")
        return self._advanced(self.canonical, *self._borders)

    @cached_property
    def integer(self) -> State:
        """The state after all passes: the graph that back ends emit."""
        self._check_end(Stage.INTEGER, "lower-to-integer")
        return self._advanced(self.quantized, self._borders[1], len(self.passes))

    def artifact(self, report: Report | None = None) -> Artifact:
        """The files of all forms.

        Args:
            report: Report on the comparison of the forms; None if they are not compared.
        """
        build = self._build
        if report is not None:
            return build(report.to_dict(), [report.summary(self.target.name), *report.diagnostics])
        summary = not_verified(self.target.name)
        found = build(None, [summary])
        given = self.captured.trial
        inputs = input_diagnostics(found.program.program, [x.cpu() for x in given]) if given else ()
        return build(None, [summary, *inputs])

    @cached_property
    def _build(self) -> Callable[..., Artifact]:
        integer = self.integer  # first, so that passes which end early are refused before one runs
        found = emit(
            self.captured,
            self.canonical,
            self.quantized,
            integer,
            passes=self.passes,
            target=self.target,
            samples=self.samples,
            overrides=self.options.overrides,
            batches=self.context.calibration_data,
            seed=self.options.seed,
        )
        self.progress.finished("emit")
        return found

    @property
    def samples(self) -> list[Tensor]:
        """The flat inputs on which contracts are validated and forms are compared, on the CPU."""
        _ = self.captured
        return [x.cpu() for x in self.context.samples[0]]

    @property
    def trial(self) -> Trial:
        """The inputs and float outputs on which forms are run as their users run them."""
        captured = self.captured
        inputs = [x.cpu() for x in captured.trial] or self.samples
        wanted = None
        if captured.module.main.stage is not Stage.QUANTIZED:
            with torch.no_grad():
                outputs, _ = interpret(captured.module.main, inputs, captured.module.tensors)
            wanted = [x.detach() for x in outputs]
        return Trial(inputs, wanted, real=bool(captured.trial))

    def with_passes(
        self, passes: Sequence[Pass], *, target: Target | None = None, options: Options | None = None
    ) -> Session:
        """A session on the same captured model with other passes, and with another target or other overrides.

        Args:
            passes: All passes, in order.
            target: The hardware; None: as before.
            options: Options whose model, inputs, data, seed and device are those of this session; None: as before.
        """
        changed = Session(
            self.source,
            target or self.target,
            options or self.options,
            passes,
            group=self.context.processes,
            journal=self.context.journal,
        )
        changed.captured = self.captured  # which has put samples and data into the context
        changed.context.samples, changed.context.calibration_data = self.context.samples, self.context.calibration_data
        same = (self.target, self.context.overrides, self.context.encodings)
        shared = same == (changed.target, changed.context.overrides, changed.context.encodings)
        front = self.passes[: self._borders[0]]
        if shared and "canonical" in vars(self) and front == changed.passes[: changed._borders[0]]:
            changed.canonical = self.canonical
        return changed

    @cached_property
    def _manager(self) -> PassManager:
        """All passes, whose order is checked before the first one runs."""
        manager = PassManager(self.passes, self.captured.facts, self._after_each)
        manager.check_order(self.captured.module.main.stage)
        return manager

    @cached_property
    def _borders(self) -> tuple[int, int]:
        """Positions of the first pass that makes the graph QUANTIZED, and of the first that makes it INTEGER."""
        kinds = [item.becomes for item in self.passes]
        lowering = kinds.index(Stage.INTEGER) if Stage.INTEGER in kinds else len(kinds)
        if self.captured.module.main.stage is Stage.QUANTIZED:
            return 0, lowering
        quantizing = kinds.index(Stage.QUANTIZED) if Stage.QUANTIZED in kinds else lowering
        return quantizing, lowering

    def _advanced(self, state: State, start: int, stop: int) -> State:
        """`state` after the passes from position `start` to before `stop`, which run on a copy."""
        if start == stop:
            return state
        module = state.module.clone()
        self.context.generator.set_state(state.generator)
        records = self._manager.run_part(module, self.context, start, stop)
        return State(module, (*state.records, *records), self.context.generator.get_state())

    def _after_each(self, before: Pass | None, module: Module, after: Pass | None) -> None:
        if before is not None:
            self.progress.finished(before.name)
        if self._between is not None:
            self._between(before, module, after)

    def _check_end(self, stage: Stage, name: str) -> None:
        """Refuse passes that never make the graph `stage`, before the first one runs.

        Raises:
            PipelineError: No pass reaches `stage`; the message names the missing pass `name`.
        """
        stages = [self.captured.module.main.stage]
        stages += [item.becomes for item in self._manager.passes if item.becomes is not None]
        if stage not in stages:
            raise PipelineError(f"the pipeline ends at stage {stages[-1]}", fix=f"Add {name} to the pipeline.")
