"""Move ops that the integer core cannot compute into float islands, which are separate graphs.

    x ─► conv ─► layer_norm ─► softmax ─► conv        becomes        x ─► conv ─► call(@layer_norm) ─► conv

                                                                     @layer_norm: x ─► layer_norm ─► softmax

An island is as large as possible without a path that leaves and re-enters it; it includes ops that only move elements
between two of its parts, and an activation right after it. Integers, indices and masks are never quantized: all ops
that compute them belong to islands, see `common.exact_values`. Quantizers are inserted around the call later, so that
the call is between a dequantize and a quantize. A target without float fallback refuses, with a remedy.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.errors import UnsupportedError
from qcompiler.ir.analysis import convex_partitions, reachable
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait, known_ops
from qcompiler.ir.types import Stage
from qcompiler.ops import SCALED
from qcompiler.ops.borders import border, has_no_code, leaves_range
from qcompiler.ops.custom import function_name, is_custom, registration
from qcompiler.ops.exact import computes_exactly
from qcompiler.ops.kinds import integer_kinds
from qcompiler.ops.quantizers import clamps_channels, is_leaf
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.exact_values import integer_exact
from qcompiler.passes.common.geometry import geometry_of
from qcompiler.passes.common.outline import put_in_island, work
from qcompiler.passes.common.overrides import Overrides
from qcompiler.targets import Target
from qcompiler.validation.contracts import THRESHOLDS, Contract


@dataclass(frozen=True)
class Partition(Pass):
    """Float islands for ops that the target does not support and for ops that an override runs in float.

    Records, for each island, its share of the multiply-accumulates and of the computed elements.

    Raises:
        UnsupportedError: The target has `fallback = "refuse"`, and an op is unsupported or overridden to float.
        TargetError: The target has a rule for an unknown operator.
        InputError: An override matches no node.
    """

    name: ClassVar[str] = "partition"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    requires: ClassVar[frozenset[str]] = frozenset({"canonical", "batch-norm-folded"})
    establishes: ClassVar[frozenset[str]] = frozenset({"partitioned"})

    @property
    def contract(self) -> Contract:
        """The same ops run on contiguous copies; torch's kernels sum in an order that depends on strides."""
        return THRESHOLDS[self.name]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        target = context.require_target(self.name)
        target.check_ops(integer_kinds(), known_ops())
        overrides = Overrides.resolve(context.overrides, graph)
        rewriter = context.rewriter(graph)
        for node in graph.reversed_nodes:  # a node without users is removed, not refused or moved
            if not any(value.users or graph.is_output(value) for value in node.outputs):
                rewriter.erase(node)
        outside = {node: why for node in graph.nodes if (why := why_float(node, target, overrides))}
        masked = target.fallback == "float" and any(node.op == "softmax" for node in graph.nodes)
        if not outside and not masked:
            return
        if target.fallback == "refuse":
            (node, why), *rest = outside.items()
            raise _refusal(node, why, target).with_others(
                [(other, item.where, _rewritten(item)) for item, other in rest]
            )
        if target.simulation is None:
            for node, why in integer_exact(graph).items():
                if not (computes_exactly(node) and node.definition.has(Trait.EXACT, Trait.MOVEMENT)):
                    outside.setdefault(node, why)
        inside = {*outside, *_movement_between(graph, outside)}
        inside.update(_borders_in_front(graph, inside))
        inside.update(_clamps_after(graph, inside))
        total = work(graph)
        for members in convex_partitions(graph, inside.__contains__):
            reasons = [f"{function_name(node)}: {outside[node]}" for node in members if node in outside]
            put_in_island(graph, members, "; ".join(dict.fromkeys(reasons)), total, context)


