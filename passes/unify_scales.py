"""Give tensors that must share a scale and zero point one quantizer grid.

If the target ties the operands and the result of an op (average pooling, ...), or the op moves codes of several
operands (concat, ...), their quantizers share one scale and one zero point:

    fq(a, s1, z1), fq(b, s2, z2) ─► concat      becomes      fq(a, s1, z1), fq(b, s1, z1) ─► concat

Calibration then finds one range for all of them. A quantizer with a fixed grid or another width cannot change: its
operand gets a second quantizer, which lowers to a rescale. If all operands have different fixed grids, they are
rescaled to the grid of the result, which gets a quantizer. A single operand keeps its grid, and the op uses it.

A border that may be outside of the range of its operand is tied on every target, and its result leads: the operand is
rescaled to the grid of the result. If the operand has other users, they keep the original, because their range does not
include the border.

Values with a small range lose codes on the grid of others with a large one. Where the operator's other operands are
wide, an operand may therefore keep its own grid for its other readers, and the operator reads a requantized copy:

    fq(a, s1, z1) ─┬─► conv                        fq(a, s1, z1) ─┬─► conv
                   └─────► concat     becomes                     └─► fq(., s2, z2) ─► concat
    fq(b, s1, z1) ───────► concat                  fq(b, s2, z2) ────────────────────► concat

See `passes.common.requantized_copies` for the choice, and decision 39.

The quantizers at one place of an unrolled loop share a grid over all steps; see decision 55.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from qcompiler.errors import InputError
from qcompiler.ir.analysis import connected_groups
from qcompiler.ir.events import Message, Sentence
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.borders import leaves_range
from qcompiler.ops.exact import computes_exactly
from qcompiler.ops.movement import joins
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import is_quantizer, leaf_tensor, quantizer_of
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.fixed_grids import is_dictated
from qcompiler.passes.common.loop_places import loop_places
from qcompiler.passes.common.outline import put_in_island, work
from qcompiler.passes.common.own_grids import name_of_copy, put_quantizer_after
from qcompiler.passes.common.requantized_copies import (
    GAIN,
    GAIN_OF_A_READER,
    LEAST_DB,
    Copy,
    Decision,
    Join,
    choose_copies,
)
from qcompiler.targets import Target
from qcompiler.validation.contracts import THRESHOLDS, Contract
from qcompiler.validation.noise import decibels

SHARES = Sentence("grid-shared", "shares the grid of {leader}")
GRIDS_DIFFER = Sentence("fixed-grids-differ", "all operands of {reader} have fixed grids, which differ")
FIXED_OPERAND = Sentence("fixed-operand", "the grid of {operand} cannot change, so {reader} reads a rescaled copy")
SHARED_OPERAND = Sentence(
    "shared-operand", "the grid of {operand} is used by other nodes, so {reader} reads a rescaled copy"
)


PARTS = Sentence(
    "parts-keep-grids", "its parts keep their own grids, because a common one leaves {part} {ratio:.1f} dB"
)
COPIED = Sentence(
    "copy-lowers-noise",
    "{reader} reads a copy of {operand}, which keeps a step of {own:.4g} for other readers; the shared one is "
    "{shared:.4g}",
)
NO_GAIN = Sentence(
    "copy-not-worth-it", "a copy would lower the expected noise of the whole model by less than {share:g} %"
)
NO_GAIN_OF_A_READER = Sentence(
    "copy-not-worth-it-for-reader", "a copy would lower the noise of a reader by less than {share:g} % of what it reads"
)
LITTLE_GAIN = Sentence(
    "copies-hardly-lower-noise", "all copies together would lower the expected noise by less than {decibels:g} dB"
)


@dataclass(frozen=True)
class UnifyScales(Pass):
    """Solve the target's ties over connected groups of quantizers.

    Args:
        copies: Operands that keep their own grid, so that the operator reads a copy. `fixed`: operands whose grid
            cannot change. `ranges`: also operands with other readers, for which the shared step is much coarser than
            their own. `noise`: also operands for which a copy lowers the expected noise of the outputs enough. Both
            read calibration data if there is any. The record gives the expected signal-to-noise ratio before and
            after, dB.
        parts: Whether a concat that only outputs of the model depend on is computed in float where the target allows
            float, if its grid would leave one of its operands less than 20 dB; its operands keep their own grids.
            Not with `copies=fixed`.

    Raises:
        InputError: `copies` has another value.
    """

    name: ClassVar[str] = "unify-scales"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"quantizers", "fixed-ranges"})
    establishes: ClassVar[frozenset[str]] = frozenset({"ties"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"activation-ranges"})
    copies: Literal["fixed", "ranges", "noise"] = "fixed"
    parts: bool = True

    def __post_init__(self) -> None:
        if self.copies not in ("fixed", "ranges", "noise"):
            raise InputError(f"copies={self.copies!r}", expected="fixed, ranges or noise")

    @property
    def contract(self) -> Contract:
        """Exact, except copies with given scales and zero points, which are rounded."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        target = context.require_target(self.name)
        rewriter = context.rewriter(graph)
        places = loop_places(graph)
        chosen = self._chosen(graph, context, target, rewriter, places)
        ties: list[list[Node]] = [_that_can_join(place) for place in places]
        for node in graph.nodes:
            if not _ties(node, target):
                continue
            widened = leaves_range(node)
            members = [quantizer_of(value) for value in node.inputs]
            follower = _own_quantizer(node)
            known = [member for member in members if member is not None]
            staying = [member for member in known if (node, member) not in chosen]
            leader = follower if widened else _leader(known, staying, follower, target)
            if widened and leader is None:
                leader = follower = put_quantizer_after(node, target.activation_spec(op=node.op), rewriter)
            if leader is None and _differ(known):
                leader = follower = put_quantizer_after(node, target.activation_spec(op=node.op), rewriter)
                rewriter.note(leader, GRIDS_DIFFER(reader=node.name))
            if leader is None:
                continue
            if leader is follower:
                for value in leader.inputs[1:]:
                    if value.producer is not None:
                        rewriter.move(value.producer, before=node)  # copies of the operands read it
            apart = {m for m in known if _cannot_join(m, leader) or (widened and not _is_read_alone(m, node))}
            apart.update(member for member in known if (node, member) in chosen)
            copies = [
                _insert_rescale(node, index, member, leader, chosen.get((node, member)), rewriter)
                for index, member in enumerate(members)
                if member is not None and member in apart
            ]
            quantizers = [m for m in (*members, follower) if m is not None]
            ties.append([q for q in quantizers if q not in apart and not _cannot_join(q, leader)] + copies)
        for group in connected_groups(graph, ties):
            _share(group, rewriter)
        for node in graph.nodes:
            _follow(node, rewriter)

    def _chosen(
        self, graph: Graph, context: PassContext, target: Target, rewriter: Rewriter, places: Sequence[list[Node]]
    ) -> Mapping[tuple[Node, Node], Copy]:
        """The copies that lower the noise, by operator and quantizer."""
        if self.copies == "fixed":
            return {}
        joins: list[Join] = []
        ties: list[list[Node]] = list(places)
        for node in graph.nodes:
            if not _ties(node, target):
                continue
            members, follower = tuple(map(quantizer_of, node.inputs)), _own_quantizer(node)
            if len(members) > 1:
                may_part = self._may_part(node, members, follower, context, target)
                joins.append(Join(node, members, follower, may_part, may_part and context.encodings is not None))
            else:
                first = members[0]
                shares = not leaves_range(node) or (first is not None and _is_read_alone(first, node))
                ties.append([item for item in (first, follower) if item is not None and shares])
        found = choose_copies(graph, context, joins, ties, measured=self.copies == "noise")
        total, moved = work(graph), set[Node]()
        for node, (part, ratio) in found.parted.items():
            if node not in moved:
                inside = list(_until_outputs(node))
                moved.update(inside)
                put_in_island(graph, inside, str(PARTS(part=part.name, ratio=ratio)), total, context)
        for quantizer in found.declined:
            rewriter.refuse(quantizer, self._reason(found))
        if found.before:
            context.record.metrics.update(
                copies=len(found.copies),
                expected_db_before=decibels(found.before),
                expected_db_after=decibels(found.after),
            )
        return found.copies

    def _may_part(
        self, node: Node, members: Sequence[Node | None], follower: Node | None, context: PassContext, target: Target
    ) -> bool:
        """Whether the operands of `node` may keep their own grids, because only outputs of the model depend on it."""
        if not self.parts or target.fallback == "refuse" or node.definition.has(Trait.ELEMENTWISE):
            return False
        given = context.encodings
        if given is not None and (not given.producer.get("pipeline") or node.name in given.by_name):
            return False  # in encodings of this package, a concat without a grid was computed in float
        return follower is None and None not in members and _leads_out(node)

    def _reason(self, found: Decision) -> Message:
        """The reason why an operand gets no copy."""
        if not found.measured:
            return NO_GAIN_OF_A_READER(share=100 * GAIN_OF_A_READER)
        return LITTLE_GAIN(decibels=LEAST_DB) if found.little else NO_GAIN(share=100 * GAIN)


