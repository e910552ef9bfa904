"""The benchmark of the time of an analysis: what counts as a failure, and the page."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.analysis_speed import NETWORKS, Measurement, failures, measurements, network, pictures, section, speed
from benchmarks.finished import Json

SPEED: Json = {"calibrate": 10.0, "quantize": 30.0, "table": 80.0, "parts": 118, "analyze": 85.0, "evaluations": 2}
RANKS: Json = {"alone": 0.99, "without": 0.95}
AIMET: Json = {"version": "2.42.0", "analyze": 400.0, "evaluations": 220}


def results(**changes: float) -> dict[Measurement, Json]:
    return {
        Measurement("resnet50", "speed"): {**SPEED, **changes},
        Measurement("resnet50", "ranks"): {**RANKS, **changes},
        Measurement("resnet50", "aimet"): AIMET,
    }


def test_failures() -> None:
    assert failures(results()) == []
    assert failures(results(analyze=91.0)) == ["resnet50: analyze takes 3.0 quantizations"]
    assert failures(results(table=101.0)) == ["resnet50: the table takes 10.1 calibrations"]
    assert failures(results(without=0.5)) == ["resnet50: rank correlation 0.50 (without)"]


def test_the_page_has_all_figures_and_names_what_is_missing() -> None:
    text = section(results())
    assert "| resnet50 | 118 | 10 s | 30 s | 80 s | 8.0 | 85 s | 2.8 | 2 |" in text
    assert "- resnet50: rank correlation 0.990 for parts alone, 0.950 for all but one part" in text
    assert "QuantAnalyzer of `aimet-torch` 2.42.0: 400 s, with 220 evaluations" in text
    assert "not measured: mobilenet_v2-speed, mobilenet_v2-ranks, mobilenet_v2-aimet" in text
    assert "not measured" not in section({item: results()[_like(item)] for item in measurements(NETWORKS)})


def _like(item: Measurement) -> Measurement:
    return Measurement("resnet50", item.kind)


def test_networks_have_the_statistics_of_a_batch() -> None:
    (batch,) = pictures(32, 32)
    norms = [m for m in network("mobilenet_v2", batch).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(float(norm.running_var.max()) != 1.0 for norm in norms if norm.running_var is not None)
    assert torch.equal(pictures(32, 32)[0], batch)


@pytest.mark.slow
def test_a_small_measurement() -> None:
    found = speed("mobilenet_v2", images=32, samples=2, size=32)
    assert found["parts"] > 100
    assert 0.0 < found["calibrate"] < found["quantize"] < found["analyze"]
