"""The cost of a compile grows with the network as `benchmarks.scale` says it does, on small networks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from benchmarks import scale
from qcompiler.ir import interpret
from qcompiler.ir.graph import Node
from qcompiler.ir.interpret import Evaluation


def test_the_exponent_of_a_power_is_its_exponent() -> None:
    assert scale.exponent({count: 3.0 * count**1.25 for count in (10, 40, 100)}) == pytest.approx(1.25)


def test_the_section_names_what_was_not_run() -> None:
    rows: dict[str, scale.Json] = {
        "500 layers": {"s": 10.0},
        "1,000 layers": {"s": 20.0},
        "CoaT tiny with float islands": {"absent": "no timm"},
    }
    text = scale.section(rows)
    assert "| exponent of growth | 1.00 |" in text and "not run: no timm" in text


class Counted(Evaluation):
    """Counts the samples that convolutions evaluate."""

    samples = 0

    def __call__(self, node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if node.op == "conv2d":
            Counted.samples += len(operands[0])
        return super().__call__(node, operands)


def test_best_effort_reads_its_data_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of runs over the calibration data does not grow with the number of layers."""
    monkeypatch.setattr(interpret, "Evaluation", Counted)
    data = [torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(index)) for index in range(4)]
    passes = []
    for layers in (2, 6):
        model = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(layers))).eval()
        Counted.samples = 0
        qcompiler.compile(model, calibration_data=data, effort="best", verify="off")
        passes.append(Counted.samples / (64 * layers))
    assert 0 < passes[1] <= 1.25 * passes[0] and max(passes) <= scale.MOST_PASSES
