"""Sensitivity of the outputs on calibration data: the mean over some samples, which the processes share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Value
from qcompiler.passes.base import PassContext
from qcompiler.validation.noise import Sensitivities, sensitivities

PROJECTIONS = 16
"""Number of random projections, each of another sample."""


def mean_sensitivities(
    graph: Graph,
    context: PassContext,
    values: Mapping[Value, int],
    names: Sequence[str],
    limits: Mapping[Value, tuple[int, Tensor]],
) -> Sensitivities | None:
    """The mean over `PROJECTIONS` samples; arguments and result as those of `validation.noise.sensitivities`."""
    samples = list(samples_of(graph, context))

    def part(index: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(context.seed + index)
        measured = sensitivities(graph, samples[index], graph.module.tensors, values, names, limits, generator)
        if measured is None:
            return [torch.zeros(1, dtype=torch.float64)] * (1 + 2 * len(values) + len(names) + len(limits))
        activations = (item[key] for item in (measured.values, measured.shifts) for key in values)
        tensors = (measured.tensors[key] for key in names)
        return [torch.ones(1, dtype=torch.float64), *activations, *tensors, *(measured.limits[key] for key in limits)]

    count, *sums = context.processes.sum(len(samples), part)
    if not bool(count):
        return None
    means = iter([item / count for item in sums])
    return Sensitivities(
        {key: next(means) for key in values},
        {key: next(means) for key in values},
        {key: next(means) for key in names},
        {key: next(means) for key in limits},
    )


def samples_of(graph: Graph, context: PassContext) -> Iterable[list[Tensor]]:
    """The first samples of the data one by one, or whole batches if the batch size is fixed."""
    free = all(value.type.rank and not isinstance(value.type.shape[0], int) for value in graph.inputs)
    count = 0
    for batch in context.calibration_data or ():
        parts = [list(part) for part in zip(*(tensor.split(1) for tensor in batch), strict=True)] if free else [batch]
        for part in parts:
            yield part
            count += 1
            if count == PROJECTIONS:
                return
