"""The example of quantized training: its page shows its code, and it ends in an artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qcompiler
from examples.digits.data import load_data
from examples.quantized_training import train
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "howto" / "train_in_integers.md"


def test_the_page_shows_the_functions_of_the_example() -> None:
    source = (ROOT / "examples" / "quantized_training" / "train.py").read_text(encoding="utf-8")
    functions = [
        f"def {part}".rstrip() for block in blocks(PAGE) for part in ("\n" + block).split("\ndef ")[1:] if part
    ]
    assert {name.split("(")[0] for name in functions} == {"def prepare", "def train"}
    for function in functions:
        assert function.split("\n\n\n")[0] in source


def test_the_example_ends_in_an_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "artifact"
    train.main(["--epochs", "1", "--gradient-bits", "4", "--output", str(output)])
    printed = capsys.readouterr().out
    accuracies = [line.split()[-1] for line in printed.splitlines() if line.endswith("%")]
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1], "the measured model is the shipped model"
    data = load_data()
    logits = qcompiler.load(output).run(data.test_images)
    assert isinstance(logits, torch.Tensor)
    assert f"{(logits.argmax(1) == data.test_labels).double().mean().item():.2%}" == accuracies[1]
    assert "<svg" in (tmp_path / "artifact-ranges.svg").read_text(encoding="utf-8")
