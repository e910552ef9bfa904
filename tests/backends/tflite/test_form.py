"""TensorFlow Lite files in LiteRT: every element of every output."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.base import Lowered
from qcompiler.backends.tflite.emit import emit
from qcompiler.backends.tflite.form import FILE, TFLite
from qcompiler.errors import ArtifactError, UnsupportedError

TARGET = "tflite_int8"
needs_litert = pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="needs LiteRT")


class Function(nn.Module):
    """A convolution, and a function of its result and of the input."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, channels, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x), x)


class Ends(nn.Module):
    """Integers that are an output as they come in, beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), ids


def conv(*arguments: int, **keywords: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Conv2d(*arguments, **keywords)  # type: ignore[arg-type]


LAYERS = {
    "same": conv(8, 6, 3, padding=1),
    "same of stride 2": conv(8, 6, 4, stride=2, padding=1),
    "border": conv(8, 6, 3, stride=2, padding=1),
    "wide border": conv(8, 6, 3, padding=2),
    "dilation": conv(8, 6, 3, dilation=2, padding=2),
    "depthwise": conv(8, 8, 3, padding=1, groups=8),
    "depthwise twice": conv(8, 16, 3, groups=8),
    "groups": conv(8, 8, 3, padding=1, groups=2),
}


def applied(layer: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    found: Tensor = layer(y)
    return found


TAIL = {"linear": nn.Linear(12, 5), "matmul": nn.Linear(8, 4)}

CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{f"conv, {name}": partial(applied, layer) for name, layer in LAYERS.items()},
    "relu": lambda y, x: torch.relu(y),
    "relu6": lambda y, x: nn.functional.relu6(4 * y),
    "clamp": lambda y, x: y.clamp(-0.25, 0.5),
    "sum": lambda y, x: y + y.flip(3),
    "sum and relu": lambda y, x: torch.relu(y + y.flip(3)),
    "difference": lambda y, x: y - y.mean((2, 3), keepdim=True),
    "product": lambda y, x: y * torch.sigmoid(y.mean((2, 3), keepdim=True)),
    "product with a constant": lambda y, x: y * torch.linspace(0.5, 2.0, 8).reshape(8, 1, 1),
    "mean": lambda y, x: y.mean((2, 3)),
    "mean over 25": lambda y, x: y[:, :, :5, :5].mean((2, 3), keepdim=True),
    "average": lambda y, x: nn.functional.avg_pool2d(y, 3, 2),
    "same average": lambda y, x: nn.functional.avg_pool2d(y, 3, 1, 1, count_include_pad=False),
    "largest": lambda y, x: nn.functional.max_pool2d(y, 3, 2, 1),
    "largest, with ceil_mode": lambda y, x: nn.functional.max_pool2d(y, 3, 2, ceil_mode=True),
    "sigmoid": lambda y, x: torch.sigmoid(y),
    "tanh": lambda y, x: torch.tanh(y),
    "a table": lambda y, x: nn.functional.gelu(y),
    "hardswish": lambda y, x: nn.functional.hardswish(y),
    "softmax": lambda y, x: torch.softmax(y.mean((2, 3)), 1),
    "softmax of an image": lambda y, x: torch.softmax(y, 3),
    "concat": lambda y, x: torch.cat([y, torch.relu(y)], 1),
    "concat of rows": lambda y, x: torch.cat([y, y], 2),
    "flatten": lambda y, x: torch.flatten(y, 1),
    "reshape": lambda y, x: y.reshape(-1, 8, 48, 2),
    "permute": lambda y, x: y.permute(0, 2, 3, 1),
    "permute to three axes": lambda y, x: y.flatten(2).transpose(1, 2),
    "slice": lambda y, x: y[:, 2:6],
    "slice with steps": lambda y, x: y[:, :, ::2, 1::3],
    "gather": lambda y, x: y[:, [3, 1, 0]],
    "pad": lambda y, x: nn.functional.pad(y, (1, 2, 0, 1), value=0.25),
    "maximum": lambda y, x: torch.maximum(y, y.flip(2)),
    "linear": lambda y, x: TAIL["linear"](y),
    "linear of tokens": lambda y, x: TAIL["matmul"](y.flatten(2).transpose(1, 2)),
    "attention": lambda y, x: y.flatten(2).transpose(1, 2) @ y.flatten(2),
    "scaled attention": lambda y, x: nn.functional.scaled_dot_product_attention(y, y, y),
    "attention of heads": lambda y, x: torch.softmax(y @ y.transpose(2, 3), -1) @ y,
}


def compiled(function: Callable[[Tensor, Tensor], Tensor], target: str = TARGET) -> qcompiler.Compiled:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(8, 3, 12, 12, generator=generator)
    return qcompiler.compile(Function(function).eval(), target, calibration_data=[data], effort="fast", verify="warn")


@needs_litert
@pytest.mark.parametrize("name", CASES)
def test_litert_computes_what_the_program_does(name: str) -> None:
    found = compiled(CASES[name])
    assert found.artifact.forms["TFLite"].files, found.artifact.forms["TFLite"].reason
    assert found.verification is not None
    form = found.verification.form("TFLite")
    assert form.status == "equal", str(form)
    assert form.elements > 0


@needs_litert
@pytest.mark.parametrize("io", ["uint8", "int8"])
def test_codes_at_both_ends(io: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 3, 12, 12), generator=generator) / 255.0
    model = Function(lambda y, x: torch.relu(y).mean((2, 3))).eval()
    found = qcompiler.compile(model, TARGET, calibration_data=[images], io=io)  # type: ignore[arg-type]
    assert found.verification is not None
    assert found.verification.form("TFLite").status == "equal"
    assert found.artifact.forms["TFLite"].files


@needs_litert
def test_integers_have_no_grid() -> None:
    ids = torch.randint(0, 9, (4, 3), generator=torch.Generator().manual_seed(0))
    found = qcompiler.compile(Ends().eval(), TARGET, calibration_data=[(torch.randn(4, 3), ids)])
    assert found.verification is not None
    assert found.verification.form("TFLite").status == "equal"


def test_only_targets_that_name_the_form_have_it() -> None:
    assert "TFLite" in compiled(CASES["relu"]).artifact.forms
    assert "TFLite" not in compiled(CASES["relu"], "int8_dsp").artifact.forms


def test_the_same_program_gives_the_same_bytes_and_loads(tmp_path: Path) -> None:
    first, second = (compiled(CASES["concat"]) for _ in range(2))
    assert first.artifact.forms["TFLite"].files == second.artifact.forms["TFLite"].files
    first.save(tmp_path / "out")
    data = (tmp_path / "out" / FILE).read_bytes()
    assert data[4:8] == b"TFL3"
    assert qcompiler.load(tmp_path / "out").forms["TFLite"].files[FILE] == data


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda y, x: nn.functional.layer_norm(y, [12]), "int_layer_norm"),
        (lambda y, x: nn.functional.avg_pool2d(y, 3, 1, 1), "border counts"),
        (lambda y, x: torch.softmax(y, 1), "another axis"),
        (lambda y, x: nn.functional.interpolate(y, scale_factor=1.5, mode="bilinear"), "int_resample2d"),
    ],
)
def test_what_the_form_lacks_is_a_reason_and_the_other_forms_stand(
    function: Callable[[Tensor, Tensor], Tensor], words: str
) -> None:
    found = compiled(function)
    assert words in found.artifact.forms["TFLite"].reason
    assert found.artifact.forms["C"].files


def test_widths_that_the_schema_lacks_are_refused() -> None:
    wide = compiled(CASES["relu"], "w4a8_npu").artifact.program
    with pytest.raises(UnsupportedError, match="has no i4"):
        emit(wide, "model")


def test_without_litert_the_form_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "qcompiler[tflite]" in str(TFLite().available())
    found = compiled(CASES["relu"])
    assert found.verification is not None
    assert found.verification.form("TFLite").status == "not run"


def test_altered_files_are_refused() -> None:
    with pytest.raises(ArtifactError):
        TFLite().check({FILE: b"\0\0\0\0NOPE"})
    with pytest.raises(ArtifactError):
        TFLite().check({"other": b""})


def test_the_model_has_its_name() -> None:
    found = compiled(CASES["relu"])
    data = TFLite().emit(Lowered("named", found.integer.main, found.artifact.program), found.target)[FILE]
    assert b"named" in data
    assert np.frombuffer(data[:4], "<u4")[0] > 0
