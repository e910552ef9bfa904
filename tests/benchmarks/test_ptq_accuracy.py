"""The benchmark of accuracy: its figures, its page, and that it goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import ptq_accuracy, ptq_page
from benchmarks.networks import TWINS
from benchmarks.ptq_accuracy import QUICK, Cell, Store, cells, draw, main, measure
from benchmarks.ptq_page import Figure, Measured, figure, section
from benchmarks.ptq_tables import ACTIVATIONS, EQUALIZED, GOALS, METHODS, TABLES, WEIGHTS, Goal, Row, Run, Table
from benchmarks.rendered import SPLITS, split
from qcompiler.session.pipeline import print_pipeline

SMALL = Table("Small", "Two rows.", ("resnet",), ("W8A8",), METHODS.rows[:2])
FEW = Run(("resnet",), seeds=2, split="validation", images=60, calibration=32)


def test_figure_is_mean_and_half_of_the_interval() -> None:
    values = [0.90, 0.92, 0.91]
    mean = sum(values) / 3
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    found = figure(values)
    assert found.mean == pytest.approx(mean)
    # The quantile 0.975 of Student's t with two degrees of freedom, from a table.
    assert found.half == pytest.approx(4.302653 * deviation / 3**0.5, rel=1e-6)
    assert str(found) == "91.00 ± 2.48"


def test_figure_of_one_seed_has_no_interval_and_of_a_failure_no_mean() -> None:
    assert str(figure([0.5])) == "50.00"
    assert figure([0.5, None, 0.6]) == Figure(None, None) == figure([])
    assert str(figure([None])) == "fails"


@pytest.mark.parametrize(("found", "met"), [(0.885, True), (0.8799, False), (0.95, True)])
def test_goal_by_points(found: float, met: bool) -> None:
    assert Goal("", (), "W4A8", "plain", points=2.0).is_met(0.9, found) is met


@pytest.mark.parametrize(("found", "met"), [(0.8911, True), (0.89, False)])
def test_goal_by_share(found: float, met: bool) -> None:
    assert Goal("", (), "W8A8", "plain", share=0.99).is_met(0.9, found) is met


def test_goals_name_cells_that_are_measured() -> None:
    for goal in GOALS:
        assert set(goal.networks) <= set(METHODS.networks) and goal.width in METHODS.widths
        assert goal.row in {row.name for row in METHODS.rows}


def test_whole_run_is_on_the_test_split_with_three_seeds() -> None:
    run = Run()
    assert run.is_complete and run.split == "test" and run.images >= 5000 and run.seeds == 3
    assert run.calibration <= SPLITS["calibration"][0]
    assert not QUICK.is_complete and QUICK.split == "validation"
    count = sum(len(table.networks) * len(table.widths) * len(table.rows) for table in TABLES)
    keys = [cell.key(run) for cell in cells(run)]
    assert len(keys) == 3 * count
    assert {name for table in TABLES for name in table.networks} == {*run.networks} >= {*TWINS}


def test_key_follows_all_that_a_cell_depends_on() -> None:
    cell = Cell(METHODS, "resnet", "W8A8", METHODS.rows[0], 0)
    row = METHODS.rows[0]
    others = [
        dataclasses.replace(cell, network="mobilenet"),
        dataclasses.replace(cell, network="resnet_hard"),
        dataclasses.replace(cell, width="W4A8"),
        dataclasses.replace(cell, seed=1),
        dataclasses.replace(cell, row=dataclasses.replace(row, per_channel=True)),
        dataclasses.replace(cell, row=dataclasses.replace(row, activations="mse")),
        dataclasses.replace(cell, row=dataclasses.replace(row, effort="best")),
    ]
    keys = [item.key(FEW) for item in (cell, *others)]
    keys.append(cell.key(dataclasses.replace(FEW, images=61)))
    keys.append(cell.key(dataclasses.replace(FEW, calibration=16)))
    keys.append(cell.key(dataclasses.replace(FEW, split="test")))
    assert len(set(keys)) == len(keys)
    assert cell.key(FEW) == dataclasses.replace(cell, row=dataclasses.replace(row, name="other")).key(FEW)


def test_rows_put_their_passes_where_they_belong() -> None:
    names = {row.name: [item.name for item in row.pipeline(4)] for row in METHODS.rows}
    corrected = names["+ bias correction"]
    assert corrected.index("cross-layer-equalization") < corrected.index("absorb-bias") < corrected.index("partition")
    assert (
        corrected.index("calibrate-weights")
        < corrected.index("correct-bias")
        < corrected.index("calibrate-activations")
    )
    assert "cross-layer-equalization" in names[EQUALIZED] and "absorb-bias" not in names[EQUALIZED]
    plain = METHODS.rows[0]
    assert "calibrate-weights{method=mse}" in print_pipeline(plain.pipeline(4))
    assert "calibrate-weights{" not in print_pipeline(plain.pipeline(8))
    best = next(row for row in METHODS.rows if row.effort == "best")
    assert (
        print_pipeline(best.pipeline(4, 4)) != print_pipeline(best.pipeline(4, 8)) == print_pipeline(best.pipeline(4))
    )
    ranges = {print_pipeline(row.pipeline(8)) for row in ACTIVATIONS.rows}
    assert len(ranges) == len(ACTIVATIONS.rows)
    assert len({(row.per_channel, print_pipeline(row.pipeline(4))) for row in WEIGHTS.rows}) == len(WEIGHTS.rows)


def test_target_has_the_widths() -> None:
    target = Cell(WEIGHTS, "resnet", "W4A16", Row("", per_channel=True), 0).target()
    assert target.per_channel
    assert (target.weight_spec("conv2d", 0).bits, target.activation_spec().bits) == (4, 16)


def test_draws_differ_by_seed_and_come_from_the_pool() -> None:
    pool = split("calibration").images[:300]
    first, again, second = (draw(pool, 100, seed) for seed in (0, 0, 1))
    assert [len(batch) for batch in first] == [64, 36]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (first[0] == second[0]).all()
    known = {image.numpy().tobytes() for image in pool}
    assert all(image.numpy().tobytes() in known for batch in first for image in batch)


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptq_accuracy, "TABLES", (SMALL,))
    monkeypatch.setattr(ptq_page, "TABLES", (SMALL,))
    monkeypatch.setattr(ptq_page, "GOALS", ())
    path = tmp_path / "cells.json"
    whole = measure(FEW, Store(path))
    finished = json.loads(path.read_text())
    assert len(finished) == 4 == len(list(cells(FEW)))
    assert all(len(values) == 2 for values in whole.found.values())
    assert 0.7 < (whole.found["Small", "resnet", "W8A8", "plain"][0] or 0) <= 1

    lost = sorted(finished)[3]
    measured_now = []
    path.write_text(json.dumps({key: cell for key, cell in finished.items() if key != lost}))
    original = Cell.measure

    def counted(self: Cell, *arguments: object) -> dict[str, object]:
        measured_now.append(self)
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Cell, "measure", counted)
    assert measure(FEW, Store(path)) == whole
    assert len(measured_now) == 1
    text = section(whole)
    assert "**resnet**" in text and "| plain |" in text and " ± " in text


def test_page_shows_what_misses_beside_its_neighbours() -> None:
    run = Run(("resnet", "resnet_hard"))
    found: dict[tuple[str, str, str, str], list[float | None]] = {}
    for cell in cells(run):
        found.setdefault((cell.table.title, cell.network, cell.width, cell.row.name), []).append(0.9)
    found[METHODS.title, "resnet_hard", "W8A8", EQUALIZED] = [0.5, 0.5, 0.5]
    found[METHODS.title, "resnet", "W4A4", "plain"] = [None, None, None]
    text = section(Measured(run, {"resnet": 0.9, "resnet_hard": 0.9}, found))
    assert (
        f"- {GOALS[0].text}: 0 of 1 networks.\n  - `resnet_hard`, float 90.00: W8A8 {EQUALIZED} 50.00 ± 0.00;" in text
    )
    assert f"- {GOALS[1].text}: 2 of 2 networks.\n" in text
    assert "| plain | 90.00 ± 0.00 | 90.00 ± 0.00 | fails |" in text
    assert text.count("**resnet_hard**") == 1 and text.count("**resnet**") == 3


def test_command_writes_no_page_when_not_all_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ptq_accuracy, "TABLES", (SMALL,))
    monkeypatch.setattr(ptq_page, "TABLES", (SMALL,))
    monkeypatch.setattr(ptq_page, "GOALS", ())
    monkeypatch.setattr(ptq_accuracy, "PERFORMANCE", tmp_path / "page.md")
    arguments = ["--quick", "--networks", "resnet", "--images", "40", "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert not (tmp_path / "page.md").exists()
    captured = capsys.readouterr()
    assert captured.out.startswith("## Accuracy") and "40 images of the validation split" in captured.out
    assert "seed 0  resnet" in captured.err
