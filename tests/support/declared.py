"""The order in which passes may stand, as the manager enforces it."""

from __future__ import annotations

from collections.abc import Collection

from qcompiler.errors import PipelineError
from qcompiler.ir.graph import Graph
from qcompiler.ir.types import Stage
from qcompiler.passes import Pass, PassContext, PassManager

FACTS = frozenset(
    {
        "canonical",
        "batch-norm-folded",
        "partitioned",
        "quantizers",
        "encodings",
        "fixed-ranges",
        "ties",
        "weight-ranges",
        "activation-ranges",
        "biases-fit",
        "requantization-fused",
    }
)
"""The facts that passes of the compiler establish."""


class Nothing(Pass):
    """Accepts every stage, and changes nothing."""

    name = "nothing"
    stages = frozenset(Stage)

    def run(self, graph: Graph, context: PassContext) -> None:
        """Leave the graph as it is."""


def refusal(passes: Collection[Pass], facts: Collection[str], stage: Stage) -> str:
    """The reason why passes cannot run in this order; empty if they can."""
    try:
        PassManager(list(passes), facts).check_order(stage)
    except PipelineError as error:
        return str(error)
    return ""


def check_declared(
    item: Pass,
    stages: Collection[Stage],
    *,
    requires: Collection[str] = (),
    establishes: Collection[str] = (),
    invalidates: Collection[str] = (),
) -> None:
    """Check stages and facts of a pass against the expected ones, through the manager that enforces them."""
    stage = next(iter(stages))
    for other in Stage:
        why = refusal([item], requires, other)
        assert bool(why) == (other not in stages), f"at stage {other}: {why}"
        assert not why or f"{item.name} cannot run on a graph at stage {other}" in why
    for fact in requires:
        why = refusal([item], {*requires} - {fact}, stage)
        assert f"{item.name} needs {fact}, which is not established before it" in why, f"without {fact}: {why}"
    for given in (frozenset(requires), FACTS):
        after = (given - {*invalidates}) | {*establishes}
        for fact in FACTS:
            probe = type("Probe", (Nothing,), {"requires": frozenset({fact})})()
            why = refusal([item, probe], given, stage)
            assert bool(why) == (fact not in after), f"{fact} after {item.name}: {why or 'holds'}"