def why_float(node: Node, target: Target, overrides: Overrides) -> str:
    """The reason why `node` cannot, or must not, be computed in integers; empty without a reason.

    Args:
        node: Node of a CANONICAL graph.
        target: The hardware.
        overrides: The user's overrides.
    """
    if node.definition.has(Trait.LEAF) or node.op == "dropout":  # a dropout computes nothing at inference
        return ""
    if overrides.wants_float(node):
        return "an override selects float"
    if target.simulation is not None and not is_custom(node):
        return ""  # only layers are quantized
    if has_no_code(node):
        return f"its border is {border(node)}, which has no code"
    if is_custom(node):
        return node.text("reason") or f"the torch function {function_name(node)!r} has no operator"
    if node.op == SCALED:
        if not target.per_channel_table(function := node.text("function")):
            return f"the target {target.name} has no table per channel for {function}"
    elif not target.supports(node.op):
        return f"the target {target.name} has no integer {node.op}"
    too_large = target.beyond(node.op, geometry_of(node))
    if too_large:
        return f"the operator has {too_large}"
    has_parameters = node.definition.has(Trait.WEIGHTED, Trait.PARAMETRIC)
    computed = [value for value in node.inputs[1:] if not is_leaf(value)] if has_parameters else []
    if computed:
        return f"its parameter %{computed[0].name} is not a constant"
    summed = _summed_axes(node)
    if not all(isinstance(node.inputs[0].type.shape[axis], int) for axis in summed):
        return f"a {function_name(node)} over an axis of symbolic size"
    if computes_exactly(node) and node.definition.has(Trait.EXACT, Trait.MOVEMENT):
        return ""
    guided = node.op == "softmax" or node.definition.has(Trait.GUIDED)  # by masks and ids, exact in every form
    read = node.inputs[:1] if guided else node.inputs
    strange = [value for value in (*read, *node.outputs) if not value.type.dtype.is_float]
    return f"%{strange[0].name} is {strange[0].type.dtype}" if strange else ""


def _summed_axes(node: Node) -> tuple[int, ...]:
    """Axes of the first operand whose elements an average, a product or a softmax sums."""
    if node.definition.has(Trait.AVERAGE):
        return node.integers("axes", ())
    if node.definition.has(Trait.CONTRACTION):
        return (node.inputs[0].type.rank - 1,)
    return (node.integer("axis"),) if node.op in ("softmax", "log_softmax") else ()


def _refusal(node: Node, why: str, target: Target) -> UnsupportedError:
    fix = f"Run it in float, {target.override(fallback='float').typed}, or replace it in the model"
    if (rewritten := _rewritten(node)) is not None:
        fix = f"{rewritten} Or run it in float, {target.override(fallback='float').typed}."
    elif is_custom(node):
        fix += f", or register a rule for it:\n\n{registration(function_name(node))}"
    elif clamps_channels(node):
        fix += ", or equalize for this target, which has one pair of limits for all channels."
    elif node.op == SCALED:
        fix += ", or equalize for this target, which has one table for all channels."
    elif not target.supports(node.op):
        fix += f", or add a rule for {node.op} to the target."
    elif target.beyond(node.op, geometry_of(node)):
        fix += ", or raise the limits of the target if the hardware allows it."
    else:
        fix += "."
    return UnsupportedError(
        why, where=node.where, expected=f"an operator that {target.name} computes in integers", fix=fix
    )


def _rewritten(node: Node) -> str | None:
    """The remedy in the model for a call that its rule refuses; None for other nodes."""
    return (node.text("fix") or None) if is_custom(node) else None


def _movement_between(graph: Graph, outside: Collection[Node]) -> list[Node]:
    """Nodes that only move elements between islands, or between an island and an input or output."""
    movement = [node for node in graph.nodes if node.definition.has(Trait.MOVEMENT) and node not in outside]
    after: set[Node] = set()
    ahead: set[Node] = set()
    touching = set(reachable(outside))
    for node in movement:
        sources = [value.producer for value in node.inputs]
        if all(source is None or source in outside or source in after for source in sources):
            after.add(node)
    for node in reversed(movement):
        users = [user for value in node.outputs for user in value.users]
        if all(user in outside or user in ahead for user in users):
            ahead.add(node)
            if any(user in outside or user in touching for user in users):
                touching.add(node)
    return [node for node in movement if node in after and node in ahead and node in touching]


def _borders_in_front(graph: Graph, inside: Collection[Node]) -> list[Node]:
    """Borders used only by islands: a grid that includes a distant border would be too coarse for the operand."""
    found: list[Node] = []
    for node in graph.reversed_nodes:
        users = list(node.outputs[0].users)
        if leaves_range(node) and users and all(user in inside for user in users) and not graph.is_output(node.output):
            found.append(node)
    return found


def _clamps_after(graph: Graph, inside: Collection[Node]) -> list[Node]:
    """Activations that are the only users of an island's result; a quantizer in between would only lose accuracy."""
    activations = [node for node in graph.nodes if node.definition.has(Trait.CLAMP) and node not in inside]
    sources = {node: node.inputs[0].producer for node in activations}
    return [
        node
        for node, source in sources.items()
        if source in inside and not graph.is_output(node.inputs[0]) and len(node.inputs[0].users) == 1
    ]
