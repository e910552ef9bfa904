"""Insert the quantizers of gradients for quantized training.

    conv(x, w) ─► relu ─► fq        becomes        conv(x, w) ─► quantize_gradient ─► relu ─► fq

Each sum of products gets one after its result: the gradient that arrives there is the common operand of the products
for the layer's input and weight. A layer with a weight scale per output channel gets a second range, for the gradient
times these scales, which its product for the input reads (`ops.gradients`). All ranges start as NaN, which means "not
known": the first backward finds them.

The pass comes last before training. Other passes then never meet these nodes, which the shipped graph does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.ir.attributes import Attribute
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.overrides import Overrides
from qcompiler.targets import Target

INSERTED = Sentence("gradient-quantizer-inserted", "gradients are quantized to {spec}, {rounding}")
SECOND = Sentence("second-gradient-quantizer", "gradients times the scales of channels are quantized as well")
FLOAT = Sentence("float-gradient", "an override leaves the gradient in float")


@dataclass(frozen=True)
class InsertGradientQuantizers(Pass):
    """Quantizers of the gradients of all sums of products.

    Args:
        bits: Width of the codes; None: the descriptor's.
        rounding: `stochastic` or `nearest`; None: the descriptor's.

    Raises:
        InputError: An override matches nothing.
        TargetError: The target lacks a width.
    """

    bits: int | None = None
    rounding: str | None = None

    name: ClassVar[str] = "insert-gradient-quantizers"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"quantizers"})

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        target = context.require_target(self.name)
        overrides = Overrides.resolve(context.overrides, graph)
        rewriter = context.rewriter(graph)
        for node in list(graph.nodes):
            if not node.definition.has(Trait.MAC):
                continue
            own = overrides.gradient_bits(node)
            if own == "float":
                rewriter.refuse(node, FLOAT())
                continue
            self._insert(node, target, self.bits if own is None else own, rewriter)

    def _insert(self, node: Node, target: Target, bits: int | None, rewriter: Rewriter) -> None:
        spec = target.gradient_spec(bits)
        rounding = self.rounding or target.descriptor.gradient.rounding
        stems = [f"{node.name}.gradient", *([f"{node.name}.scaled_gradient"] if has_channel_scales(node) else [])]
        ranges = [_unknown(rewriter, f"{stem}.range", node) for stem in stems]
        attributes: dict[str, Attribute] = {"spec": spec, "rounding": rounding}
        users, is_output = list(node.output.users), node.graph.is_output(node.output)
        quantizer = rewriter.insert(
            "quantize_gradient",
            [node.output, *ranges],
            attributes,
            before=node.following,
            like=node,
            name=f"{node.name}.g",
        )
        _redirect(node.output, quantizer.output, users, is_output, rewriter)
        rewriter.note(quantizer, INSERTED(spec=str(spec), rounding=rounding))
        if len(stems) > 1:
            rewriter.note(quantizer, SECOND())


def has_channel_scales(node: Node) -> bool:
    """Whether `node` is a layer whose weight has one scale per output channel."""
    quantizer = Layer(node).quantizer if is_weighted(node) else None
    return quantizer is not None and quantizer.spec.axis is not None


def _unknown(rewriter: Rewriter, ref: str, node: Node) -> Value:
    """A state with a range that is not known yet."""
    return rewriter.leaf("state", torch.full((2,), torch.nan), ref=ref, before=node)


def _redirect(old: Value, new: Value, users: Sequence[Node], is_output: bool, rewriter: Rewriter) -> None:
    rewriter.replace_uses(old, new, only=users)
    if is_output:
        graph = rewriter.graph
        graph.set_outputs([new if value is old else value for value in graph.outputs])
