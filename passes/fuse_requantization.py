"""Absorb an activation into the code limits of the following quantizer.

    conv ─► relu ─► fq(s, z)        becomes        conv ─► fq(s, z) {qmin = z}

A clamp before rounding equals a tighter clamp of the codes after it, because rounding is monotone. The requantization,
which the hardware does in any case, then includes the activation for free.

    quantize(clamp(x, a, b)) = clamp(quantize(x), quantize(a), quantize(b))

Limits per channel stay a separate op, because a quantizer has one pair of limits; lowering moves them into the integer
op.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.quantizers import activation_bounds, clamped_limits, clamps_channels, code_limits, grid, is_quantizer
from qcompiler.passes.base import Pass, PassContext, only_user
from qcompiler.passes.common.channel_limits import composed, limits_of, set_limits

LIMITS_OF_CODES = Sentence("activation-in-codes", "includes {activation}: codes {qmin} to {qmax}")
LIMITS_PER_CHANNEL = Sentence("activation-in-channel-limits", "includes {activation}")
OTHER_USERS = Sentence("activation-has-other-users", "its result has users other than one quantizer")


@dataclass(frozen=True)
class FuseRequantization(Pass):
    """Turn activations before quantizers into code limits.

    Refuses: an activation with users other than one quantizer or one clamp per channel.
    """

    name: ClassVar[str] = "fuse-requantization"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})
    establishes: ClassVar[frozenset[str]] = frozenset({"requantization-fused"})

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if not node.definition.has(Trait.ACTIVATION):
                continue
            quantizer = only_user(node)
            if quantizer is not None and clamps_channels(quantizer):
                _into_limits(node, quantizer, rewriter)
                continue
            if not is_quantizer(quantizer):
                rewriter.refuse(node, OTHER_USERS())
                continue
            low, high = activation_bounds(node)
            params, spec = grid(quantizer)
            qmin, qmax = clamped_limits(low, high, params, spec, *code_limits(quantizer))
            rewriter.set_attributes(quantizer, qmin=qmin, qmax=qmax)
            quantizer.origins = tuple(dict.fromkeys(node.origins + quantizer.origins))
            rewriter.note(quantizer, LIMITS_OF_CODES(activation=node.name, qmin=qmin, qmax=qmax))
            rewriter.replace(node, node.inputs[0])


def _into_limits(node: Node, clamp: Node, rewriter: Rewriter) -> None:
    """Merge an activation into the following clamp per channel, which may become uniform."""
    axis = clamp.integer("axis")
    count = clamp.output.type.size(axis)
    low, high = composed(limits_of(node, count), limits_of(clamp, count))
    name = node.name
    clamp.origins = tuple(dict.fromkeys(node.origins + clamp.origins))
    rewriter.replace(node, node.inputs[0])
    merged = set_limits(clamp, low, high, axis, rewriter)
    rewriter.note(merged, LIMITS_PER_CHANNEL(activation=name))
