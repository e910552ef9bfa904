"""Reports on oscillations: numbers and pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qcompiler
from qcompiler.errors import InputError
from qcompiler.training.freezing import Freezing, Tracking, freeze
from qcompiler.training.oscillations import Oscillations
from qcompiler.training.tracking import (
    oscillating,
    oscillation_plot,
    oscillation_scalars,
    oscillation_statistics,
    together,
)
from tests.training.networks import INPUTS, small

SVG = "{http://www.w3.org/2000/svg}"
LAYERS = ["stem.0", "depthwise.0", "point.0"]


def tracked(**options: Any) -> qcompiler.QATModule:
    target = qcompiler.load_target("lsq_paper").override(weight_bits=3, activation_bits=4)
    options = options or {"tracking": Tracking(largest_bits=3)}
    # The first and the last layer have eight bits in this scheme.
    return qcompiler.prepare_qat(small(), target, calibration_data=[INPUTS], **options)


@given(
    changes=st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=30),
    momentum=st.sampled_from([0.5, 0.25]),
)
def test_frequencies_are_those_of_a_loop(changes: list[list[int]], momentum: float) -> None:
    state = Oscillations(torch.zeros(3), momentum)
    codes, direction, frequency, average = [0.0] * 3, [0] * 3, [0.0] * 3, [0.0] * 3
    for row in changes:
        for index, change in enumerate(row):
            codes[index] += change
            sign = (change > 0) - (change < 0)
            oscillates = sign * direction[index] == -1
            direction[index] = sign or direction[index]
            frequency[index] += momentum * (oscillates - frequency[index])
            average[index] += momentum * (codes[index] - average[index])
        state.update(torch.tensor(codes))
    assert state.direction.tolist() == direction
    assert state.frequency.tolist() == pytest.approx(frequency, abs=1e-5)
    assert state.average.tolist() == pytest.approx(average, abs=1e-4)
    assert oscillating(state, 0.1).tolist() == [value > 0.1 for value in state.frequency.tolist()]


def test_a_weight_that_flips_every_step_is_frozen_after_the_eleventh_flip_at_its_usual_code() -> None:
    # m = 0.001, threshold 0.01: 1 - 0.999^n passes 0.01 at n = 11. The first change never counts.
    state = Oscillations(torch.tensor([0.0, 0.0]), 0.001)
    for step in range(1, 13):
        state.update(torch.tensor([float(step % 2), 0.0]))
        freeze(state, 0.01)
        assert state.frozen.tolist() == [step == 12, False]
    assert state.frozen_codes.tolist() == [0.0, 0.0]
    assert not oscillating(state).any()


def test_statistics_name_the_layers_and_count() -> None:
    module = tracked(freezing=Freezing(0.5, Tracking(largest_bits=3)))
    states = module.oscillations()
    assert list(states) == list(oscillation_statistics(module)) == LAYERS[1:]
    state = states["depthwise.0"]
    state.frequency[0] = 0.25  # nine weights of 72
    state.frozen[0, 0, 0] = True  # three of them
    found = oscillation_statistics(module)["depthwise.0"]
    assert (found.weights, found.oscillating, found.frozen, found.largest) == (72, 6, 3, 0.25)
    assert found.frequency == pytest.approx(6 * 0.25 / 69)
    whole = together(oscillation_statistics(module))
    assert (whole.weights, whole.oscillating, whole.frozen) == (72 + 64, 6, 3)
    assert whole.frequency == pytest.approx(6 * 0.25 / (72 + 64 - 3))

    scalars = oscillation_scalars(module)
    assert len(scalars) == 3 * 3
    assert scalars["oscillating/depthwise.0"] == 6 / 72
    assert scalars["frozen/all"] == 3 / 136
    assert set(map(type, scalars.values())) == {float}
    assert all(0.0 <= value <= 1.0 for value in scalars.values())
    assert oscillation_scalars(module, threshold=0.3)["oscillating/all"] == 0.0

    drawing = oscillation_plot(module)
    texts = {item.text for item in ET.fromstring(drawing).iter(f"{SVG}text")}  # noqa: S314
    assert {*LAYERS[1:], "oscillating", "frozen", "8.333", "4.167"} <= texts
    assert oscillation_plot(module) == drawing


def test_without_tracking_there_is_nothing_to_tell() -> None:
    module = qcompiler.prepare_qat(small(), "lsq_paper", calibration_data=[INPUTS])
    with pytest.raises(InputError, match="tracking="):
        oscillation_statistics(module)
