"""Move ops that the integer core cannot compute into float islands, which are separate graphs.

    x ─► conv ─► layer_norm ─► softmax ─► conv        becomes        x ─► conv ─► call(@layer_norm) ─► conv

                                                                     @layer_norm: x ─► layer_norm ─► softmax

An island is as large as possible without a path that leaves and re-enters it; it includes ops that only move elements
between two of its parts, and an activation right after it. Integers, indices and masks are never quantized: all ops
that compute them belong to islands, see `common.exact_values`. Quantizers are inserted around the call later, so that
the call is between a dequantize and a quantize. A target without float fallback refuses, with a remedy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from qcompiler.errors import UnsupportedError
from qcompiler.ir.analysis import convex_partitions, reachable
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait, known_ops
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops import SCALED
from qcompiler.ops.borders import border, has_no_code, leaves_range
from qcompiler.ops.custom import function_name, is_custom, registration
from qcompiler.ops.kinds import integer_kinds
from qcompiler.ops.quantizers import clamps_channels, is_leaf
from qcompiler.ops.work import elements, multiply_accumulates
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.exact_values import integer_exact
from qcompiler.passes.common.geometry import geometry_of
from qcompiler.passes.common.overrides import Overrides
from qcompiler.targets import Target
from qcompiler.validation.contracts import THRESHOLDS, Contract

FLOAT_ISLAND = Sentence("float-island", "float island @{name}: {why}")
"""An island; further facts are its shares `macs` and `elements`."""


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
        if not outside:
            return
        if target.fallback == "refuse":
            node, why = next(iter(outside.items()))
            raise _refusal(node, why, target)
        if target.simulation is None:
            for node, why in integer_exact(graph).items():
                outside.setdefault(node, why)
        inside = {*outside, *_movement_between(graph, outside)}
        inside.update(_borders_in_front(graph, inside))
        inside.update(_clamps_after(graph, inside))
        total = [max(1, sum(map(count, graph.nodes))) for count in (multiply_accumulates, elements)]
        for members in convex_partitions(graph, inside.__contains__):
            reasons = [f"{function_name(node)}: {outside[node]}" for node in members if node in outside]
            shares = [
                sum(map(count, members)) / whole
                for count, whole in zip((multiply_accumulates, elements), total, strict=True)
            ]
            call = _outline(graph, members, rewriter)
            name, why = str(call.attributes["graph"]), "; ".join(dict.fromkeys(reasons))
            found = dict(zip(("macs", "elements"), shares, strict=True))
            rewriter.note(call, FLOAT_ISLAND(name=name, why=why, **found))
            context.record.metrics.update({f"{name}.{key}": share for key, share in found.items()})


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
    if node.definition.has(Trait.AVERAGE):
        sizes = node.inputs[0].type.shape
        if not all(isinstance(sizes[axis], int) for axis in node.integers("axes", ())):
            return "a mean over an axis of symbolic size"
    strange = [value for value in (*node.inputs, *node.outputs) if not value.type.dtype.is_float]
    return f"%{strange[0].name} is {strange[0].type.dtype}" if strange else ""


def _refusal(node: Node, why: str, target: Target) -> UnsupportedError:
    fix = f'Run it in float, load_target("{target.name}").override(fallback="float"), or replace it in the model'
    if is_custom(node):
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


def _outline(graph: Graph, members: Sequence[Node], rewriter: Rewriter) -> Node:
    """Move `members` into a new graph of the module and replace them by a call."""
    inside = set(members)
    # Operands from outside, without leaves, become inputs; results that are read outside become outputs.
    takes = list(
        dict.fromkeys(
            value for node in members for value in node.inputs if value.producer not in inside and not is_leaf(value)
        )
    )
    gives = [
        value
        for node in members
        for value in node.outputs
        if graph.is_output(value) or any(user not in inside for user in value.users)
    ]
    island = graph.module.add(Graph(_unused(graph, members), Stage.CANONICAL))
    island.bounds = dict(graph.bounds)
    twins = {value: island.add_input(value.name, value.type) for value in takes}
    for node in members:
        for value in node.inputs:
            if value not in twins:
                _copy(island, value.producer, twins)
        _copy(island, node, twins)
    island.set_outputs([twins[value] for value in gives], ("list", list(range(len(gives)))))
    island.input_tree = ("tuple", list(range(len(takes))))
    # Replace the members by one call after the last of them.
    _clear_the_way(graph, members, rewriter)
    call = rewriter.insert(
        "call",
        takes,
        {"graph": island.name, "results": tuple(str(value.type) for value in gives)},
        before=members[-1].following,
        like=[node for node in members if not node.definition.has(Trait.MOVEMENT)] or members,
        name=island.name,
    )
    names = [value.name for value in gives]
    for old, new in zip(gives, call.outputs, strict=True):
        rewriter.replace_uses(old, new)
    # Remove the members, and leaves that only they read.
    for node in reversed(members):
        leaves = [value.producer for value in node.inputs if is_leaf(value)]
        rewriter.erase(node)
        for leaf in dict.fromkeys(leaves):
            if leaf is not None and not leaf.output.users and not graph.is_output(leaf.output):
                rewriter.erase(leaf)
    graph.name_results(call, names)
    return call


def _unused(graph: Graph, members: Sequence[Node]) -> str:
    first = next((node for node in members if not node.definition.has(Trait.MOVEMENT)), members[0])
    name, count = first.name, 0
    while name in graph.module.graphs:
        count += 1
        name = f"{first.name}_{count}"
    return name


def _copy(island: Graph, node: Node | None, twins: dict[Value, Value]) -> None:
    if node is None:
        return
    twin = island.append(
        node.op, [twins[value] for value in node.inputs], node.attributes, name=node.name, location=node.location
    )
    island.name_results(twin, [value.name for value in node.outputs])
    twin.origins = node.origins
    twins.update(zip(node.outputs, twin.outputs, strict=True))


def _clear_the_way(graph: Graph, members: Sequence[Node], rewriter: Rewriter) -> None:
    """Move users of the island that are between its parts after the last part."""
    inside, last = set(members), members[-1]
    after = set(reachable(members)) - inside
    between: list[Node] = []
    node: Node | None = members[0]
    while node is not None and node is not last:
        if node in after:
            between.append(node)
        node = node.following
    following = last.following
    for item in between:
        rewriter.move(item, before=following)
