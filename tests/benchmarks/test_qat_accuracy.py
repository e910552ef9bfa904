"""The benchmark of training: what it trains, what it keeps, what its page says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import qat_accuracy, qat_tables
from benchmarks.qat_accuracy import Data, Store, main, measure
from benchmarks.qat_page import section
from benchmarks.qat_tables import (
    ABLATION,
    BASELINE,
    CHOICES,
    DAMPENING,
    FREEZING,
    HELD,
    HELD_WAYS,
    LOW,
    METHODS,
    PLACES,
    QUICK,
    TWIN,
    TWIN_WAYS,
    WHOLE,
    WIDTHS_OF_TABLE_2,
    Cell,
    Place,
    cells,
)

TINY = dataclasses.replace(QUICK, scenes=128, images=50, samples=2, choosing=2)
RESNET = Place("resnet", "W3A8")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_cell_of_the_tables_is_trained_once() -> None:
    found = list(cells(WHOLE))
    assert len(set(found)) == len(found) == len({cell.name for cell in found})
    wanted = {Cell(place, way, seed) for place in PLACES for way in METHODS for seed in range(place.seeds)}
    wanted |= {Cell(HELD, way, seed) for way in HELD_WAYS for seed in range(HELD.seeds)}
    wanted |= {Cell(place, BASELINE) for place in WIDTHS_OF_TABLE_2} | {Cell(ABLATION, CHOICES)}
    wanted |= {Cell(ABLATION, way) for way in (*DAMPENING, *FREEZING)} | {Cell(TWIN, way) for way in TWIN_WAYS}
    assert set(found) == wanted
    assert found.index(Cell(ABLATION, BASELINE)) < found.index(Cell(ABLATION, CHOICES)), "which begins with it"
    assert {(place.network, place.width, place.seeds) for place in PLACES} == {
        ("mobilenet", "W4A4", 1),
        ("mobilenet", "W3A3", 3),
        ("mobilenet", "W4A8", 1),
        ("resnet", "W4A4", 1),
    }
    assert not set(cells(QUICK)) - wanted


def test_a_training_says_what_the_page_needs(tmp_path: Path) -> None:
    data = Data(TINY)
    found = measure(Cell(RESNET, METHODS[-1]), data, tmp_path)
    assert {"at first", "before", "after", "oscillating", "frozen", "divergence", "loss", "layers"} <= set(found)
    assert len(found["loss"]) == TINY.epochs
    assert json.loads(json.dumps(found)) == found
    again = measure(Cell(RESNET, METHODS[-1]), data, tmp_path)
    assert {**again, "seconds": 0} == {**found, "seconds": 0}, "the same bits for the same seed"
    other = measure(Cell(RESNET, METHODS[-1], seed=1), data, tmp_path)
    assert other["loss"] != found["loss"]


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, cell = Store(tmp_path), Cell(RESNET, BASELINE)
    made = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"before": 0.5}

    assert store.get(cell, TINY, make) == store.get(cell, TINY, make) == {"before": 0.5}
    assert len(made) == 1
    assert Store(tmp_path, fresh=True).get(cell, TINY, make) == {"before": 0.5}
    assert len(made) == 2
    path = store.path(cell, TINY)
    assert path != store.path(Cell(RESNET, BASELINE, seed=1), TINY)
    assert path != store.path(cell, dataclasses.replace(TINY, epochs=2))
    monkeypatch.setattr(qat_accuracy, "RATE", 0.5)
    assert path != store.path(cell, TINY)


def test_choices_begin_with_what_the_baseline_learned(tmp_path: Path) -> None:
    data = Data(TINY)
    baseline = measure(Cell(RESNET, BASELINE), data, tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    found = measure(Cell(RESNET, CHOICES), data, tmp_path)
    assert found["as it is"]["accuracy"] == baseline["after"]
    assert len(found["samples"]) == TINY.samples
    assert {"loss", "accuracy", "moved"} == set(found["optimised"])


def test_the_page_of_nothing_has_all_tables_and_one_of_everything_all_figures() -> None:
    empty = section(WHOLE, {})
    done = {}
    for cell in cells(WHOLE):
        found: dict[str, Any] = {"at first": 0.125, "before": 0.5, "after": 0.625, "oscillating": 0.01, "frozen": 0.25}
        found |= {"divergence": {"norm": [0.5, 0.25]}, "differing": 0}
        if cell.way == CHOICES:
            item = {"loss": 0.5, "accuracy": 0.75, "moved": 3}
            found = {"as it is": item, "samples": [item, {**item, "loss": 0.4}], "optimised": item}
        done[cell] = found
    full = section(WHOLE, done)
    assert [line for line in empty.splitlines() if line.startswith("#")] == [
        line for line in full.splitlines() if line.startswith("#")
    ]
    assert full.count("–") == 1, "nobody knows the loss of what is there for comparison"
    assert empty.count("–") > 100
    assert " of 3)" not in full
    assert "| LSQ + freezing | 50.00 ± 0.00 | 62.50 ± 0.00 | 1.00 ± 0.00 | 25.00 ± 0.00 |" in full
    assert "| sampled 2 times, mean (standard deviation) | 0.4500 (0.0707) | 75.00 (0.00) |" in full
    assert "| mobilenet | W3A3 | `norm` | 0.5000 | 0.2500 |" in full
    assert max(map(len, full.splitlines())) <= 120
    part = {cell: found for cell, found in done.items() if cell.seed < 2}
    assert "| LSQ | 50.00 (2 of 3) |" in section(WHOLE, part)
    assert "| LSQ | 50.00 |" in section(QUICK, part), "a quick run has one seed"
    assert " of 1)" not in section(QUICK, part)
    assert section(QUICK, {cell: done[cell] for cell in cells(QUICK)}).count("–") == 1, "and no empty rows"


def test_main_prints_the_page_and_leaves_the_documentation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(qat_accuracy, "QUICK", TINY)
    monkeypatch.setattr(qat_accuracy, "write_section", None)
    assert main(["--quick", "--only", "resnet", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "resnet W4A4" in printed.out
    assert printed.err.count("resnet-W4A4") == 1
    assert main(["--quick", "--page", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == printed.out


def test_strengths_of_the_tables_hold_that_of_table_6() -> None:
    assert any(way.regularizers == METHODS[5].regularizers for way in DAMPENING)
    assert any(way.freezing == METHODS[6].freezing for way in FREEZING)
    assert qat_tables.LOW is LOW
