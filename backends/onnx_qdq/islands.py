"""Float islands in ONNX operators, written by torch's exporter."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import onnx
import onnx_graphsurgeon as gs
import torch
from onnx import inliner
from torch import Tensor, nn

from qcompiler.errors import UnsupportedError
from qcompiler.ir.dims import evaluate_dim, symbols_of
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import Evaluation, interpret_with

Surgeon: TypeAlias = Any
"""A graph of onnx-graphsurgeon, which has no type annotations."""

LEAST_OPSET = 18
"""The first opset that torch's exporter writes."""

_MOVES = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators through which ONNX Runtime moves quantizers, and operators that it removes."""

_CLIPS = ("Clip", "Relu")
"""Operators that ONNX Runtime merges into the preceding layer."""

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose float32 weights ONNX Runtime quantizes; a matrix product only after it is fused with its bias."""

_BATCH = 3
"""Size for tracing symbols; not 0 or 1, which torch treats specially."""


def export(calls: Sequence[Node], opset: int) -> dict[Node, Surgeon]:
    """The graphs that `calls` run, in ONNX operators.

    One run of torch's exporter writes all graphs, because most of its time does not depend on their size. Its result is
    then split: the part of a graph is everything that its outputs need.

    Args:
        calls: Nodes that call graphs on real numbers.
        opset: Opset of the file, at least `LEAST_OPSET`.

    Returns:
        For each node a graph with the same inputs and outputs as the called one, in the same order. The graphs share no
        tensors.

    Raises:
        UnsupportedError: torch's exporter cannot write a function of a graph, or writes what ONNX does not allow.
    """
    graphs = [_called(node) for node in calls]
    whole = None
    if len(calls) > 1:
        with contextlib.suppress(Exception):  # torch's exporter may raise any error
            whole = _written(graphs, opset)
    # Bodies of loops and branches refer to tensors outside of them by name, so their graphs are not split.
    if whole is not None and not any(True for node in whole.nodes for _ in node.subgraphs()):
        return dict(zip(calls, _split(whole, graphs), strict=True))
    # Alone, each graph is written, or its error names its call.
    return {node: _alone(node, opset) for node in calls}


def _alone(node: Node, opset: int) -> Surgeon:
    """The graph that `node` runs, written by itself."""
    graph = _called(node)
    try:
        return _written([graph], opset)
    except Exception as error:  # torch's exporter may raise any error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(
            f"torch.onnx cannot write the float island @{graph.name}: {lines[0]}",
            where=node.where,
            fix="Replace functions that torch.onnx does not support.",
        ) from error


def _called(node: Node) -> Graph:
    graph = node.callee
    assert graph is not None, "a call has a graph"
    return graph


