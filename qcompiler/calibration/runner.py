"""Runs the calibration batches once and shows each observer its tensors. Activations are dropped as soon as seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from qcompiler.calibration.observers import Observer
from qcompiler.errors import CalibrationError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import interpret


def observe(graph: Graph, batches: Iterable[list[Tensor]], observers: Mapping[Value, Observer]) -> int:
    """Show `observers` the values of `graph` on `batches`.

    Memory is that of one forward pass and the observers' summaries, however many batches there are.

    Args:
        graph: At any float stage. Quantizers without a range let values pass.
        batches: Flat inputs.
        observers: By value; one observer may serve several values.

    Returns:
        The number of batches.

    Raises:
        CalibrationError: There is no batch, or a value is not finite.
        InputError: A batch does not fit the graph.
    """
    count = 0
    for index, batch in enumerate(batches):
        count += 1

        def show(value: Value, tensor: Tensor, index: int = index) -> None:
            observer = observers.get(value)
            if observer is not None:
                observer.update(tensor, index=index)

        with torch.no_grad():
            interpret(graph, batch, show)
    if not count:
        raise CalibrationError("the calibration data is empty", expected="at least one batch")
    return count
