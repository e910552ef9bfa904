"""Float islands in ONNX operators, written by torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

import onnx_graphsurgeon as gs
import torch
from onnx import inliner
from torch import Tensor, nn

from qcompiler.errors import UnsupportedError
from qcompiler.ir.dims import evaluate_dim, symbols_of
from qcompiler.ir.graph import Graph
from qcompiler.ir.interpret import evaluate_node, interpret_with

Surgeon: TypeAlias = Any
"""A graph of onnx-graphsurgeon, which carries no types."""

LEAST_OPSET = 18
"""The first opset that torch's exporter writes."""

_MOVES = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators through which ONNX Runtime moves quantizers, and those that it takes away."""

_BATCH = 3
"""Size at which symbols are traced: neither 0 nor 1, which torch treats in ways of their own."""


def export(graph: Graph, opset: int, where: str) -> Surgeon:
    """`graph` in ONNX operators.

    Args:
        graph: On real numbers.
        opset: Opset of the file, at least `LEAST_OPSET`.
        where: The node that calls it, for messages.

    Returns:
        A graph with as many inputs and outputs, in the same order.

    Raises:
        UnsupportedError: It holds a function that torch's exporter cannot write.
    """
    sizes = {name: min(max(low, _BATCH), high) for name, (low, high) in graph.bounds.items()}
    examples, dynamic = [], []
    for value in graph.inputs:
        shape = [evaluate_dim(dim, sizes) for dim in value.type.shape]
        examples.append(torch.zeros(shape, dtype=value.type.dtype.torch))
        free = [index for index, dim in enumerate(value.type.shape) if symbols_of(dim)]
        dynamic.append(dict.fromkeys(free, torch.export.Dim.DYNAMIC))
    try:
        with _quiet():
            program = torch.onnx.export(
                _Runner(graph),
                tuple(examples),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=(tuple(dynamic),),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # whatever torch's exporter raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(
            f"torch.onnx cannot write the float island @{graph.name}: {lines[0]}",
            where=where,
            fix="Give each function of it an operator that torch.onnx knows.",
        ) from error
    assert program is not None
    model = inliner.inline_local_functions(program.model_proto)
    return gs.import_onnx(model)


def keep_softmax_apart(island: Surgeon, output: gs.Tensor) -> None:
    """Put a Sum of one operand between a Softmax and the quantizer of its result.

    ONNX Runtime's QLinearSoftmax is right on the grid of 1/256 alone: with another scale its codes wrap, or lie several
    steps away. The optimizer finds the two also through what only moves elements.

    Args:
        island: The graph, which is changed where a Softmax gives the output.
        output: An output of the graph that is quantized.
    """
    maker = output.inputs[0] if output.inputs else None
    while maker is not None and maker.op in _MOVES and maker.inputs[0].inputs:
        maker = maker.inputs[0].inputs[0]
    if maker is None or maker.op != "Softmax":
        return
    (result,) = maker.outputs
    apart = gs.Variable(f"{result.name}.apart", dtype=result.dtype)
    maker.outputs = [apart]
    position = next(index for index, item in enumerate(island.nodes) if item is maker)
    island.nodes.insert(position + 1, gs.Node("Sum", inputs=[apart], outputs=[result]))


class _Runner(nn.Module):
    """A graph as a module that torch can export."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, flat."""
        return tuple(interpret_with(self.graph, inputs, evaluate_node))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and advice: what matters is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
