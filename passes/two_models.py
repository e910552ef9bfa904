"""The float model and the quantized one side by side on the same data, layer by layer, in one walk over the graph.

Passes that change a layer so that its result comes nearer to the float one see, at each layer, what it reads in both
models, with all layers before changed already. All batches go through a node before the next one is visited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.interpret import LEAVES, evaluate_node, interpret_with
from qcompiler.passes.equalization import is_layer


@dataclass
class Pair:
    """A value in both models, one tensor per batch; the same list where they do not differ."""

    real: list[Tensor]
    quantized: list[Tensor]


Layer = Callable[[Node, Sequence[Pair], Pair], bool]
"""(layer, operands, result) -> whether the layer was changed, so that its quantized result is to be computed anew."""


def run_both(graph: Graph, batches: Sequence[Sequence[Tensor]], layer: Layer) -> None:
    """Walk over a QUANTIZED graph with both models.

    Quantizers of weights count in the quantized model; those of activations and biases let values pass in both.

    Args:
        graph: Weights calibrated.
        batches: Flat inputs.
        layer: Called for each layer whose weight is a parameter; may change its parameters.
    """
    count = len(batches)

    def rule(node: Node, operands: Sequence[Pair]) -> tuple[Pair, ...]:
        if node.op in LEAVES:
            tensors = [evaluate_node(node, [])[0]] * count
            return (Pair(tensors, tensors),)
        if node.op == "fake_quantize" and node.inputs[0].producer is not None and node.inputs[0].producer.op in LEAVES:
            weight = operands[0].real
            return (Pair(weight, [evaluate_node(node, [part.quantized[0] for part in operands])[0]] * count),)
        if node.op in ("fake_quantize", "fake_quantize_bias"):
            return (operands[0],)
        real = _results(node, [part.real for part in operands], count)
        if all(part.real is part.quantized for part in operands):
            return tuple(Pair(part, part) for part in real)
        quantized = _results(node, [part.quantized for part in operands], count)
        pairs = tuple(Pair(a, b) for a, b in zip(real, quantized, strict=True))
        if is_layer(node) and layer(node, operands, pairs[0]):
            fresh = [operands[0].quantized, *([_reevaluated(node, index)] * count for index in range(1, len(operands)))]
            return (Pair(pairs[0].real, _results(node, fresh, count)[0]),)
        return pairs

    inputs = [Pair(tensors, tensors) for tensors in map(list, zip(*batches, strict=True))]
    with torch.no_grad():
        interpret_with(graph, inputs, rule)


def _results(node: Node, operands: Sequence[Sequence[Tensor]], count: int) -> list[list[Tensor]]:
    """Results of a node for each batch: one list per result."""
    found = [evaluate_node(node, [tensors[batch] for tensors in operands]) for batch in range(count)]
    return [list(parts) for parts in zip(*found, strict=True)]


def _reevaluated(node: Node, index: int) -> Tensor:
    """A parameter of a layer as it is now: quantized if it is a weight, itself if it is a bias."""
    maker = node.inputs[index].producer
    assert maker is not None
    if maker.op == "fake_quantize":
        return evaluate_node(maker, [evaluate_node(_maker(maker, i), [])[0] for i in range(3)])[0]
    return evaluate_node(_maker(maker, 0) if maker.op == "fake_quantize_bias" else maker, [])[0]


def _maker(node: Node, index: int) -> Node:
    producer = node.inputs[index].producer
    assert producer is not None
    return producer