def _leads_out(node: Node) -> bool:
    """Whether `node`, and all that depends on it, only moves elements to outputs of the model."""
    if not node.definition.has(Trait.MOVEMENT) or leaves_range(node):
        return False
    return all(_leads_out(user) for value in node.outputs for user in value.users)


def _until_outputs(node: Node) -> Iterator[Node]:
    """A node and all that depends on it, in the order of the graph."""
    found = {node}
    for other in node.graph.nodes:
        if other is node or any(value.producer in found for value in other.inputs):
            found.add(other)
            yield other


def _ties(node: Node, target: Target) -> bool:
    """Whether the tensors of `node` may have to share a grid."""
    if computes_exactly(node):
        return False
    return target.tie(node.op) is not None or leaves_range(node) or joins(node)


def _follow(node: Node, rewriter: Rewriter) -> None:
    """Update the scale of a bias to the current scale of the layer's input."""
    if not node.definition.has(Trait.WEIGHTED) or len(node.inputs) < 3:
        return
    bias, source = node.inputs[2].producer, quantizer_of(node.inputs[0])
    quantizes = bias is not None and bias.definition.has(Trait.BIAS_QUANTIZER)
    product = bias.inputs[1].made_by("scale_product") if bias is not None and quantizes else None
    if product is not None and source is not None:
        rewriter.replace_input(product, 0, source.inputs[1])


