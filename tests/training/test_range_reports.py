"""Reports on ranges and on the backward pass: numbers, a table and a picture."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
import torch
from torch.nn import functional

import qcompiler
from qcompiler.errors import InputError
from qcompiler.training.backward_table import backward_table
from qcompiler.training.range_reports import range_plot, range_scalars, range_statistics, watch_ranges
from tests.training.networks import INPUTS, LABELS, small

SVG = "{http://www.w3.org/2000/svg}"


def step(module: qcompiler.QATModule) -> None:
    functional.cross_entropy(module(INPUTS), LABELS).backward()
    module.step()


def test_scalars_are_those_of_the_last_step() -> None:
    module = qcompiler.prepare_quantized_training(
        small(), example_inputs=(INPUTS,), gradient_bits=4, rounding="nearest"
    )
    step(module)
    scalars = range_scalars(module)
    assert scalars["low/stem.0.gradient"] < 0 < scalars["high/stem.0.gradient"]
    assert not any(name.startswith("saturation") for name in scalars), "not watched"
    watch_ranges(module)
    step(module)
    found = range_statistics(module)
    assert 0 < found["head.gradient"].distance < 0.1
    assert all(0 <= item.saturation <= 1 for item in found.values())
    # The average of one step does not hold the extremes of the next.
    assert any(item.saturation > 0 for item in found.values())
    assert range_scalars(module)["distance/head.gradient"] == found["head.gradient"].distance
    watch_ranges(module, on=False)
    assert math.isnan(range_statistics(module)["head.gradient"].distance)


def test_saturation_of_an_activation_is_counted() -> None:
    module = qcompiler.prepare_quantized_training(small(), example_inputs=(INPUTS,), estimator="fixed")
    module(INPUTS)
    watch_ranges(module)
    module(3 * INPUTS)
    low, high = (float(end) for end in (INPUTS.min(), INPUTS.max()))
    expected = ((low > 3 * INPUTS) | (high < 3 * INPUTS)).double().mean()
    assert range_statistics(module)["x.quantizer"].saturation == pytest.approx(float(expected), abs=2e-3)


def test_the_plot_has_two_bars_for_each_quantizer() -> None:
    pytest.importorskip("matplotlib")
    module = qcompiler.prepare_quantized_training(small(), example_inputs=(INPUTS,))
    with pytest.raises(InputError, match="no tensor was watched"):
        range_plot(module)
    watch_ranges(module)
    step(module)
    drawing = ET.fromstring(range_plot(module))  # noqa: S314  # our own text
    ids = {item.get("id") or "" for item in drawing.iter(f"{SVG}g")}
    assert {"head.gradient clipped", "head.gradient cosine distance"} <= ids


def test_a_module_without_such_ranges_is_refused() -> None:
    module = qcompiler.prepare_qat(small(), calibration_data=[INPUTS])
    with pytest.raises(InputError, match="no range of the module"):
        watch_ranges(module)


def test_the_table_tells_what_is_quantized_backward() -> None:
    module = qcompiler.prepare_quantized_training(
        small(), example_inputs=(INPUTS,), overrides={"head": {"gradient_bits": "float"}}
    )
    # Lines are compared without the blanks that align the columns.
    lines = [" ".join(line.split()) for line in str(backward_table(module)).splitlines()]
    assert lines[0] == "| layer | operator | forward reads | gradient of the input | gradient of the weight |"
    assert lines[2:] == [
        "| stem.0 | conv2d | s8 * s8 symmetric narrow | - | s8 * s8 stochastic |",
        "| stem.1 | batch_norm | float | float | float |",
        "| stem.2 | clamp | float | float | - |",
        "| depthwise.0 | conv2d | s8 * s8 symmetric narrow | s8 stochastic * s8 symmetric narrow | s8 * s8 stochastic |",
        "| depthwise.1 | batch_norm | float | float | float |",
        "| depthwise.2 | relu | float | float | - |",
        "| point.0 | conv2d | s8 * s8 symmetric narrow | s8 stochastic * s8 symmetric narrow | s8 * s8 stochastic |",
        "| point.1 | batch_norm | float | float | float |",
        "| add | add | s8, s8 | float | - |",
        "| mean | mean | s8 | float | - |",
        "| max_pool2d | max_pool2d | s8 | float | - |",
        "| concat | concat | s8, s8 | float | - |",
        "| head | linear | s8 * s8 symmetric narrow | float | float |",
    ]


def test_a_scale_per_channel_shows_the_second_quantizer() -> None:
    module = qcompiler.prepare_quantized_training(small(), "int8_dsp_per_channel", example_inputs=(INPUTS,))
    rows = {row.layer: row for row in backward_table(module)}
    assert rows["point.0"].input_gradient == "scaled by channel, s8 stochastic * codes"
    assert rows["point.0"].is_quantized
    assert not rows["add"].is_quantized
    assert torch.is_grad_enabled()
