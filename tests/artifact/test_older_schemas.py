"""An artifact that an earlier release wrote is loaded, run and verified."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

import qcompiler

FOLDER = Path(__file__).parents[1] / "data" / "artifact_1"
"""A convolution, a relu and a linear layer for `int8_dsp`, written with the schema `qcompiler.artifact/1`."""
OUTPUTS = [
    [0.0514439195394516, 0.0535016767680645],
    [-0.0596749447286129, -0.2942592203617096],
]
"""Results of the program for `images` when the artifact was written."""


def images() -> Tensor:
    return (torch.arange(2 * 2 * 4 * 4) % 23 - 11).reshape(2, 2, 4, 4) / 8


def test_an_artifact_of_the_first_schema_is_loaded_run_and_verified() -> None:
    assert json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["schema"] == "qcompiler.artifact/1"
    loaded = qcompiler.load(FOLDER)
    outputs = loaded.run(images())
    assert isinstance(outputs, Tensor)
    assert outputs.tolist() == OUTPUTS
    report = loaded.verify(images())
    assert report.passed
    assert {form.name for form in report.forms if form.status == "equal"} >= {
        "artifact read back",
        "onnxruntime, end to end",
    }
