"""Keep the candidate whose outputs are closest to those of the float model on calibration data.

    noise of a candidate  =  mean over outputs of  sum (y^ - y)^2 / sum y^2        y^: output of the integer program

Adaptive rounding, ranges and bias correction each lower the error of one layer or one tensor. The outputs of the
network need not improve: errors add up, and a range with less error in a tensor may clip values that matter later.
Therefore the exact evaluation of the whole network decides. `start-candidate` explains candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.errors import InputError, PassError
from qcompiler.ir.graph import Graph
from qcompiler.ir.types import Stage
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.two_models import read_batches
from qcompiler.validation.contracts import THRESHOLDS, Contract
from qcompiler.validation.noise import float_outputs, squared_errors


@dataclass(frozen=True)
class WeighCandidates(Pass):
    """Compare all candidates, including the current graph, with the float model, and continue with the best.

    Records the signal-to-noise ratio of each candidate in dB, in order, and the number of the kept candidate. A later
    candidate replaces an earlier one only if it is better by `margin`.

    Args:
        images: Maximum number of calibration images, rounded up to whole batches.
        margin: Required gain of a later candidate in dB, because adaptive rounding looks better on its own data.

    Raises:
        InputError: An option is out of range.
        PassError: There is no data, there is no earlier candidate, or the nodes of the graph changed in between.
    """

    name: ClassVar[str] = "weigh-candidates"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})
    images: int = 128
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise InputError(f"images={self.images}", expected="at least 1")
        if not 0.0 <= self.margin < math.inf:
            raise InputError(f"margin={self.margin}", expected="dB, 0 or more")

    @property
    def contract(self) -> Contract:
        """The noise may be that of another candidate."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        if context.calibration_data is None:
            raise PassError(
                "the comparison of candidates needs calibration_data", fix="Pass calibration_data, or remove the pass."
            )
        if context.start is None or not context.candidates:
            raise PassError("there is only one candidate", fix="Run start-candidate before each candidate.")
        tensors = graph.module.tensors
        candidates: list[dict[str, Tensor]] = [*context.candidates, dict(tensors)]
        if any(item.keys() != tensors.keys() for item in (context.start, *candidates)):
            raise PassError(
                "the graph was changed between start-candidate and weigh-candidates",
                fix="Between them, run only passes that write tensors: ranges, rounding, bias correction.",
            )
        noises = self._noises(graph, context, context.start, candidates)
        kept = 0
        for number, noise in enumerate(noises):
            # A candidate with outputs that are not finite compares as not better, and is never kept.
            if noise < noises[kept] * 10.0 ** (-self.margin / 10.0) or math.isnan(noises[kept]):
                kept = number
        tensors.update(candidates[kept])
        context.candidates[:] = [candidates[kept]]
        figures = {f"candidate_{number}_db": float(f"{_decibels(noise):.2f}") for number, noise in enumerate(noises)}
        context.record.metrics.update(figures, kept=kept)

    def _noises(
        self,
        graph: Graph,
        context: PassContext,
        start: Mapping[str, Tensor],
        candidates: Sequence[Mapping[str, Tensor]],
    ) -> list[float]:
        """The noise of each candidate."""
        arithmetic = context.require_target(self.name).arithmetic
        given = read_batches(graph, context, self.images)

        def sums(index: int) -> list[Tensor]:
            """Squares of the signal and of the error of each candidate, per output: [1 + candidates, outputs]."""
            inputs = [given.held[value][index].load().real for value in graph.inputs]
            wanted = float_outputs(graph, inputs, start)
            rows = [[_power(item) for item in wanted]]
            rows += [squared_errors(graph, inputs, item, wanted, arithmetic) for item in candidates]
            return [torch.tensor(rows, dtype=torch.float64)]

        with torch.no_grad():
            total = context.processes.sum(given.count, sums)[0]
        signal, errors = total[0], total[1:]
        silent = signal == 0.0  # an output that is constantly 0: its error is not divided
        ratios = errors / torch.where(silent, torch.ones_like(signal), signal)
        return [float(row.mean()) for row in ratios]


def _power(output: Tensor) -> float:
    if not output.is_floating_point():
        return 0.0
    return float(torch.where(output.isfinite(), output, 0.0).to(torch.float64).square().sum())


def _decibels(noise: float) -> float:
    if math.isnan(noise):
        return -math.inf
    return -10.0 * math.log10(noise) if noise > 0.0 else math.inf