def _that_can_join(place: list[Node]) -> list[Node]:
    """The quantizers of a place of a loop that can have one grid: of the width and the fixed grid of the first."""
    same = [node for node in place if node.spec == place[0].spec]
    fixed = [node for node in same if _is_fixed(node)]
    return [node for node in same if not _is_fixed(node) or not _cannot_join(node, fixed[0])]


def _own_quantizer(node: Node) -> Node | None:
    users = list(node.output.users)
    return users[0] if len(users) == 1 and is_quantizer(users[0]) else None


def _is_read_alone(quantizer: Node, node: Node) -> bool:
    """Whether `node` is the only user of `quantizer`, through ops that only move elements."""
    value = node.inputs[0]
    while len(value.users) == 1 and not node.graph.is_output(value) and value.producer is not None:
        if value.producer is quantizer:
            return True
        value = value.producer.inputs[0]
    return False


def _leader(members: Sequence[Node], staying: Sequence[Node], follower: Node | None, target: Target) -> Node | None:
    """The quantizer whose grid the op uses, one of those `staying` on it; None if there are no ties to solve."""
    if len(members) < 2:
        return members[0] if members and follower is not None else None
    free = [quantizer for quantizer in staying if not _is_fixed(quantizer)]
    if free:
        return free[0]
    if not _differ(members):
        return None
    # The grid of one operand may be too small for the others; the grid of the result fits all.
    if follower is not None:
        return follower
    loose = [quantizer for quantizer in members if not is_dictated(quantizer, target)]
    return loose[0] if loose and not _differ(loose) else None


def _differ(quantizers: Sequence[Node]) -> bool:
    """Whether all grids are fixed and some differ."""
    fixed = [quantizer for quantizer in quantizers if _is_fixed(quantizer)]
    return len(fixed) == len(quantizers) and any(_cannot_join(other, fixed[0]) for other in fixed[1:])


def _is_fixed(quantizer: Node) -> bool:
    return is_calibrated(leaf_tensor(quantizer.inputs[1]))


def _cannot_join(quantizer: Node, other: Node) -> bool:
    """Whether `quantizer` has to keep a grid that differs from the grid of `other`."""
    if quantizer.attributes["spec"] != other.attributes["spec"]:
        return True
    return _is_fixed(quantizer) and any(
        not torch.equal(leaf_tensor(mine), leaf_tensor(theirs))
        for mine, theirs in zip(quantizer.inputs[1:], other.inputs[1:], strict=True)
    )


def _insert_rescale(node: Node, index: int, member: Node, like: Node, copy: Copy | None, rewriter: Rewriter) -> Node:
    """A quantizer with the grid of `like`, used only by operand `index` of `node`."""
    second = rewriter.insert(
        "fake_quantize",
        [node.inputs[index], *like.inputs[1:]],
        {"spec": like.attributes["spec"]},
        before=node,
        like=node,
        name=name_of_copy(node, index),
    )
    rewriter.replace_input(node, index, second.output)
    if copy is not None:
        message = COPIED(operand=member.name, reader=node.name, own=copy.own, shared=copy.shared)
    else:
        sentence = FIXED_OPERAND if _cannot_join(member, like) else SHARED_OPERAND
        message = sentence(operand=member.name, reader=node.name)
    rewriter.note(second, message)
    return second


def _share(group: list[Node], rewriter: Rewriter) -> None:
    """Give a group one scale and zero point: fixed ones if a member has them."""
    leader = next((node for node in group if _is_fixed(node)), group[0])
    for value in leader.inputs[1:]:
        if leader is not group[0] and value.producer is not None:
            rewriter.move(value.producer, before=group[0])
    for node in group:
        if node is leader or node.inputs[1] is leader.inputs[1]:
            continue
        rewriter.replace_input(node, 1, leader.inputs[1])
        rewriter.replace_input(node, 2, leader.inputs[2])
        rewriter.note(node, SHARES(leader=leader.name))
