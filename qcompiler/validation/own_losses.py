"""The loss of single tensors: noise of the outputs if only one tensor of the graph is quantized.

    x ──► conv(fq(W)) ──► relu ──► y        compared with        x ──► conv(W) ──► relu ──► y

Noise of the whole program accumulates along the graph and shows where it arrives; the loss of a tensor by itself shows
where it comes from. Each measurement is a run of the graph, so only some tensors are measured: those with the largest
expected loss. That is the sum over elements of squared error times sensitivity, the model of `validation.noise`, here
with the errors of these very samples. `benchmarks.noise_ranks` compares the ranks of expected and measured losses.

Source: as for `validation.noise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.interpret import Tensors
from qcompiler.ops.quantizers import is_leaf
from qcompiler.validation.layers import QUANTIZED_NAME
from qcompiler.validation.partial import (
    PartialRuns,
    float_run,
    fused_activations,
    noise_decibels,
    quantized_operand,
    relative_noise,
)

__all__ = ["Loss", "expected_noise", "own_losses"]

MEASURED = 6
"""Tensors that are measured, each with one run of the graph."""
PROJECTIONS = 8
"""Random projections of the outputs, each with one backward pass: the mean squares of their gradients."""


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
    run = PartialRuns(graph, inputs, fused_activations(reference, graph))
    with torch.no_grad():
        tensors, clean = float_run(run, own, reference.module.tensors, wanted)
        differentiable = True
        try:
            effects = expected_noise(run.few(), tensors, own)
        except RuntimeError:  # a function of an island may have no derivative
            effects, differentiable = _shares(run, tensors, own), False
        losses = []
        for chosen in sorted(effects, key=effects.__getitem__, reverse=True)[:measured]:

            def only(node: Node, real: Tensor, chosen: Node = chosen) -> Tensor:
                return quantized_operand(node, real, own) if node is chosen else real

            noise = relative_noise(clean, run(tensors, only))
            if noise > 0.0:
                name = chosen.name.removesuffix(QUANTIZED_NAME)
                expected = noise_decibels(effects[chosen]) if differentiable else None
                losses.append(Loss(name, chosen.where, noise_decibels(noise), is_leaf(chosen.inputs[0]), expected))
    return sorted(losses, key=lambda loss: loss.sqnr_db)


def expected_noise(run: PartialRuns, tensors: Tensors, own: Tensors) -> dict[Node, float]:
    """The loss that the model of noise expects of each quantizer: sum of e^2 G, as a share of the outputs' power.

    Args:
        run: Runs of a QUANTIZED graph on some samples.
        tensors: Tensors that give the outputs of the float model; see `float_run`.
        own: The tensors of the graph.

    Raises:
        RuntimeError: A function of a float island has no derivative.
    """
    clean = run(tensors)
    reals: dict[Node, Tensor] = {}
    errors: dict[Node, Tensor] = {}
    expected: dict[Node, float] = {}

    def add(node: Node, gradient: Tensor) -> None:
        lost = gradient.double().square_().mul_(errors[node])
        expected[node] += share * float(lost.nan_to_num_(0.0, 0.0, 0.0).sum())

    def track(node: Node, real: Tensor) -> Tensor:
        with torch.no_grad():
            errors[node] = (quantized_operand(node, real, own) - real).square_()
        # A view, because two quantizers of one value have a loss each.
        reals[node] = real.view_as(real) if real.requires_grad else real.detach().requires_grad_()
        # The gradient is used where it arises: those of all tensors at once would take the memory of all tensors.
        reals[node].register_hook(lambda gradient: add(node, gradient))
        return reals[node]

    with torch.enable_grad():
        outputs = run({name: tensor.detach() for name, tensor in tensors.items()}, track)
    generator = torch.Generator().manual_seed(0)
    expected.update(dict.fromkeys(reals, 0.0))
    leaves = [real for real in reals.values() if real.is_leaf]
    share = 1.0 / (PROJECTIONS * max(1, sum(output.is_floating_point() for output in clean)))
    for _ in range(PROJECTIONS):
        signs = [_signs(output, wanted, generator) for output, wanted in zip(outputs, clean, strict=True)]
        chosen = [(output, sign) for output, sign in zip(outputs, signs, strict=True) if output.requires_grad]
        if not chosen:
            break
        with torch.enable_grad():
            torch.autograd.grad(
                [output for output, _ in chosen],
                leaves,
                [sign for _, sign in chosen],
                retain_graph=True,
                allow_unused=True,
            )
    return expected


def _shares(run: PartialRuns, tensors: Tensors, own: Tensors) -> dict[Node, float]:
    """The squared error of each quantizer as a share of the power of its tensor."""
    shares: dict[Node, float] = {}

    def measure(node: Node, real: Tensor) -> Tensor:
        shares[node] = relative_noise([real], [quantized_operand(node, real, own)])
        return real

    run(tensors, measure)
    return shares


def _signs(output: Tensor, expected: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs divided by the norm of an output; 0 for elements that are not finite."""
    signs = torch.randint(2, output.shape, generator=generator) * 2.0 - 1.0
    finite = torch.isfinite(expected)
    norm = torch.where(finite, expected, 0.0).double().norm() if expected.is_floating_point() else torch.tensor(0.0)
    return torch.where(finite, signs / max(float(norm), torch.finfo(torch.float32).tiny), 0.0).to(output)
