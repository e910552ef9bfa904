"""Costs of widths, compared with numbers worked out by hand and with the estimate of the compiled program."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.analysis.parts import groups_of
from qcompiler.analysis.width_costs import UNITS, CostKind, operators_of
from qcompiler.errors import TargetError
from qcompiler.session.options import Options
from qcompiler.session.session import Session
from qcompiler.targets import Target


class Sum(nn.Module):
    """A convolution whose result is added to the input of the model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 5, 4, 4]."""
        result: Tensor = self.last(x + self.conv(x))
        return result


def costs(kind: CostKind, target: Target, pairs: frozenset[tuple[int, int]] | None = None) -> dict[str, float]:
    """Cost of `Sum` by widths of x, conv.weight, conv, add, last.weight and last."""
    options = Options(calibration_data=[torch.randn(4, 3, 4, 4)])
    session = Session(Sum().eval(), target, options, options.deployment_passes(target))
    groups = groups_of(session.quantized.module.main)
    assert [group.name for group in groups] == ["x", "conv.weight", "conv", "add", "last.weight", "last"]
    widths = [(4, 8) if group.is_weight else (8, 16) for group in groups]
    operators = operators_of(session.quantized.module.main, groups, widths, target, kind, pairs)

    def cost(text: str) -> float:
        return sum(operator.of([int(part) for part in text.split()]) for operator in operators)

    names = ("8 8 8 8 8 8", "8 4 8 8 8 8", "8 8 16 8 8 8", "8 8 16 16 8 8", "8 8 8 8 8 16")
    return {name: cost(name) for name in names}


CONV, LAST = 3 * 3 * 9 * 16, 3 * 5 * 16
"""Products of the two layers."""
X = 3 * 16
"""Elements of the input, of the result of `conv`, and of the sum."""


def test_bit_operations_by_hand() -> None:
    found = costs("bit_operations", qcompiler.load_target("int8_dsp"))
    both = 64 * CONV + 64 * LAST
    assert found == {
        "8 8 8 8 8 8": both,
        "8 4 8 8 8 8": 32 * CONV + 64 * LAST,
        "8 8 16 8 8 8": both + 16 * X,  # the sum converts one operand
        "8 8 16 16 8 8": 64 * CONV + 128 * LAST + 16 * X,
        "8 8 8 8 8 16": both,
    }


def test_bytes_by_hand() -> None:
    found = costs("bytes", qcompiler.load_target("int8_dsp"))
    weights, moved = 81 + 15, X + X + 2 * X + X + X + 5 * 16  # conv, add, last: read and written
    assert found == {
        "8 8 8 8 8 8": weights + moved,
        "8 4 8 8 8 8": weights + moved,  # int8_dsp does not pack
        "8 8 16 8 8 8": weights + moved + 2 * X + 3 * X,  # conv writes it, the sum reads it, and converts x
        "8 8 16 16 8 8": weights + moved + 2 * X + 3 * X + 2 * X,
        "8 8 8 8 8 16": weights + moved + 5 * 16,
    }
    packed = costs("bytes", qcompiler.load_target("w4a8_npu"))
    assert packed["8 8 8 8 8 8"] - packed["8 4 8 8 8 8"] == 81 / 2


def test_pairs_that_are_no_candidates_are_impossible() -> None:
    pairs = frozenset({(8, 8), (16, 8)})
    found = costs("bit_operations", qcompiler.load_target("int8_dsp"), pairs)
    assert found["8 4 8 8 8 8"] == float("inf")
    assert found["8 8 16 16 8 8"] < float("inf")


def test_cycles_are_near_the_estimate_of_the_program() -> None:
    target = qcompiler.load_target("ethos_u55")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()).eval()
    data = [torch.randn(2, 16, 24, 24)]
    front = qcompiler.mixed_precision(net, target, data, [(8, 8), (16, 8)], "cycles", points=2)
    compiled = qcompiler.compile(net, target, calibration_data=data)
    assert front.base == sum(layer.compute_cycles or 0 for layer in compiled.artifact.estimate.layers)
    assert front.notes == ("the descriptor has no memory, so that cycles are those of computation alone",)


@pytest.mark.parametrize("speed", [2, 1000])
def test_memory_and_energy_are_those_of_the_estimate(speed: int) -> None:
    """A slow memory, which bounds some instructions, and a fast one, which bounds none."""
    data = json.loads(qcompiler.load_target("int8_dsp").to_json())
    data["compute"] |= {
        "macs_per_cycle": {"8x8": 16, "16x8": 8},
        "elementwise_per_cycle": 4,
        "picojoules_per_mac": 0.5,
    }
    memory = {"name": "sram", "bytes": 2**20, "holds": ["activations", "constants"]}
    data["memory"] = [{**memory, "bytes_per_cycle": speed, "picojoules_per_byte": 3.0}]
    target = Target.of(data, "test")
    model, batches = Sum().eval(), [torch.randn(4, 3, 4, 4)]
    for overrides in ({}, {"add": 16}):
        found = qcompiler.compile(model, target, calibration_data=batches, overrides=overrides).artifact.estimate
        for kind, wanted in (("cycles", found.cycles), ("energy", found.picojoules)):
            pairs = [(8, 8), (16, 8)]
            front = qcompiler.mixed_precision(model, target, batches, pairs, kind, overrides=overrides, points=2)  # type: ignore[arg-type]
            assert wanted is not None
            # The program also reads biases, multipliers and tables, and rounds cycles up.
            assert front.base == pytest.approx(wanted, rel=0.25)
            assert front.base <= wanted


@pytest.mark.parametrize("kind", ["cycles", "energy"])
def test_a_descriptor_without_figures_is_refused(kind: CostKind) -> None:
    with pytest.raises(TargetError, match=r"int8_dsp has no .*bit_operations"):
        costs(kind, qcompiler.load_target("int8_dsp"))


def test_every_kind_has_a_unit() -> None:
    assert tuple(UNITS) == get_args(CostKind)
