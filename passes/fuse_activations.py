"""Move each activation next to the op that produces its input, so that both become one hardware step.

clamp(clamp(x, a, b), c, d)        ->  clamp(x, ...) with both intervals; per channel if they differ
relu(max_pool2d(conv(x)))          ->  max_pool2d(relu(conv(x)))
relu(reshape(conv(x)))             ->  reshape(relu(conv(x)))      any op that only moves elements
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.passes.base import Pass, PassContext, only_user
from qcompiler.passes.common.channel_limits import composed, limits_of, set_limits

MERGED = Sentence("clamps-merged", "replaces {clamps: and }")
MOVED = Sentence("activation-moved", "moved before {mover}")
OTHER_AXIS = Sentence("clamps-along-other-axis", "{first} clamps along another axis")
OTHER_USERS = Sentence("mover-has-other-users", "{mover} has other users")


@dataclass(frozen=True)
class FuseActivations(Pass):
    """Merge activations in a row, and move an activation up over ops that only move elements.

    Both are exact: a monotone clamp commutes with moving and with taking the maximum.

    Refuses: to move over an op with other users or several operands. Clamps with limits per channel are merged but not
    moved.
    """

    name: ClassVar[str] = "fuse-activations"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    requires: ClassVar[frozenset[str]] = frozenset({"canonical"})

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the class."""
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if not node.definition.has(Trait.CLAMP):
                continue
            current = node
            while (moved := _merge(current, rewriter) or _move_up(current, rewriter)) is not None:
                current = moved


def _merge(node: Node, rewriter: Rewriter) -> Node | None:
    first = node.inputs[0].producer
    if first is None or not first.definition.has(Trait.CLAMP) or only_user(first) is not node:
        return None
    axes = {item.integer("axis") for item in (first, node) if item.given("axis")}
    if len(axes) > 1:
        rewriter.refuse(node, OTHER_AXIS(first=first.name))
        return None
    axis = axes.pop() if axes else 0
    count = node.output.type.size(axis) if axis else 1
    low, high = composed(limits_of(first, count), limits_of(node, count))
    merged_names = (first.name, node.name)
    first.origins = tuple(dict.fromkeys(first.origins + node.origins))
    rewriter.replace(node, first.output)
    merged = set_limits(first, low, high, axis, rewriter)
    rewriter.note(merged, MERGED(clamps=merged_names))
    return merged


def _move_up(node: Node, rewriter: Rewriter) -> Node | None:
    mover = node.inputs[0].producer
    if not node.definition.has(Trait.ACTIVATION):
        return None
    if mover is None or not mover.definition.has(Trait.MOVEMENT) or len(mover.inputs) != 1 or mover.op == "pad":
        return None
    if mover.op == "dropout" and not node.definition.has(Trait.COMMUTES_WITH_SCALE):
        return None  # values that are scaled up afterwards may leave the interval
    if only_user(mover) is not node:
        rewriter.refuse(node, OTHER_USERS(mover=mover.name))
        return None
    up = rewriter.insert(node.op, mover.inputs, node.attributes, before=mover, like=node)
    rewriter.note(up, MOVED(mover=mover.name))
    rewriter.replace_input(mover, 0, up.output)
    rewriter.replace(node, mover.output)
    return up
