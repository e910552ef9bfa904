"""Noise of a quantized graph: the difference of its outputs from those of the float model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.interpret import Evaluation, Tensors, interpret_with
from qcompiler.ir.registry import Trait
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.validation.exact import Codes, simulate

__all__ = ["float_outputs", "squared_errors"]


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
