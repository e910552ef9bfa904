"""The loss of single tensors: noise of the outputs if only one tensor of the graph is quantized.

    x ──► conv(fq(W)) ──► relu ──► y        compared with        x ──► conv(W) ──► relu ──► y

Noise of the whole program accumulates along the graph and shows where it arrives; the loss of a tensor by itself shows
where it comes from. Each measurement is a run of the graph, so only some tensors are measured: those with the lowest
signal-to-noise ratio of their own elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.interpret import Evaluation, Tensors, evaluate_node, interpret_with
from qcompiler.ir.registry import Trait
from qcompiler.ops.quantizers import is_leaf, is_quantizer
from qcompiler.validation.layers import QUANTIZED_NAME
from qcompiler.validation.metrics import sqnr_db

__all__ = ["Loss", "own_losses"]

MEASURED = 8
"""Tensors that are measured, each with one run of the graph."""


@dataclass(frozen=True)
class Loss:
    """Loss of one tensor by itself.

    Args:
        tensor: Name of the tensor.
        where: Name of its quantizer, module path and source line.
        sqnr_db: Signal-to-noise ratio of the outputs if only this tensor is quantized, dB: the mean of the relative
            noise of all float outputs.
        parameter: Whether the tensor is a weight.
    """

    tensor: str
    where: str
    sqnr_db: float
    parameter: bool


def own_losses(
    reference: Graph, graph: Graph, inputs: Sequence[Tensor], wanted: Sequence[Tensor], *, measured: int = MEASURED
) -> list[Loss]:
    """The tensors that lose most by themselves, the worst first.

    Args:
        reference: Graph before quantizers were inserted. Its tensors replace weights that were rounded, unless a later
            pass has rescaled the graph, so that they no longer give the outputs of the float model.
        graph: At stage QUANTIZED, calibrated.
        inputs: Float tensors, one per graph input.
        wanted: Outputs of the float model.
        measured: Number of tensors that are measured.

    Returns:
        Up to `measured` losses; tensors whose rounding changes no output are absent.
    """
    own, floats = graph.module.tensors, reference.module.tensors
    mixed = {name: _float_tensor(name, tensor, floats) for name, tensor in own.items()}
    run = _Runs(graph, inputs, _fused(reference, graph))
    with torch.no_grad():
        runs = [(tensors, run(tensors)) for tensors in (own, mixed)]
        tensors, clean = min(runs, key=lambda item: _noise(wanted, item[1]))
        local: dict[Node, float] = {}

        def measure(node: Node, real: Tensor) -> Tensor:
            local[node] = sqnr_db(real, _quantized(node, real, own))
            return real

        run(tensors, measure)
        losses = []
        for chosen in sorted(local, key=local.__getitem__)[:measured]:

            def only(node: Node, real: Tensor, chosen: Node = chosen) -> Tensor:
                return _quantized(node, real, own) if node is chosen else real

            noise = _noise(clean, run(tensors, only))
            if noise > 0.0:
                name = chosen.name.removesuffix(QUANTIZED_NAME)
                losses.append(Loss(name, chosen.where, -10.0 * math.log10(noise), is_leaf(chosen.inputs[0])))
    return sorted(losses, key=lambda loss: loss.sqnr_db)


def _float_tensor(name: str, tensor: Tensor, floats: Tensors) -> Tensor:
    other = floats.get(name)
    return tensor if other is None or other.shape != tensor.shape or other.dtype != tensor.dtype else other


def _quantized(node: Node, real: Tensor, own: Tensors) -> Tensor:
    """The result of a quantizer: for a weight, of the weight as it was rounded."""
    leaf = node.inputs[0].producer
    if leaf is not None and is_leaf(node.inputs[0]):
        real = own[leaf.text("ref")]
    operands = [own[value.producer.text("ref")] for value in node.inputs[1:] if value.producer is not None]
    return node.definition.evaluate(node, [real, *operands])[0]


class _Runs:
    """Runs of a graph without quantizers.

    Args:
        graph: At stage QUANTIZED.
        inputs: Float tensors, one per graph input.
        fused: The activation that the code limits of a quantizer replace, by quantizer.
    """

    def __init__(self, graph: Graph, inputs: Sequence[Tensor], fused: Mapping[Node, Node]) -> None:
        self.graph, self.inputs, self.fused = graph, list(inputs), fused

    def __call__(self, tensors: Tensors, replace: Callable[[Node, Tensor], Tensor] | None = None) -> list[Tensor]:
        """The outputs; `replace` gives the result of each quantizer from its operand."""
        evaluation = Evaluation(tensors)

        def rule(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
            if node.definition.has(Trait.BIAS_QUANTIZER):
                return (operands[0],)
            if not is_quantizer(node):
                return evaluation(node, operands)
            real = operands[0]
            if node in self.fused:
                (real,) = evaluate_node(self.fused[node], [real])
            return (real if replace is None else replace(node, real),)

        return interpret_with(self.graph, self.inputs, rule)


def _fused(reference: Graph, graph: Graph) -> dict[Node, Node]:
    """The activations of the reference that the code limits of quantizers have replaced."""
    names = {node.name for node in graph.nodes}
    activations = {node.name: node for node in reference.nodes if node.definition.has(Trait.ACTIVATION)}
    quantizers = {node: node.name.removesuffix(QUANTIZED_NAME) for node in graph.nodes if is_quantizer(node)}
    return {node: activations[name] for node, name in quantizers.items() if name in activations and name not in names}


def _noise(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Squared error divided by squared signal, the mean over the float outputs; only finite elements count."""
    ratios = []
    for reference, output in zip(wanted, found, strict=True):
        if not reference.is_floating_point():
            continue
        finite = torch.isfinite(reference)
        signal = torch.where(finite, reference, 0.0).double().square().sum()
        error = torch.where(finite, reference - output, 0.0).double().square().sum()
        ratios.append(float(error / signal) if signal > 0 else float(error))
    return sum(ratios) / max(len(ratios), 1)
