"""Bias absorption that the expected noise decides: what it gains, and that borders and clipped values stop it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import frontends
from qcompiler.errors import PassError
from qcompiler.ir.events import Record
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.absorb_bias import AbsorbBias
from qcompiler.passes.base import Pass
from qcompiler.session.pipeline import default_pipeline, parse_pipeline, print_pipeline, structural_passes
from qcompiler.targets import load_target
from tests.support.golden import refusals

TARGETS = ["int8_dsp", "int8_dsp_per_channel"]
BY_NOISE = AbsorbBias(shifts="noise")


def biased(highest: float, padding: int = 0, *, cap: bool = False) -> nn.Module:
    """A batch norm whose channels lie far above zero, between convolutions."""
    torch.manual_seed(0)
    norm, act = nn.BatchNorm2d(8), nn.Hardtanh(0.0, highest + 3.0) if cap else nn.ReLU()
    with torch.no_grad():
        norm.bias.copy_(torch.linspace(-2, highest, 8))
        norm.weight.copy_(torch.linspace(0.5, 2, 8))
    middle = [nn.Conv2d(8, 16, 3, padding=padding), nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm, act, *middle, nn.Conv2d(16, 6, 3))
    for _ in range(30):
        net.train()(torch.randn(16, 3, 12, 12))
    return net.eval()


def pipeline(target: str, *absorption: Pass) -> list[Pass]:
    """The default pipeline with a pass before the quantizers."""
    passes: list[Pass] = []
    for item in default_pipeline(per_channel=load_target(target).per_channel):
        passes += absorption if item.name == "partition" else []
        passes.append(item)
    return passes


def compiled(net: nn.Module, target: str, *absorption: Pass) -> qcompiler.Compiled:
    x = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return qcompiler.compile(net, target, calibration_data=[x], passes=pipeline(target, *absorption), verify="off")


def decibels(net: nn.Module, item: qcompiler.Compiled) -> float:
    """Signal-to-noise ratio on other inputs than those of calibration."""
    x = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted, found = net(x).double(), item.run(x)
    assert isinstance(found, Tensor)
    return 10 * math.log10(float(wanted.square().sum() / (wanted - found).square().sum()))


def record(records: Sequence[Record]) -> Record:
    return next(item for item in records if str(item.pass_name) == "absorb-bias")


@pytest.mark.parametrize("target", TARGETS)
def test_high_biases_gain_as_expected(target: str) -> None:
    net = biased(60.0)
    plain, absorbed = compiled(net, target), compiled(net, target, BY_NOISE)
    assert decibels(net, absorbed) > decibels(net, plain) + 6.0
    figures = record(absorbed.records).metrics
    before, after = figures["expected_db_before"], figures["expected_db_after"]
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert abs(after - decibels(net, absorbed)) < 4.0
    assert after > before + 6.0
    assert figures["channels"] == 6, "channels that stay below the widest ones do not move"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("highest", [2.0, 12.0])
def test_absorption_costs_nothing(highest: float, padding: int, target: str) -> None:
    net = biased(highest, padding)
    assert decibels(net, compiled(net, target, BY_NOISE)) >= decibels(net, compiled(net, target)) - 0.5


def alone(net: nn.Module, item: AbsorbBias, target: str = "int8_dsp") -> tuple[Record, bool]:
    """The record of the pass on a CANONICAL graph, and whether a tensor of the model changed."""
    x = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    subject = frontends.capture(net, x).module
    PassManager(structural_passes()[0]).run(subject, PassContext())
    before = dict(subject.tensors)
    found = PassManager([item], {"batch-norm-folded"}).run(subject, PassContext(load_target(target), [[x[:2]]], [[x]]))
    return found[-1], any(not torch.equal(tensor, subject.tensors[key]) for key, tensor in before.items())


def test_a_border_that_would_lose_more_is_left_alone() -> None:
    """All of it would change the outputs by 0.6 dB of their power; without padding it is a gain of ten dB."""
    found, changed = alone(biased(60.0, padding=1), BY_NOISE)
    assert not changed
    assert found.metrics["channels"] == 0
    assert "no shift would lower the expected noise" in refusals(found)
    found, changed = alone(biased(60.0), BY_NOISE)
    assert changed
    assert found.metrics["sqnr_db"] > 30.0  # type: ignore[operator]


def test_the_limits_of_clamps_are_part_of_the_measured_change() -> None:
    """The measurement runs the float model with moved limits; the rewritten graph has limits per channel."""
    target = "int8_dsp_per_channel"
    found, changed = alone(biased(60.0, cap=True), BY_NOISE, target)
    assert changed
    assert any(event.code == "limits-moved" for event in found.events)
    assert found.metrics["sqnr_db"] > 25.0  # type: ignore[operator]


def test_little_gain_of_all_groups_together_is_refused() -> None:
    found, changed = alone(biased(2.0), BY_NOISE)
    assert not changed
    assert found.metrics["expected_db_after"] == pytest.approx(found.metrics["expected_db_before"], abs=0.5)
    assert {event.code for event in found.events} & {"shift-noise-not-lower", "shift-noise-hardly-lower"}


def test_it_needs_data_and_a_target_and_is_text() -> None:
    assert parse_pipeline(print_pipeline([BY_NOISE])) == (BY_NOISE,)
    net, x = biased(2.0), torch.randn(2, 3, 12, 12)
    for context, missing in (
        (PassContext(load_target("int8_dsp")), "without calibration_data"),
        (PassContext(calibration_data=[[x]]), "target"),
    ):
        subject = frontends.capture(net, x).module
        with pytest.raises(PassError, match=missing):
            PassManager([*structural_passes()[0], BY_NOISE]).run(subject, context)
