"""Graphs as modules that the user's `evaluate` calls like the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from qcompiler.errors import InputError
from qcompiler.ir import calls
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.interpret import Tensors, interpret
from qcompiler.ir.settings import callers_defaults, own_defaults
from qcompiler.ops.quantizers import quantizes_parameter
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.storage.tensors import row_major
from qcompiler.validation.exact import Codes, simulate
from qcompiler.validation.partial import PartialRuns, quantized_operand

__all__ = [
    "AsModel",
    "Seen",
    "bypassed_model",
    "exact_model",
    "first_samples",
    "float_model",
    "partial_model",
    "scored",
]

Run = Callable[[list[Tensor]], Sequence[object]]
KEPT = 32
"""Batches of an evaluation that are kept as calibration data."""


class AsModel(nn.Module):
    """A graph that is called like the model from which it was captured.

    Args:
        graph: Graph with the nesting of the model's inputs and outputs.
        run: Function from flat inputs to flat outputs.
    """

    def __init__(self, graph: Graph, run: Run) -> None:
        super().__init__()
        self._graph, self.run = graph, run
        self.eval()

    def forward(self, *inputs: object, **named: object) -> object:
        """Results as the model returns them; arguments as for the model."""
        call = calls.bind(self._graph.input_tree, self._graph.input_names, inputs, named)
        with own_defaults(), torch.no_grad():
            return call.results(self._graph.output_tree, self.run(call.tensors))


class Seen:
    """The inputs that an evaluation used."""

    def __init__(self) -> None:
        self.batches: list[list[Tensor]] = []

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Keep a batch, if there are few so far."""
        if len(self.batches) < KEPT:
            self.batches.append([tensor.detach().cpu().clone() for tensor in tensors])


def float_model(graph: Graph, seen: Seen) -> AsModel:
    """The float model; `seen` gets its inputs."""

    def run(inputs: list[Tensor]) -> Sequence[object]:
        seen.keep(inputs)
        return interpret(graph, inputs, graph.module.tensors)[0]

    return AsModel(graph, run)


def exact_model(graph: Graph, arithmetic: Arithmetic) -> AsModel:
    """The quantized model as the integer program computes it."""

    def run(inputs: list[Tensor]) -> Sequence[object]:
        found, _ = simulate(graph, inputs, graph.module.tensors, arithmetic)
        return [item.real() if isinstance(item, Codes) else item for item in found]

    return AsModel(graph, run)


def partial_model(graph: Graph, fused: Mapping[Node, Node], tensors: Tensors, *, weights: bool) -> AsModel:
    """The model with only its weights, or only its activations, as float fake quantization.

    Args:
        graph: At stage QUANTIZED, calibrated.
        fused: Activations that code limits of quantizers replace; see `fused_activations`.
        tensors: Tensors that give the outputs of the float model; see `float_run`.
        weights: Whether weights are quantized; otherwise activations are.
    """
    own = graph.module.tensors

    def run(inputs: list[Tensor]) -> Sequence[object]:
        runs = PartialRuns(graph, inputs, fused)
        return runs(tensors, act)

    def act(node: Node, real: Tensor) -> Tensor:
        return quantized_operand(node, real, own) if quantizes_parameter(node) is weights else real

    return AsModel(graph, run)


def bypassed_model(graph: Graph, fused: Mapping[Node, Node], tensors: Tensors) -> AsModel:
    """The quantized graph with all quantizers bypassed; arguments as for `partial_model`."""
    return AsModel(graph, lambda inputs: PartialRuns(graph, inputs, fused)(tensors))


def scored(evaluate: Callable[[nn.Module], float], model: AsModel) -> float:
    """The score of a model.

    Raises:
        InputError: The function of the caller returns no number.
    """
    with callers_defaults(), torch.no_grad():
        score = evaluate(model)
    try:
        number = float(score)
    except (TypeError, ValueError):
        raise InputError(
            f"evaluate returned {type(score).__name__}", expected="a number, such as an accuracy, larger is better"
        ) from None
    if math.isnan(number):
        raise InputError("evaluate returned NaN", expected="a number, such as an accuracy, larger is better")
    return number


def first_samples(graph: Graph, batches: Iterable[Sequence[Tensor]], count: int) -> list[Tensor]:
    """The first samples of flat batches, joined along the first axis; the first batch if its size is fixed.

    Args:
        graph: Graph with these inputs.
        batches: Flat batches.
        count: Largest number of samples.
    """
    free = all(value.type.rank and not isinstance(value.type.shape[0], int) for value in graph.inputs)
    found: list[list[Tensor]] = []
    for batch in batches:
        found.append([tensor.cpu() for tensor in batch])
        if not free or sum(len(rows[0]) for rows in found) >= count:
            break
    if not free:
        return found[0]
    return [row_major(torch.cat(column)[:count]) for column in zip(*found, strict=True)]
