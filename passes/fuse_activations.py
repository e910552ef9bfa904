"""Bring each activation to the op that makes its input, so that both become one step of the hardware.

clamp(clamp(x, a, b), c, d)        ->  clamp(x, ...) with both intervals
relu(max_pool2d(conv(x)))          ->  max_pool2d(relu(conv(x)))
relu(reshape(conv(x)))             ->  reshape(relu(conv(x)))      any op that only moves elements
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.quantizers import activation_bounds
from qcompiler.passes.base import Pass, PassContext, only_user


@dataclass(frozen=True)
class FuseActivations(Pass):
    """Merge activations in a row, and move an activation up over ops that only move elements.

    Both are exact: a monotone clamp commutes with moving and with taking the maximum.

    Refuses: to move over an op that other nodes read too, or that reads several values.
    """

    name: ClassVar[str] = "fuse-activations"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    requires: ClassVar[frozenset[str]] = frozenset({"canonical"})

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the class."""
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if not node.definition.has(Trait.ACTIVATION):
                continue
            current = node
            while (moved := _merge(current, rewriter) or _move_up(current, rewriter)) is not None:
                current = moved


def _merge(node: Node, rewriter: Rewriter) -> Node | None:
    first = node.inputs[0].producer
    if first is None or not first.definition.has(Trait.ACTIVATION) or only_user(first) is not node:
        return None
    (a, b), (c, d) = activation_bounds(first), activation_bounds(node)
    low, high = min(max(a, c), d), max(min(b, d), c)
    merged = rewriter.insert("clamp", first.inputs, {"min": low, "max": high}, before=first, like=[first, node])
    if activation_bounds(merged) == (0.0, float("inf")):
        relu = rewriter.insert("relu", first.inputs, before=first, like=[first, node])
        rewriter.erase(merged)
        merged = relu
    rewriter.note(merged, f"took the place of {first.name} and {node.name}")
    rewriter.replace(node, merged.output)
    rewriter.erase(first)
    return merged


def _move_up(node: Node, rewriter: Rewriter) -> Node | None:
    mover = node.inputs[0].producer
    if mover is None or not mover.definition.has(Trait.MOVEMENT) or len(mover.inputs) != 1 or mover.op == "pad":
        return None
    if only_user(mover) is not node:
        rewriter.refuse(node, f"{mover.name} is read by other nodes too")
        return None
    up = rewriter.insert(node.op, mover.inputs, node.attributes, before=mover, like=node)
    rewriter.note(up, f"moved up over {mover.name}")
    rewriter.replace_input(mover, 0, up.output)
    rewriter.replace(node, mover.output)
    return up
