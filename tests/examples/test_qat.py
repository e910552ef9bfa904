"""The example of training: its page shows its code, and it ends in an artifact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import qcompiler
from benchmarks.rendered import split
from examples.qat import train
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "howto" / "train_with_quantization.md"


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_page_shows_the_functions_of_the_example() -> None:
    source = (ROOT / "examples" / "qat" / "train.py").read_text(encoding="utf-8")
    functions = [
        f"def {part}".rstrip() for block in blocks(PAGE) for part in ("\n" + block).split("\ndef ")[1:] if part
    ]
    assert {name.split("(")[0] for name in functions} == {"def prepare", "def batches", "def train", "def accuracy"}
    for function in functions:
        assert function.split("\n\n\n")[0] in source


@pytest.mark.usefixtures("one_thread")
def test_three_bits_end_in_an_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "artifact"
    options = ["--bits", "3", "--epochs", "1", "--scenes", "128", "--images", "60", "--output", str(output)]
    train.main(options)
    printed = capsys.readouterr().out
    accuracies = [line.split()[-1] for line in printed.splitlines() if line.endswith("%")]
    assert len(accuracies) == 3
    assert accuracies[1] == accuracies[2], "the measured model is the shipped model"
    compiled = qcompiler.load(output)
    assert compiled.target.weight_bits == 3
    images = split("validation").images[:60]
    labels = split("validation").labels[:60]
    logits = compiled.run(images)
    assert isinstance(logits, torch.Tensor)
    assert f"{(logits.argmax(1) == labels).double().mean().item():.2%}" == accuracies[2]
    assert "<svg" in (tmp_path / "artifact-oscillations.svg").read_text(encoding="utf-8")
