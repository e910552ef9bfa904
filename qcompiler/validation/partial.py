"""Runs of a QUANTIZED graph in which only some quantizers act, as float fake quantization.

all quantizers      x ──► fq ──► conv(fq(W)) ──► relu ──► fq ──► y
only that of W      x ─────────► conv(fq(W)) ──► relu ─────────► y
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import Evaluation, Tensors, evaluate_node, interpret_with
from qcompiler.ir.registry import Trait
from qcompiler.ops.quantizers import is_leaf, is_quantizer
from qcompiler.validation.layers import QUANTIZED_NAME

__all__ = [
    "SAMPLES",
    "PartialRuns",
    "Replay",
    "float_run",
    "fused_activations",
    "noise_decibels",
    "quantized_operand",
    "relative_noise",
]

SAMPLES = 4
"""Most samples whose outputs are projected. A backward pass takes as long as two forward passes."""


class PartialRuns:
    """Runs of a graph without quantizers.

    Args:
        graph: At stage QUANTIZED.
        inputs: Float tensors, one per graph input.
        fused: The activation that the code limits of a quantizer replace, by quantizer.
    """

    def __init__(self, graph: Graph, inputs: Sequence[Tensor], fused: Mapping[Node, Node]) -> None:
        self.graph, self.inputs, self.fused = graph, list(inputs), fused

    def few(self) -> PartialRuns:
        """Runs on the first `SAMPLES` samples, where the batch size is free."""
        free = all(value.type.rank and not isinstance(value.type.shape[0], int) for value in self.graph.inputs)
        return PartialRuns(self.graph, [x[:SAMPLES] for x in self.inputs], self.fused) if free else self

    def __call__(self, tensors: Tensors, replace: Callable[[Node, Tensor], Tensor] | None = None) -> list[Tensor]:
        """The outputs; `replace` gives the result of each quantizer from its operand."""
        evaluation = Evaluation(tensors)

        def rule(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return self.results(node, operands, evaluation, replace)

        return interpret_with(self.graph, self.inputs, rule)

    def results(
        self,
        node: Node,
        operands: Sequence[Tensor],
        evaluation: Evaluation,
        replace: Callable[[Node, Tensor], Tensor] | None,
    ) -> tuple[Tensor, ...]:
        """The results of one node; `replace` gives that of a quantizer from its operand.

        Args:
            node: Node of the graph.
            operands: Tensors of its operands.
            evaluation: Evaluation of all other operators.
            replace: See `__call__`.
        """
        if node.definition.has(Trait.BIAS_QUANTIZER):
            return (operands[0],)
        if not is_quantizer(node):
            return evaluation(node, operands)
        real = operands[0]
        if node in self.fused:
            (real,) = evaluate_node(self.fused[node], [real])
        return (real if replace is None else replace(node, real),)


def fused_activations(reference: Graph, graph: Graph) -> dict[Node, Node]:
    """The activations of the reference that the code limits of quantizers have replaced."""
    names = {node.name for node in graph.nodes}
    activations = {node.name: node for node in reference.nodes if node.definition.has(Trait.ACTIVATION)}
    quantizers = {node: node.name.removesuffix(QUANTIZED_NAME) for node in graph.nodes if is_quantizer(node)}
    return {node: activations[name] for node, name in quantizers.items() if name in activations and name not in names}


def float_run(
    run: PartialRuns, own: Tensors, floats: Tensors, wanted: Sequence[Tensor]
) -> tuple[Tensors, list[Tensor]]:
    """The tensors that give the outputs of the float model, and these outputs."""
    mixed = {name: _float_tensor(tensor, floats.get(name)) for name, tensor in own.items()}
    choices: list[Tensors] = [own]
    if any(mixed[name] is not tensor and not torch.equal(mixed[name], tensor) for name, tensor in own.items()):
        choices.append(mixed)
    runs = [(tensors, run(tensors)) for tensors in choices]
    return min(runs, key=lambda item: relative_noise(wanted, item[1]))


def _float_tensor(tensor: Tensor, other: Tensor | None) -> Tensor:
    return tensor if other is None or other.shape != tensor.shape or other.dtype != tensor.dtype else other


def quantized_operand(node: Node, real: Tensor, own: Tensors) -> Tensor:
    """The result of a quantizer: for a weight, of the weight as it was rounded."""
    leaf = node.inputs[0].producer
    if leaf is not None and is_leaf(node.inputs[0]):
        real = own[leaf.text("ref")]
    operands = [own[value.producer.text("ref")] for value in node.inputs[1:] if value.producer is not None]
    return node.definition.evaluate(node, [real, *operands])[0]


class Replay:
    """A run whose values are kept, so that a change of few quantizers recomputes only what follows them.

    Args:
        runs: Runs of the graph.
        tensors: Tensors that give the outputs of the float model.
        active: Whether all quantizers act, or none.
    """

    def __init__(self, runs: PartialRuns, tensors: Tensors, *, active: bool) -> None:
        self.runs, self.active = runs, active
        self.own = runs.graph.module.tensors
        self.tensors = tensors
        self._evaluation = Evaluation(tensors)
        self.values: dict[Value, Tensor] = dict(zip(runs.graph.inputs, runs.inputs, strict=True))
        for node in runs.graph.nodes:
            operands = [self.values[value] for value in node.inputs]
            self.values.update(zip(node.outputs, self._results(node, operands, active), strict=True))

    @property
    def outputs(self) -> list[Tensor]:
        """The outputs of the kept run."""
        return [self.values[value] for value in self.runs.graph.outputs]

    def switched(self, quantizers: Collection[Node]) -> list[Tensor]:
        """The outputs if these quantizers act and all others do not, or the other way round.

        Args:
            quantizers: The quantizers that differ from `active`.
        """
        changed: dict[Value, Tensor] = {}
        for node in self.runs.graph.nodes:
            differs = node in quantizers
            if not differs and not any(value in changed for value in node.inputs):
                continue
            operands = [changed.get(value, self.values[value]) for value in node.inputs]
            results = self._results(node, operands, self.active != differs)
            made = zip(node.outputs, results, strict=True)
            changed.update({value: result for value, result in made if not torch.equal(result, self.values[value])})
        return [changed.get(value, self.values[value]) for value in self.runs.graph.outputs]

    def _results(self, node: Node, operands: Sequence[Tensor], active: bool) -> tuple[Tensor, ...]:
        return self.runs.results(node, operands, self._evaluation, self._act if active else None)

    def _act(self, node: Node, real: Tensor) -> Tensor:
        return quantized_operand(node, real, self.own)


def noise_decibels(noise: float) -> float:
    """Signal-to-noise ratio of a noise that is given as a share of the signal's power, dB."""
    return -10.0 * math.log10(noise) if noise > 0.0 else math.inf


def relative_noise(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
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
