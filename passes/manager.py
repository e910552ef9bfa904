"""Runs passes in the order given, and believes none of them.

Order is checked before anything runs and never changed. After each pass: structure is verified, numbers are validated
against the pass's contract on the sample batches, and what the pass did is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from qcompiler.errors import PipelineError, QCompilerError
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.interpret import interpret
from qcompiler.ir.rewrite import Record
from qcompiler.ir.types import Stage
from qcompiler.ir.verify import verify_module
from qcompiler.passes.base import Pass, PassContext
from qcompiler.validation.contracts import IntegerMatch, check
from qcompiler.validation.exact import output_codes

Between = Callable[[Pass, Module, Record], None]


class PassManager:
    """A checked sequence of passes.

    Args:
        passes: In the order in which they run.
        facts: What is known to hold of the graph at the start.
        between: Called after each pass with the pass, the module and its record: printing, progress, dumps.

    Raises:
        PipelineError: The order cannot work from any stage.
    """

    def __init__(self, passes: Sequence[Pass], facts: Iterable[str] = (), between: Between | None = None) -> None:
        self.passes = tuple(passes)
        self.facts = frozenset(facts)
        self.between = between
        for item in self.passes:
            if not isinstance(item, Pass):
                raise PipelineError(
                    f"{item!r} is not a pass", expected="an instance of a subclass of qcompiler.passes.Pass"
                )

    def check_order(self, stage: Stage) -> None:
        """Check that each pass finds the stage and the facts that it needs, starting from `stage`.

        Raises:
            PipelineError: One does not; the message says which pass would establish what is missing.
        """
        facts = set(self.facts)
        for position, item in enumerate(self.passes):
            if stage not in item.stages:
                raise PipelineError(
                    f"{item.name} would run on a graph at stage {stage}",
                    where=f"position {position + 1} of {self.describe()}",
                    expected="stage " + " or ".join(s for s in Stage if s in item.stages),
                )
            missing = sorted(item.requires - facts)
            if missing:
                givers = [p.name for p in self.passes if missing[0] in p.establishes]
                hint = f"Run {' or '.join(givers)} before it." if givers else "No pass of this pipeline establishes it."
                raise PipelineError(
                    f"{item.name} needs {', '.join(missing)}, which does not hold when it runs",
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
            PipelineError: Before anything ran.
            GraphError: A pass left a graph that breaks an invariant.
            ContractError: A pass changed the numbers more than it promised.
        """
        self.check_order(module.main.stage)
        records: list[Record] = []
        before = _outputs(module.main, context)
        for item in self.passes:
            record = context.record = Record(item.name)
            if item.prepare(module.main, context):
                before = _outputs(module.main, context)
            outputs = _codes if isinstance(item.contract, IntegerMatch) else _outputs
            if outputs is _codes:
                before = _codes(module.main, context)
            try:
                item.run(module.main, context)
            except QCompilerError as error:
                error.add_note(f"raised by {item.name} after {', '.join(r.pass_name for r in records) or 'no pass'}")
                raise
            module.main.stage = item.becomes or module.main.stage
            verify_module(module, after=item.name)
            record.metrics.update(check(item.contract, before, outputs(module.main, context), item.name))
            before = _outputs(module.main, context)
            records.append(record)
            if self.between is not None:
                self.between(item, module, record)
        return records


def _outputs(graph: Graph, context: PassContext) -> list[Tensor]:
    return [tensor for sample in context.samples for tensor in interpret(graph, sample)]


def _codes(graph: Graph, context: PassContext) -> list[Tensor]:
    arithmetic = context.require_target("validation to the bit").arithmetic
    return [codes for sample in context.samples for codes in output_codes(graph, sample, arithmetic)]
