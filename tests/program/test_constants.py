"""Roles and physical orders of the constants of a program, also of the first schema."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.errors import ArtifactError
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.program.files import ProgramFiles
from qcompiler.session.pipeline import default_pipeline

FIRST = Path(__file__).parents[1] / "data" / "artifact_1"


@pytest.fixture(scope="module")
def files() -> ProgramFiles:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(3 * 2 * 2, 2)).eval()
    # Equal ranges need a table per channel, whether they lower the noise of these random weights or not.
    passes = [
        CrossLayerEqualization() if item.name == "cross-layer-equalization" else item for item in default_pipeline()
    ]
    data = [torch.randn(4, 2, 4, 4)]
    return qcompiler.compile(model, calibration_data=data, passes=passes, verify="off").artifact.program


def test_each_constant_has_the_role_of_its_operand(files: ProgramFiles) -> None:
    roles: dict[str, list[str]] = {}
    for item in files.program.instructions:
        roles[item.op] = [files.program.constants[name].role for name in item.inputs if name in files.constants]
    assert roles["int_conv2d"] == roles["int_linear"] == ["weight", "bias", "multiplier", "exponent"]
    assert roles["lookup"] == ["table", "rows"], "one table for each channel"


def test_the_order_leads_to_the_logical_shape(files: ProgramFiles) -> None:
    item = next(item for item in files.program.instructions if item.op == "int_conv2d")
    name = item.inputs[1]
    assert files.program.constants[name].order == (0, 2, 3, 1)
    assert files.constants[name].shape == (3, 3, 3, 2)
    for constant in files.constants:
        assert files.logical(constant).shape == files.program.tensors[constant].shape
    assert np.array_equal(files.logical(name)[:, 1], files.constants[name][..., 1])


def test_a_program_of_the_first_schema_is_translated() -> None:
    text, weights = (FIRST / "program.json").read_text(encoding="utf-8"), (FIRST / "weights.safetensors").read_bytes()
    files = ProgramFiles.parse(text, weights)
    old, new = json.loads(text), json.loads(files.program_json())
    assert set(old.pop("constants")) == set(new.pop("constants"))
    assert (old.pop("schema"), new.pop("schema")) == ("qcompiler.program/1", "qcompiler.program/2")
    assert old.pop("weight_layout") == "OHWI"
    assert new == old
    assert files.weights() == weights
    kernel = next(item.inputs[1] for item in files.program.instructions if item.op == "int_conv2d")
    assert files.program.constants[kernel].order == (0, 2, 3, 1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("role", "bias", r"its role is 'bias' .*; expected 'weight'"),
        ("order", [0, 1, 2], "a permutation of 4 axes"),
        ("order", [0, 0, 2, 3], "a permutation of 4 axes"),
        ("order", [0, 1, 2, 3], r"it is int8 \[3, 3, 3, 2\]"),
    ],
)
def test_a_wrong_description_is_refused(key: str, value: object, message: str, files: ProgramFiles) -> None:
    name = next(item.inputs[1] for item in files.program.instructions if item.op == "int_conv2d")
    data = json.loads(files.program_json())
    data["constants"][name][key] = value
    with pytest.raises(ArtifactError, match=message):
        ProgramFiles.parse(json.dumps(data), files.weights())
