"""Run the calibration batches once and pass each observer its tensors, without keeping activations.

Several processes run a share of the batches each and merge their summaries exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Sized
from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.calibration.observers import Observer
from qcompiler.calibration.processes import Processes
from qcompiler.errors import CalibrationError, InputError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import Evaluation, check_inputs, interpret_with
from qcompiler.ir.registry import Trait
from qcompiler.ops.quantizers import activation_bounds
from qcompiler.quant.affine import along_axis

Progress: TypeAlias = Callable[[str, float, float], None]
"""Called with a text, the number of batches done, and their total, or 0 if the total is unknown."""


def observe(
    graph: Graph,
    batches: Iterable[list[Tensor]],
    observers: Mapping[Value, Observer],
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> tuple[int, dict[Value, Observer]]:
    """Pass the values of `graph` on `batches` to `observers`.

    Memory is that of one forward pass and the observers' summaries, for any number of batches.

    Args:
        graph: Graph at any float stage. Quantizers without a range pass values unchanged.
        batches: Flat inputs.
        observers: Observers by value; one observer may serve several values.
        processes: Processes that share the batches.
        progress: Callback before each batch.

    Returns:
        The number of batches, and by value the observers of all batches; the given observers themselves for a single
        process.

    Raises:
        CalibrationError: There is no batch, or a value is not finite.
        InputError: A batch does not fit the graph; the message names its position.
    """
    processes = processes or Processes()
    rule = _Rule(graph, observers)
    total = len(batches) if isinstance(batches, Sized) else 0
    count = 0
    for index, batch in enumerate(batches):

        def show(value: Value, tensor: Tensor, index: int = index) -> None:
            observer = observers.get(value)
            if observer is not None:
                observer.update(tensor, index=index)

        _check_batch(graph, batch, index)
        if progress is not None:
            progress(f"batch {index + 1}", index, total)
        if processes.owns(index):
            with torch.no_grad():
                interpret_with(graph, batch, rule, show)
        count += 1
    if not count:
        raise CalibrationError("calibration_data is empty", expected="at least one batch")
    return count, _merged(observers, processes)


class _Rule:
    """Evaluation of nodes: once for nodes independent of inputs (quantized weights), in place for clamps after layers.

    Allocating an activation costs more than clamping it.
    """

    def __init__(self, graph: Graph, observed: Container[Value]) -> None:
        self.evaluation = Evaluation(graph.module.tensors)
        self.fixed: dict[Node, tuple[Tensor, ...] | None] = {}
        self.in_place: set[Node] = set()
        for node in graph.nodes:
            if all(value.producer in self.fixed for value in node.inputs):
                self.fixed[node] = None
            elif node.op in _IN_PLACE:
                x = node.inputs[0]
                alone = sum(x.users.values()) == 1 and not graph.is_output(x) and x not in observed
                if alone and x.producer is not None and x.producer.definition.has(Trait.MAC):
                    self.in_place.add(node)

    def __call__(self, node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if node in self.in_place:
            return (_IN_PLACE[node.op](node, operands),)
        if node not in self.fixed:
            return self.evaluation(node, operands)
        results = self.fixed[node]
        if results is None:
            results = self.fixed[node] = self.evaluation(node, operands)
        return results


def _clamp(node: Node, operands: Sequence[Tensor]) -> Tensor:
    return operands[0].clamp_(*activation_bounds(node))


def _clamp_channels(node: Node, operands: Sequence[Tensor]) -> Tensor:
    x, axis = operands[0], node.integer("axis")
    low, high = (along_axis(limit, x.dim(), axis) for limit in operands[1:])
    return torch.minimum(torch.maximum(x, low, out=x), high, out=x)


_IN_PLACE: Mapping[str, Callable[[Node, Sequence[Tensor]], Tensor]] = {
    "relu": lambda node, operands: operands[0].relu_(),
    "clamp": _clamp,
    "clamp_channels": _clamp_channels,
}


def _merged(observers: Mapping[Value, Observer], processes: Processes) -> dict[Value, Observer]:
    if processes.count == 1:
        return dict(observers)
    distinct = list(dict.fromkeys(observers.values()))
    merged = {}
    for observer, *states in zip(distinct, *processes.gather([item.state() for item in distinct]), strict=True):
        parts = [observer.from_state(state) for state in states]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.merge(part)
        merged[observer] = whole
    return {value: merged[observer] for value, observer in observers.items()}


def _check_batch(graph: Graph, batch: list[Tensor], index: int) -> None:
    try:
        check_inputs(graph, batch)
    except InputError as error:
        where = f"batch {index} of calibration_data"
        raise InputError(error.found, where=where, expected=error.expected, fix=error.fix) from None
