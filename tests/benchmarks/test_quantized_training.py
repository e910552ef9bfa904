"""The benchmark of quantized training: its pictures, its resumable runs and its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.finished import Store
from benchmarks.quantized_training import QUICK, WHOLE, Data, Run, cells, key, main, measure
from benchmarks.quantized_training_page import MODES, Cell, interval, section
from benchmarks.scratch_networks import NETWORKS, new
from benchmarks.textured import CHUNK, CLASSES, SIZE, render, split
from benchmarks.trainings import shard

TINY = Run(16, 1, 8, "validation", 10, whole=False)


def test_pictures_are_drawn_again_and_prefixes_agree() -> None:
    first = render(60, 3)
    again = split("train", 5)
    assert first.images.shape == (60, 3, SIZE, SIZE)
    assert torch.equal(render(60, 3).images, first.images)
    assert torch.equal(render(40, 3).images, first.images[:40])
    assert not torch.equal(again.images, first.images[:5])
    assert float(first.images.min()) >= 0.0
    assert float(first.images.max()) <= 1.0
    assert CLASSES >= 40
    counts = torch.bincount(render(CHUNK, 3).labels, minlength=CLASSES)
    assert int(counts.min()) >= CHUNK // CLASSES


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_classify_and_repeat(name: str) -> None:
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    one, other = (new(name, 1).eval()(x) for _ in range(2))
    assert one.shape == (2, CLASSES)
    assert torch.equal(one, other)


def test_a_training_says_what_the_page_needs() -> None:
    data = Data(TINY)
    everything = measure(Cell("resnet18", "everything", "in_hindsight", 0), data)
    assert everything["differing"] == 0
    plain = measure(Cell("resnet18", "float", "", 0), data)
    assert {"accuracy", "loss", "seconds", "after quantization"} <= set(plain)
    assert json.loads(json.dumps(everything)) == everything


def test_a_run_goes_on_and_is_collected(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    store: Store[Cell, Run] = Store(tmp_path / "one", key, cells, WHOLE, rows=rows)
    cell = Cell("vgg", "gradients", "dsgc", 0)
    made = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"accuracy": 0.5}

    assert store.get(cell, WHOLE, make) == store.get(cell, WHOLE, make) == {"accuracy": 0.5}
    assert len(made) == 1
    assert store.path(cell, WHOLE) != store.path(cell, QUICK)
    assert store.collect() == 0
    other: Store[Cell, Run] = Store(tmp_path / "other", key, cells, WHOLE, rows=rows)
    assert other.done(WHOLE) == {cell: {"accuracy": 0.5}}


def test_a_run_holds_every_estimator_at_all_seeds() -> None:
    found = list(cells(WHOLE))
    assert len(found) == len(set(found)) == 11 * (1 + 4 * 6)
    assert {cell.mode for cell in found} == {"float", *MODES}
    assert len(list(cells(QUICK))) == 1 + 4 * 3 + 1 + 3


def test_tables_have_means_deviations_and_intervals() -> None:
    done = {
        Cell("resnet18", mode, estimator, seed): {
            "accuracy": 0.7 + 0.01 * seed + (0.002 if estimator == "running" else 0.0),
            "differing": 0,
            "after quantization": 0.69,
        }
        for mode, estimator in (("float", ""), ("everything", "in_hindsight"), ("everything", "running"))
        for seed in range(3)
    }
    text = section(done, 60_000, 12)
    assert "9 of 12 trainings are finished" in text
    assert "are finished" not in section(done, 60_000, 9)
    assert "| float | 71.00 ± 1.00 |" in text
    assert "| in_hindsight | 71.00 ± 1.00 |" in text
    assert "| resnet18 | everything |  | -0.20 ± 0.00 |" in text
    assert "| resnet18 | 71.00 ± 1.00 | 69.00 ± 0.00 | 71.00 ± 1.00 | 0 |" in text
    assert interval([1.0]) is None
    mean, half = interval([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (mean, half) == pytest.approx((2.0, 4.303 / 3**0.5))


def test_parts_of_a_run() -> None:
    assert shard("2/3") == (1, 3)
    with pytest.raises(Exception, match="1/2 for the first of two"):
        shard("0/3")


def test_the_page_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--page", "--output", str(tmp_path)]) == 0
    assert "Fewer than two seeds" in capsys.readouterr().out
