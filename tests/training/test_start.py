"""The weights from which training starts."""

from __future__ import annotations

import pytest
import torch

import qcompiler
from benchmarks.networks import load
from benchmarks.rendered import render
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.session.pipeline import training_passes

LARGEST_SPREAD = 16.0
"""Largest quotient of the largest weights of two rows in a network."""


def spread(module: torch.nn.Module) -> float:
    """The largest weight of a row of any convolution by the smallest."""
    rows = torch.cat([p.detach().abs().amax((1, 2, 3)) for p in module.parameters() if p.dim() == 4])
    return float(rows.max() / rows.min())


def test_weights_are_of_one_size() -> None:
    """A step of Adam means the same for all of them; the network as it comes has channels of all sizes."""
    network = load("mobilenet_hard")
    target = qcompiler.load_target("int8_dsp").override(weight_bits=4)
    module = qcompiler.prepare_qat(network, target, calibration_data=[render(32, 0).images])
    assert spread(module) < LARGEST_SPREAD < spread(network)


@pytest.mark.parametrize(("target", "factors"), [("int8_dsp", ["ranges"]), ("int8_dsp_per_channel", [])])
def test_a_scale_per_channel_needs_no_equalization(target: str, factors: list[str]) -> None:
    passes = training_passes(target=qcompiler.load_target(target))
    assert [item.factors for item in passes if isinstance(item, CrossLayerEqualization)] == factors