def _written(graphs: Sequence[Graph], opset: int) -> Surgeon:
    """One ONNX graph with the inputs and the outputs of all `graphs`."""
    examples, dynamic = [], []
    for graph in graphs:
        sizes = {name: min(max(low, _BATCH), high) for name, (low, high) in graph.bounds.items()}
        for value in graph.inputs:
            shape = [evaluate_dim(dim, sizes) for dim in value.type.shape]
            examples.append(torch.zeros(shape, dtype=value.type.dtype.torch))
            free = [index for index, dim in enumerate(value.type.shape) if symbols_of(dim)]
            dynamic.append(dict.fromkeys(free, torch.export.Dim.DYNAMIC))
    with _quiet():
        program = torch.onnx.export(
            _Runner(graphs),
            tuple(examples),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=(tuple(dynamic),),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = inliner.inline_local_functions(program.model_proto)
    # The exporter writes integers into operators that have no integers.
    onnx.checker.check_model(model, full_check=True)
    return gs.import_onnx(model)


def _split(whole: Surgeon, graphs: Sequence[Graph]) -> Iterator[Surgeon]:
    """The part of each of `graphs`, in the order of `whole`."""
    inputs, outputs = iter(whole.inputs), iter(whole.outputs)
    places = {id(node): place for place, node in enumerate(whole.nodes)}
    for graph in graphs:
        own = list(itertools.islice(inputs, len(graph.inputs)))
        ends = list(itertools.islice(outputs, len(graph.outputs)))
        yield _part(own, ends, places)


def _part(inputs: Sequence[gs.Tensor], outputs: Sequence[gs.Tensor], places: Mapping[int, int]) -> Surgeon:
    """Copies of the nodes that `outputs` need; `places` orders nodes."""
    found: dict[int, Surgeon] = {}
    waiting = list(outputs)
    while waiting:
        maker = _maker(waiting.pop())
        if maker is not None and id(maker) not in found:
            found[id(maker)] = maker
            waiting += maker.inputs
    # Graphs may share constants and what is computed from constants alone, so that each gets copies.
    twins = {id(tensor): gs.Variable(tensor.name, tensor.dtype, tensor.shape) for tensor in inputs}

    def twin(tensor: gs.Tensor) -> gs.Tensor:
        if id(tensor) not in twins:
            constant = isinstance(tensor, gs.Constant)
            twins[id(tensor)] = (
                gs.Constant(tensor.name, tensor.values)
                if constant
                else gs.Variable(tensor.name, tensor.dtype, tensor.shape)
            )
        return twins[id(tensor)]

    nodes = [
        gs.Node(
            node.op,
            node.name,
            node.attrs,
            [twin(item) for item in node.inputs],
            [twin(item) for item in node.outputs],
            node.domain,
        )
        for node in sorted(found.values(), key=lambda node: places[id(node)])
    ]
    return gs.Graph(nodes, [twin(item) for item in inputs], [twin(item) for item in outputs])


def keep_apart(island: Surgeon, output: gs.Tensor, codes: Sequence[Value]) -> None:
    """Put a Sum of one operand between a Softmax or a layer and the quantizers of its result.

    ONNX Runtime's optimizer replaces an operator between DequantizeLinear and QuantizeLinear with an integer kernel,
    even with operators in between that only move or clip elements:

    - QLinearSoftmax is correct only on the grid of 1/256; with other scales its codes wrap, or differ by several steps.
    - A convolution or linear layer with float32 weights gets int8 weights with one scale for all channels, although it
      has to stay in float.

    Args:
        island: The graph; changed if one of these operators computes the output.
        output: An output of the graph.
        codes: Results of the quantizers that read it.
    """
    maker = _maker(output) if codes else None
    while maker is not None and maker.op in (*_MOVES, *_CLIPS) and maker.inputs[0].inputs:
        maker = _maker(maker.inputs[0])
    if maker is None:
        return
    operands = [_maker(item) for item in maker.inputs] if maker.op == "Add" else []
    product_and_bias = any(item is not None and item.op == "MatMul" for item in operands)
    wraps = maker.op == "Softmax" and not all(map(_is_grid_of_softmax, codes))
    if not (wraps or maker.op in _LAYERS or product_and_bias):
        return
    (result,) = maker.outputs
    apart = gs.Variable(f"{result.name}.apart", dtype=result.dtype)
    maker.outputs = [apart]
    position = next(index for index, item in enumerate(island.nodes) if item is maker)
    island.nodes.insert(position + 1, gs.Node("Sum", inputs=[apart], outputs=[result]))


def _is_grid_of_softmax(value: Value) -> bool:
    """Whether codes have the grid of 1/256 that starts at the lowest code."""
    quant = value.type.quant
    return quant is not None and (quant.scale, quant.zero_point) == ((2.0**-8,), (value.type.dtype.limits[0],))


def _maker(tensor: gs.Tensor) -> Surgeon | None:
    """The node that computes `tensor`; None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


class _Runner(nn.Module):
    """Graphs as a module that torch can export."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        super().__init__()
        self.graphs = graphs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all graphs, flat."""
        left = iter(inputs)
        return tuple(
            tensor
            for graph in self.graphs
            for tensor in interpret_with(
                graph, list(itertools.islice(left, len(graph.inputs))), Evaluation(graph.module.tensors)
            )
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress and advice; problems are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
