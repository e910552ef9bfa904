"""More effort never costs signal: `default` against `fast`, and `best` against `default`, on the benchmark networks."""

from __future__ import annotations

import functools
import math
from typing import Literal

import pytest
import torch
from torch import Tensor

import qcompiler
from benchmarks.networks import NETWORKS, TWINS, load
from benchmarks.ptq_accuracy import draw
from benchmarks.rendered import split

TARGETS = ("w4a8_npu", "w4a8_npu_blocks", "int8_dsp_per_channel", "pow2_mcu")
MOST_DB = 0.3
"""Loss that the luck of other roundings may cause."""

QUICK = {("mobilenet_v3", "w4a8_npu"), ("resnet", "int8_dsp_per_channel")}
"""The two cases in which `default` once lost 0.7 dB."""


@functools.cache
def data() -> tuple[list[Tensor], Tensor]:
    """Calibration batches and other images."""
    return draw(split("calibration").images, 128, 0), split("validation").images[:200]


@functools.cache
def decibels(name: str, target: str, effort: Literal["fast", "default", "best"]) -> float:
    """Signal-to-noise ratio of the integer program on images that were not calibrated."""
    model, (calibration, images) = load(name), data()
    compiled = qcompiler.compile(model, target, calibration_data=calibration, effort=effort, verify="off")
    found = compiled.run(images)
    assert isinstance(found, Tensor)
    with torch.no_grad():
        wanted = model(images).double()
    return 10 * math.log10(float(wanted.square().sum() / (wanted - found).square().sum()))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=[] if (name, target) in QUICK else [pytest.mark.slow])
        for name in (*NETWORKS, *TWINS)
        for target in TARGETS
    ],
)
def test_the_default_is_never_below_fast(name: str, target: str) -> None:
    assert decibels(name, target, "default") > decibels(name, target, "fast") - MOST_DB


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*NETWORKS, *TWINS])
def test_the_best_is_never_below_the_default(name: str, target: str) -> None:
    assert decibels(name, target, "best") > decibels(name, target, "default") - MOST_DB
