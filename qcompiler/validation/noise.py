"""Noise of a quantized graph: measured, and expected from the sensitivity of the outputs.

A quantizer adds an error e to each element of its tensor. Errors of different elements are independent in good
approximation, so the expected squared error of the outputs is a sum over elements:

    E |dy|^2 / |y|^2  =  sum over elements x of  E[e(x)^2] * G(x),      G(x) = E[(d(v . y) / dx)^2] / |y|^2

with random signs v: one backward pass per sample gives G of every tensor (Hutchinson 1990, Communications in Statistics
19(2), for the trace of J^T J). For a weight, the gradient sums over positions first, because all positions share its
error.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import Evaluation, Tensors, interpret_with
from qcompiler.ir.registry import Trait
from qcompiler.quant.affine import along_axis
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.validation.exact import Codes, simulate

__all__ = ["Sensitivities", "decibels", "float_outputs", "sensitivities", "squared_errors"]


def decibels(noise: float) -> float:
    """Signal-to-noise ratio of a noise that is given as a share of the signal's power, dB, with two digits."""
    return float(f"{-10.0 * math.log10(noise):.2f}") if noise > 0.0 else math.inf


def float_outputs(graph: Graph, inputs: Sequence[Tensor], tensors: Tensors) -> list[Tensor]:
    """The outputs of a QUANTIZED graph as if it had no quantizers.

    Args:
        graph: Calibrated or not.
        inputs: Float tensors, one per graph input.
        tensors: Tensors that leaves read.
    """
    evaluation = Evaluation(tensors)

    def rule(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        quantizes = node.definition.has(Trait.QUANTIZER, Trait.BIAS_QUANTIZER)
        return (operands[0],) if quantizes else evaluation(node, operands)

    return interpret_with(graph, list(inputs), rule)


def squared_errors(
    graph: Graph, inputs: Sequence[Tensor], tensors: Tensors, wanted: Sequence[Tensor], arithmetic: Arithmetic
) -> list[float]:
    """Sums of squared differences between the outputs of the integer program and the wanted outputs, one per output.

    Integer and boolean outputs, and elements that are not finite in the float model, count as 0.

    Args:
        graph: At stage QUANTIZED, calibrated.
        inputs: Float tensors, one per graph input.
        tensors: Tensors that leaves read.
        wanted: The outputs of the float model.
        arithmetic: How the target computes.
    """
    found, _ = simulate(graph, inputs, tensors, arithmetic)
    errors = []
    for output, reference in zip(found, wanted, strict=True):
        real = output.real() if isinstance(output, Codes) else output
        assert isinstance(real, Tensor), "an output waits for no quantizer"
        if not reference.is_floating_point() or not real.is_floating_point():
            errors.append(0.0)
            continue
        difference = real.to(torch.float64) - reference.to(torch.float64)
        errors.append(float(torch.where(reference.isfinite(), difference, 0.0).square().sum()))
    return errors


@dataclass(frozen=True)
class Sensitivities:
    """Expected squared error of the outputs, as a share of their power, per squared error of one element.

    Args:
        values: By activation, float64 [channels]: the sum over all other axes, for one sample.
        shifts: By activation, float64 [channels]: the same where all elements of a channel have one error, as in a
            channel that does not vary.
        tensors: By name of a tensor of the model, float64 in its shape.
        limits: By the result of a clamp, float64 [channels]: the sensitivity to the upper limit of each channel.
    """

    values: Mapping[Value, Tensor]
    shifts: Mapping[Value, Tensor]
    tensors: Mapping[str, Tensor]
    limits: Mapping[Value, Tensor]


def sensitivities(
    graph: Graph,
    inputs: Sequence[Tensor],
    tensors: Tensors,
    values: Mapping[Value, int],
    names: Collection[str],
    limits: Mapping[Value, tuple[int, Tensor]],
    generator: torch.Generator,
) -> Sensitivities | None:
    """The sensitivity of the outputs to activations and tensors, from one random projection of one sample's outputs.

    Args:
        graph: A float graph.
        inputs: One sample.
        tensors: Tensors that leaves read.
        values: Activations, with their channel axes.
        names: Names of tensors.
        limits: Results of clamps, with their channel axes and upper limits per channel.
        generator: Generator of the signs.

    Returns:
        The sensitivities; None if no output depends on any of `values` and `names` through differentiable operators. A
        tensor from which no such path leads has sensitivity 0.
    """
    read = {name: tensors[name].detach().requires_grad_() for name in names}
    seen: dict[Value, Tensor] = {}
    moves = {value: torch.zeros(len(high), requires_grad=True) for value, (_, high) in limits.items()}

    def observe(value: Value, tensor: Tensor) -> None:
        if value in values:
            seen[value] = tensor

    def replace(value: Value, tensor: Tensor) -> Tensor:
        # A value before all parameters, such as an input of the model, has no gradient of its own.
        if value in values and not tensor.requires_grad and tensor.is_floating_point():
            tensor = tensor.detach().requires_grad_()
            seen[value] = tensor
        if value in limits:
            axis, high = limits[value]
            end, move = (along_axis(item.to(tensor), tensor.dim(), axis) for item in (high, moves[value]))
            tensor = tensor + torch.where(tensor.detach() >= end, move, 0.0)  # the limit with a move of 0
        return tensor

    with torch.enable_grad():
        rule = Evaluation({**tensors, **read})
        outputs = interpret_with(graph, list(inputs), rule, observe, replace)
        projection = _projection(outputs, generator)
        if projection is None:
            return None
        wanted = [tensor for tensor in (*seen.values(), *read.values(), *moves.values()) if tensor.requires_grad]
        found = torch.autograd.grad(projection, wanted, allow_unused=True)
    by_tensor = {id(tensor): gradient for tensor, gradient in zip(wanted, found, strict=True)}

    def gradient(tensor: Tensor) -> Tensor:
        gradient = by_tensor.get(id(tensor))
        return torch.zeros_like(tensor, dtype=torch.float64) if gradient is None else gradient.to(torch.float64)

    moved = {value: gradient(seen[value]).movedim(axis, 0) for value, axis in values.items()}
    rows = {value: item.reshape(len(item), -1) for value, item in moved.items()}
    return Sensitivities(
        {value: item.square().sum(1) for value, item in rows.items()},
        {value: item.sum(1).square() for value, item in rows.items()},
        {name: gradient(tensor).square() for name, tensor in read.items()},
        {value: gradient(move).square() for value, move in moves.items()},
    )


def _projection(outputs: Sequence[Tensor], generator: torch.Generator) -> Tensor | None:
    """The sum over the outputs of the product with random signs, each divided by the norm of the output."""
    parts = []
    for output in outputs:
        signs = torch.randint(2, output.shape, generator=generator) * 2.0 - 1.0
        if output.requires_grad and output.is_floating_point():
            finite = torch.where(output.isfinite(), output, 0.0)
            norm = finite.detach().to(torch.float64).norm()
            if norm > 0.0:
                parts.append((finite * signs.to(output)).sum() / norm.to(output))
    return torch.stack(parts).sum() / len(parts) ** 0.5 if parts else None
