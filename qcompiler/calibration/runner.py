"""Runs the calibration batches once and shows each observer its tensors. Activations are dropped as soon as seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.calibration.observers import Observer
from qcompiler.errors import CalibrationError, InputError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import check_inputs, evaluate_node, interpret_with

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with the number of batches done and their total, None where nobody knows it."""


def observe(
    graph: Graph,
    batches: Iterable[list[Tensor]],
    observers: Mapping[Value, Observer],
    progress: Progress | None = None,
) -> int:
    """Show `observers` the values of `graph` on `batches`.

    Memory is that of one forward pass and the observers' summaries, however many batches there are.

    Args:
        graph: At any float stage. Quantizers without a range let values pass.
        batches: Flat inputs.
        observers: By value; one observer may serve several values.
        progress: Called after each batch.

    Returns:
        The number of batches.

    Raises:
        CalibrationError: There is no batch, or a value is not finite.
        InputError: A batch does not fit the graph; the message names its position.
    """
    total = len(batches) if isinstance(batches, Sized) else None
    count = 0
    for index, batch in enumerate(batches):

        def show(value: Value, tensor: Tensor, index: int = index) -> None:
            observer = observers.get(value)
            if observer is not None:
                observer.update(tensor, index=index)

        _check_batch(graph, batch, index)
        with torch.no_grad():
            interpret_with(graph, batch, evaluate_node, show)
        count += 1
        if progress is not None:
            progress(count, total)
    if not count:
        raise CalibrationError("the calibration data is empty", expected="at least one batch")
    return count


def _check_batch(graph: Graph, batch: list[Tensor], index: int) -> None:
    try:
        check_inputs(graph, batch)
    except InputError as error:
        where = f"batch {index} of the calibration data"
        raise InputError(error.found, where=where, expected=error.expected, fix=error.fix) from None
