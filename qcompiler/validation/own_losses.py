"""The loss of single tensors: noise of the outputs if only one tensor of the graph is quantized.

    x ──► conv(fq(W)) ──► relu ──► y        compared with        x ──► conv(W) ──► relu ──► y

Noise of the whole program accumulates along the graph and shows where it arrives; the loss of a tensor by itself shows
where it comes from. Each measurement is a run of the graph, so only some tensors are measured: those with the largest
expected loss. That is the sum over elements of squared error times sensitivity, the model of `validation.noise`, here
with the errors of these very samples. `benchmarks.noise_ranks` compares the ranks of expected and measured losses.

Source: as for `validation.noise`.
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

__all__ = ["Loss", "own_losses"]

MEASURED = 6
"""Tensors that are measured, each with one run of the graph."""
PROJECTIONS = 8
"""Random projections of the outputs, each with one backward pass: the mean squares of their gradients."""
SAMPLES = 4
"""Most samples whose outputs are projected. A backward pass takes as long as two forward passes."""


@dataclass(frozen=True)
class Loss:
    """Loss of one tensor by itself.

    Args:
        tensor: Name of the tensor.
        where: Name of its quantizer, module path and source line.
        sqnr_db: Signal-to-noise ratio of the outputs if only this tensor is quantized, dB: the mean of the relative
            noise of all float outputs.
        parameter: Whether the tensor is a weight.
        expected_db: Expectation of the model of noise for `sqnr_db`; None where a function has no derivative.
    """

    tensor: str
    where: str
    sqnr_db: float
    parameter: bool
    expected_db: float | None


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
    own = graph.module.tensors
    run = _Runs(graph, inputs, _fused(reference, graph))
    with torch.no_grad():
        tensors, clean = _float_run(run, own, reference.module.tensors, wanted)
        differentiable = True
        try:
            effects = _expected(run.few(), tensors, own)
        except RuntimeError:  # a function of an island may have no derivative
            effects, differentiable = _shares(run, tensors, own), False
        losses = []
        for chosen in sorted(effects, key=effects.__getitem__, reverse=True)[:measured]:

            def only(node: Node, real: Tensor, chosen: Node = chosen) -> Tensor:
                return _quantized(node, real, own) if node is chosen else real

            noise = _noise(clean, run(tensors, only))
            if noise > 0.0:
                name = chosen.name.removesuffix(QUANTIZED_NAME)
                expected = _decibels(effects[chosen]) if differentiable else None
                losses.append(Loss(name, chosen.where, _decibels(noise), is_leaf(chosen.inputs[0]), expected))
    return sorted(losses, key=lambda loss: loss.sqnr_db)


class _Runs:
    """Runs of a graph without quantizers.

    Args:
        graph: At stage QUANTIZED.
        inputs: Float tensors, one per graph input.
        fused: The activation that the code limits of a quantizer replace, by quantizer.
    """

    def __init__(self, graph: Graph, inputs: Sequence[Tensor], fused: Mapping[Node, Node]) -> None:
        self.graph, self.inputs, self.fused = graph, list(inputs), fused

    def few(self) -> _Runs:
        """Runs on the first `SAMPLES` samples, where the batch size is free."""
        free = all(value.type.rank and not isinstance(value.type.shape[0], int) for value in self.graph.inputs)
        return _Runs(self.graph, [x[:SAMPLES] for x in self.inputs], self.fused) if free else self

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


def _float_run(run: _Runs, own: Tensors, floats: Tensors, wanted: Sequence[Tensor]) -> tuple[Tensors, list[Tensor]]:
    """The tensors that give the outputs of the float model, and these outputs."""
    mixed = {name: _float_tensor(tensor, floats.get(name)) for name, tensor in own.items()}
    choices: list[Tensors] = [own]
    if any(mixed[name] is not tensor and not torch.equal(mixed[name], tensor) for name, tensor in own.items()):
        choices.append(mixed)
    runs = [(tensors, run(tensors)) for tensors in choices]
    return min(runs, key=lambda item: _noise(wanted, item[1]))


def _float_tensor(tensor: Tensor, other: Tensor | None) -> Tensor:
    return tensor if other is None or other.shape != tensor.shape or other.dtype != tensor.dtype else other


def _quantized(node: Node, real: Tensor, own: Tensors) -> Tensor:
    """The result of a quantizer: for a weight, of the weight as it was rounded."""
    leaf = node.inputs[0].producer
    if leaf is not None and is_leaf(node.inputs[0]):
        real = own[leaf.text("ref")]
    operands = [own[value.producer.text("ref")] for value in node.inputs[1:] if value.producer is not None]
    return node.definition.evaluate(node, [real, *operands])[0]


def _expected(run: _Runs, tensors: Tensors, own: Tensors) -> dict[Node, float]:
    """The loss that the model of noise expects of each quantizer: sum of e^2 G, as a share of the outputs' power."""
    clean = run(tensors)
    reals: dict[Node, Tensor] = {}
    errors: dict[Node, Tensor] = {}

    def track(node: Node, real: Tensor) -> Tensor:
        with torch.no_grad():
            errors[node] = (_quantized(node, real, own) - real).double().square()
        # A view, because two quantizers of one value have a loss each.
        reals[node] = real.view_as(real) if real.requires_grad else real.detach().requires_grad_()
        return reals[node]

    with torch.enable_grad():
        outputs = run({name: tensor.detach() for name, tensor in tensors.items()}, track)
    generator = torch.Generator().manual_seed(0)
    expected = dict.fromkeys(reals, 0.0)
    share = 1.0 / (PROJECTIONS * max(1, sum(output.is_floating_point() for output in clean)))
    for _ in range(PROJECTIONS):
        signs = [_signs(output, wanted, generator) for output, wanted in zip(outputs, clean, strict=True)]
        chosen = [(output, sign) for output, sign in zip(outputs, signs, strict=True) if output.requires_grad]
        if not chosen:
            break
        with torch.enable_grad():
            found = torch.autograd.grad(
                [output for output, _ in chosen],
                list(reals.values()),
                [sign for _, sign in chosen],
                retain_graph=True,
                allow_unused=True,
            )
        for node, gradient in zip(reals, found, strict=True):
            if gradient is not None:
                lost = gradient.double().square().mul_(errors[node])
                expected[node] += share * float(lost.nan_to_num_(0.0, 0.0, 0.0).sum())
    return expected


def _shares(run: _Runs, tensors: Tensors, own: Tensors) -> dict[Node, float]:
    """The squared error of each quantizer as a share of the power of its tensor."""
    shares: dict[Node, float] = {}

    def measure(node: Node, real: Tensor) -> Tensor:
        shares[node] = _noise([real], [_quantized(node, real, own)])
        return real

    run(tensors, measure)
    return shares


def _signs(output: Tensor, expected: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs divided by the norm of an output; 0 for elements that are not finite."""
    signs = torch.randint(2, output.shape, generator=generator) * 2.0 - 1.0
    finite = torch.isfinite(expected)
    norm = torch.where(finite, expected, 0.0).double().norm() if expected.is_floating_point() else torch.tensor(0.0)
    return torch.where(finite, signs / max(float(norm), torch.finfo(torch.float32).tiny), 0.0).to(output)


def _decibels(noise: float) -> float:
    return -10.0 * math.log10(noise) if noise > 0.0 else math.inf


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
