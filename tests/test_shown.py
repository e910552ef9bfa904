"""Text that a terminal or a notebook shows of the objects of the package."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import qcompiler


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 100)]
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def shown() -> Mapping[str, object]:
    data = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
    compiled = qcompiler.compile(model(), "int8_dsp", calibration_data=data)
    analysis = qcompiler.analyze(model(), "int8_dsp", data)
    return {
        "compiled": compiled,
        "artifact": compiled.artifact,
        "program": compiled.artifact.program,
        "target": compiled.target,
        "verification": compiled.verification,
        "records": compiled.records,
        "layer outputs": compiled.layer_outputs(data[0]),
        "checkup": qcompiler.check(model(), "int8_dsp", example_inputs=data[0]),
        "analysis": analysis,
        "diagnosis": analysis.diagnose(),
        "front": qcompiler.mixed_precision(model(), "int8_dsp", data, points=2),
        "search": qcompiler.autoquant(model(), "int8_dsp", data, lambda _: 0.9, budget=1),
        "module": qcompiler.prepare_qat(model(), "int8_dsp", calibration_data=data),
    }


def test_no_object_shows_the_numbers_of_a_tensor(shown: Mapping[str, object]) -> None:
    for name, item in shown.items():
        text = repr(item)
        assert "tensor(" not in text and "array(" not in text, name
        assert len(text) < 8_000, f"{name}: {len(text)} characters"


def test_a_compiled_model_is_five_lines(shown: Mapping[str, object]) -> None:
    lines = repr(shown["compiled"]).splitlines()
    assert lines[:2] == ["Compiled: Sequential for int8_dsp", lines[1]]
    stored = 64 * 27 + 64 * 36 * 100
    assert lines[1].startswith("Size: ") and int(lines[1].split()[1].replace(",", "")) > stored
    assert "agree with the exact simulation" in lines[2]
    assert len(lines) == 5
    assert repr(shown["artifact"]).splitlines() == ["Artifact: Sequential for int8_dsp", *lines[1:]]
    assert str(shown["compiled"]) == repr(shown["compiled"])


def test_a_target_shows_its_arithmetic() -> None:
    lines = repr(qcompiler.load_target("int8_dsp").override(weight_bits=4)).splitlines()
    assert lines[0] == "Target: int8_dsp[weight_bits=4]"
    assert "  accumulator: 32 bits, overflow: forbid" in lines


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert qcompiler.__version__ == project["project"]["version"]
