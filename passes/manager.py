"""Runs passes in order and checks the contract that each declares.

The order is checked before anything runs and never changed. After each pass the structure is verified, the numbers are
validated against the contract of the pass on the sample batches, and a record says what the pass did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from qcompiler.errors import InputError, PipelineError, QCompilerError, TargetError, UnsupportedError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.interpret import interpret
from qcompiler.ir.snapshot import Snapshot
from qcompiler.ir.types import Stage
from qcompiler.ir.verify import verify_module
from qcompiler.passes.base import Pass, PassContext
from qcompiler.validation.contracts import IntegerMatch, check
from qcompiler.validation.exact import output_codes

Between = Callable[[Pass | None, Module, Pass | None], None]
"""Callback with the previous pass, the module and the next pass; None at the two ends."""


class PassManager:
    """A checked sequence of passes.

    Args:
        passes: The passes in the order in which they run.
        facts: Facts that hold before the first pass.
        between: Callback for progress, dumps and snapshots, called before the first pass, between two passes and after
            the last one: `between(before, module, after)`.

    Raises:
        PipelineError: One of `passes` is not a pass.
    """

    def __init__(self, passes: Sequence[Pass], facts: Iterable[str] = (), between: Between | None = None) -> None:
        self.passes = tuple(passes)
        self.facts = frozenset(facts)
        self.between = between
        self._outputs = _Outputs()
        for item in self.passes:
            if not isinstance(item, Pass):
                raise PipelineError(f"{item!r} is not a pass", expected="an instance of qcompiler.passes.Pass")

    def check_order(self, stage: Stage) -> None:
        """Check the stage and the facts that each pass needs, starting from `stage`.

        Raises:
            PipelineError: A precondition does not hold; the message names the passes that establish it.
        """
        facts = set(self.facts)
        for position, item in enumerate(self.passes):
            if stage not in item.stages:
                raise PipelineError(
                    f"{item.name} cannot run on a graph at stage {stage}",
                    where=f"position {position + 1} of {self.describe()}",
                    expected="stage " + " or ".join(s for s in Stage if s in item.stages),
                )
            missing = sorted(item.requires - facts)
            if missing:
                givers = [p.name for p in self.passes if missing[0] in p.establishes]
                hint = (
                    f"Run {' or '.join(givers)} before it." if givers else "No pass of this pipeline establishes that."
                )
                raise PipelineError(
                    f"{item.name} needs {', '.join(missing)}, which is not established before it",
                    where=f"position {position + 1} of {self.describe()}",
                    fix=hint,
                )
            facts = (facts - item.invalidates) | item.establishes
            stage = item.becomes or stage

    def describe(self) -> str:
        """The pipeline as text."""
        return ", ".join(map(str, self.passes))

    def run(self, module: Module, context: PassContext) -> list[Record]:
        """Run all passes on `module.main`.

        Returns:
            One record per pass.

        Raises:
            PipelineError: The order cannot work; nothing has run.
            GraphError: A pass left a graph that breaks an invariant.
            ContractError: A pass changed the numbers more than its contract allows.
        """
        self.check_order(module.main.stage)
        return self.run_part(module, context, 0, len(self.passes))

    def run_part(self, module: Module, context: PassContext, start: int, stop: int) -> list[Record]:
        """Run the passes from position `start` to before `stop`, on a module after all earlier passes.

        The order is not checked; `check_order` checks the whole sequence.

        Returns:
            One record per pass that ran.

        Raises:
            GraphError: A pass left a graph that breaks an invariant.
            ContractError: A pass changed the numbers more than its contract allows.
        """
        records: list[Record] = []
        outputs = self._outputs
        if outputs.changed(module, context):
            verify_module(module)
        before = outputs(module.main, context)
        if start == 0:
            self._call_between(0, module)
        for position, item in enumerate(self.passes[start:stop], start):
            record = context.record = Record(item.name)
            if item.prepare(module.main, context) and outputs.changed(module, context):
                before = outputs(module.main, context)
            validated = _codes if isinstance(item.contract, IntegerMatch) else outputs
            if validated is _codes:
                before = _codes(module.main, context)
            try:
                item.run(module.main, context)
            except QCompilerError as error:
                error.add_note(self._place(error, item, position))
                raise
            module.main.stage = item.becomes or module.main.stage
            if outputs.changed(module, context):  # otherwise it was verified after the pass that made it
                verify_module(module, after=item.name)
            after = validated(module.main, context)
            record.metrics.update(check(item.contract, before, after, item.name))
            before = outputs(module.main, context) if validated is _codes else after
            records.append(record)
            self._call_between(position + 1, module)
        return records

    def _place(self, error: QCompilerError, item: Pass, position: int) -> str:
        """The pass that raised an error, and those before it unless the error is about the model or the call."""
        if isinstance(error, InputError | TargetError | UnsupportedError):
            return f"raised by the pass {item.name}"
        done = ", ".join(earlier.name for earlier in self.passes[:position])
        return f"raised by {item.name} after {done or 'no pass'}"

    def _call_between(self, position: int, module: Module) -> None:
        """Call back at the border before the pass at `position`."""
        if self.between is not None:
            before = self.passes[position - 1] if position else None
            after = self.passes[position] if position < len(self.passes) else None
            self.between(before, module, after)


class _Outputs:
    """The outputs of a graph for all samples of a context, kept as long as the module stays the same."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._samples: list[list[Tensor]] | None = None
        self._kept: list[Tensor] | None = None

    def changed(self, module: Module, context: PassContext) -> bool:
        """Whether the module or the samples have changed since the previous call; the outputs are then forgotten."""
        snapshot = Snapshot.of(module)
        if snapshot.same(self._snapshot) and self._samples is context.samples:
            return False
        self._snapshot, self._samples, self._kept = snapshot, context.samples, None
        return True

    def __call__(self, graph: Graph, context: PassContext) -> list[Tensor]:
        """The outputs for the module and the samples of the last call of `changed`."""
        if self._kept is None:
            runs = (interpret(graph, sample, graph.module.tensors)[0] for sample in context.samples)
            self._kept = [tensor for outputs in runs for tensor in outputs]
        return self._kept


def _codes(graph: Graph, context: PassContext) -> list[Tensor]:
    arithmetic = context.require_target("validation to the bit").arithmetic
    return [codes for sample in context.samples for codes in output_codes(graph, sample, arithmetic)]
