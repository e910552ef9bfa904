"""The widths of overrides compared with those of the quantized graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qcompiler.errors import TargetError
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import is_weighted
from qcompiler.ops.quantizers import is_quantizer, quantizer_after, quantizer_of, quantizers_reading
from qcompiler.passes.base import Override, only_user
from qcompiler.passes.common.overrides import Bits, Overrides
from qcompiler.targets import Target
from qcompiler.validation.layers import QUANTIZED_NAME

__all__ = ["refused_overrides"]


def refused_overrides(
    overrides: Mapping[str, Override], canonical: Graph, quantized: Graph, target: Target
) -> list[Diagnostic]:
    """The overrides that the quantized graph does not follow, one diagnostic per pattern.

    Operators that only move elements have the width of their operands. They count only if a pattern selects nothing
    else, because a pattern of a module selects them by chance.

    Args:
        overrides: The caller's overrides, by pattern.
        canonical: Graph before quantizers were inserted; the patterns select its nodes, and those of its float islands.
        quantized: The calibrated graph.
        target: Hardware target.
    """
    found = _Found(canonical, quantized, target)
    refused = []
    for pattern, override in overrides.items():
        selected = Overrides.resolve({pattern: override}, canonical).bits
        every = (node for graph in canonical.module.graphs.values() for node in graph.nodes)
        nodes = [node for node in every if node.name in selected and node.callee is None]
        computing = [node for node in nodes if not _moves(node)]
        faults = [fault for node in computing or nodes for fault in found.faults(node, selected[node.name])]
        if isinstance(override, Mapping) and "weight_bits" in override and nodes and not any(map(is_weighted, nodes)):
            faults.append((nodes[0], f"{nodes[0].op} has no weight", "Name a layer with a weight."))
        if faults:
            node, reason, fix = faults[0]
            if len(faults) > 1:
                reason += f"; nor for {', '.join(dict.fromkeys(f'%{other.name}' for other, *_ in faults[1:]))}"
            data = {"pattern": pattern, "override": _spelled(override), "node": node.name, "reason": reason, "fix": fix}
            refused.append(Diagnostic("refused-override", data, node.where))
    return refused


class _Found:
    """Widths of a quantized graph by node of the canonical graph."""

    def __init__(self, canonical: Graph, quantized: Graph, target: Target) -> None:
        self.canonical, self.target = canonical, target
        self.after = {node.name: node for node in quantized.nodes}

    def faults(self, node: Node, wanted: Bits) -> Iterator[tuple[Node, str, str]]:
        """The widths that `node` does not have: the node, the reason, and the remedy."""
        if wanted.is_float:
            return  # followed, or refused by an error
        if node.graph is not self.canonical:
            yield node, f"{node.op} is in a float island, which has no widths", "Remove the override."
            return
        bits = self.result_bits(node)
        if wanted.activation is not None and node.output.type.dtype.is_float and bits != wanted.activation:
            if _moves(node) and bits is not None:
                yield node, f"{node.op} keeps the {bits} bits of its operands", self.override_sources(node, wanted)
            elif bits is not None:
                yield node, f"its result has {bits} bits", self.whole_target(wanted)
            else:
                yield node, "no quantizer reads its result", "Override the node that reads it."
        layer = self.after.get(node.name)
        if wanted.weight is not None and is_weighted(node) and layer is not None:
            source = quantizer_of(layer.inputs[1])
            if source is not None and source.spec.bits != wanted.weight:
                fix = f"Choose the width for all layers: target.override(weight_bits={wanted.weight})."
                yield node, f"its weight has {source.spec.bits} bits", fix

    def result_bits(self, node: Node) -> int | None:
        """Width of the result of a node of the canonical graph; None if nothing quantizes it."""
        step: Node | None = node
        while step is not None:
            quantizer = self.after.get(step.name + QUANTIZED_NAME)
            if is_quantizer(quantizer):
                return quantizer.spec.bits
            now = self.after.get(step.name)
            if now is not None and len(now.outputs) == 1:
                following = quantizer_of(now.output) if _moves(now) else quantizer_after(now)
                readers = quantizers_reading(now.output)
                found = following or (readers[0] if readers else None)
                if found is not None:
                    return found.spec.bits
            follower = only_user(step) if len(step.outputs) == 1 else None
            step = follower if follower is not None and self.target.absorbs(step.op, follower.op) else None
        return None

    def override_sources(self, node: Node, wanted: Bits) -> str:
        """The remedy for an operator that moves elements: the same width for all that it reads."""
        if wanted.activation is not None and not _has_width(self.target, wanted.activation):
            return f"{self.target.name} has no {wanted.activation}-bit activations: choose another width or target."
        names: dict[str, None] = {}
        waiting = list(node.inputs)
        while waiting:
            value = waiting.pop(0)
            producer = value.producer
            if producer is None or producer.definition.has(Trait.LEAF):
                return self.whole_target(wanted)  # an input of the model has no name to override
            if _moves(producer):
                waiting += producer.inputs
            else:
                names[producer.name] = None
        text = ", ".join(f"{name!r}: {wanted.activation}" for name in names)
        return f"Override what it reads: overrides={{{text}}}."

    def whole_target(self, wanted: Bits) -> str:
        """The remedy by a width for all activations."""
        return f"Choose the width for all activations: target.override(activation_bits={wanted.activation})."


def _moves(node: Node) -> bool:
    return node.definition.has(Trait.MOVEMENT)


def _has_width(target: Target, bits: int) -> bool:
    try:
        target.activation_spec(bits=bits)
    except TargetError:
        return False
    return True


def _spelled(override: Override) -> str:
    return repr(dict(override)) if isinstance(override, Mapping) else repr(override)
