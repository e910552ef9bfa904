"""The benchmark of accuracy: its figures, its page, and that it goes on where it was."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest

from benchmarks import ptq_accuracy, ptq_page
from benchmarks.finished import Store
from benchmarks.finished import lines as rows_of
from benchmarks.networks import TWINS
from benchmarks.ptq_accuracy import COMMITTED, QUICK, WHOLE, Cell, Data, cells, draw, main, measured
from benchmarks.ptq_page import EARLIER, Figure, Measured, figure, read_earlier, section
from benchmarks.ptq_tables import (
    ACTIVATIONS,
    BEST,
    DEFAULT,
    DEFAULT_PER_CHANNEL,
    EQUALIZED,
    GOALS,
    METHODS,
    TABLES,
    WEIGHTS,
    Goal,
    Row,
    Run,
    Table,
)
from benchmarks.rendered import SPLITS, split
from qcompiler.session.pipeline import print_pipeline

SMALL = Table("Small", "Two rows.", ("resnet",), ("W8A8",), METHODS.rows[:2])
FEW = Run(("resnet",), seeds=2, split="validation", images=60, calibration=32)


def test_figure_is_mean_and_half_of_the_interval() -> None:
    values = [0.90, 0.92, 0.91]
    mean = sum(values) / 3
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    found = figure(values, 3)
    assert found.mean == pytest.approx(mean)
    # The quantile 0.975 of Student's t with two degrees of freedom, from a table.
    assert found.half == pytest.approx(4.302653 * deviation / 3**0.5, rel=1e-6)
    assert str(found) == "91.00 ± 2.48"


def test_figure_of_one_seed_has_no_interval_and_of_a_failure_no_mean() -> None:
    assert str(figure([0.5], 1)) == "50.00"
    assert figure([0.5, None, 0.6], 3) == Figure(None, None, 3, 3)
    assert str(figure([None], 1)) == "fails"


def test_figure_of_an_unfinished_run_says_so() -> None:
    assert str(figure([], 3)) == "–"
    assert str(figure([0.5, 0.6], 3)) == "55.00 (2 of 3)"


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
    data, measured_now = Data(FEW), []
    original = Cell.measure

    def counted(self: Cell, *arguments: object) -> dict[str, object]:
        measured_now.append(self.name)
        return original(self, *arguments)  # type: ignore[arg-type]

    def run() -> Measured:
        store: Store[Cell, Run] = Store(tmp_path, Cell.key, cells, WHOLE, rows=tmp_path / "rows.jsonl")
        for cell in cells(FEW):
            store.get(cell, FEW, functools.partial(data.measure, cell))
        return measured(data, store)

    monkeypatch.setattr(Cell, "measure", counted)
    whole = run()
    assert len(measured_now) == len(set(measured_now)) == 4 == len(list(cells(FEW)))
    assert all(len(values) == 2 for values in whole.found.values())
    assert 0.7 < (whole.found["Small", "resnet", "W8A8", "plain"][0] or 0) <= 1
    lost = next(tmp_path.glob(f"{measured_now[3]}-*.json"))
    lost.unlink()
    assert run() == whole
    assert measured_now[4:] == [measured_now[3]]
    text = section(whole, {})
    assert "**resnet**" in text and "| plain |" in text and " ± " in text


def test_rows_that_differ_from_earlier_figures_are_named() -> None:
    run = Run(("resnet",))
    found: dict[tuple[str, str, str, str], list[float | None]] = {}
    for cell in cells(run):
        place = (cell.table.title, cell.network, cell.width, cell.row.name)
        found.setdefault(place, []).append(0.9 + 0.001 * cell.seed)
    earlier = {
        ("resnet", DEFAULT, "W8A8"): (0.95, 0.002),
        ("resnet", DEFAULT, "W4A8"): (0.901, 0.002),
        ("resnet", BEST, "W4A4"): (0.80, 0.01),
        ("resnet", "plain", "W4A4"): (0.99, 0.001),
    }
    lines = section(Measured(run, {"resnet": 0.9}, found), earlier).splitlines()
    start = lines.index("- significantly lower: 1")
    assert lines[start + 1 : start + 4] == [
        f"  - resnet W8A8, {DEFAULT}: 90.10 ± 0.25, before 95.00 ± 0.20.",
        "- significantly higher: 1",
        f"  - resnet W4A4, {BEST}: 90.10 ± 0.25, before 80.00 ± 1.00.",
    ]
    del found[METHODS.title, "resnet", "W8A8", DEFAULT]
    assert "- significantly lower: none" in section(Measured(run, {"resnet": 0.9}, found), earlier)


def test_earlier_figures_are_those_of_rows_that_are_measured() -> None:
    earlier = read_earlier(EARLIER)
    rows, widths = {row.name for row in METHODS.rows}, set(METHODS.widths)
    assert {place[1] for place in earlier} == rows and {place[2] for place in earlier} == widths
    assert len(earlier) == len(METHODS.networks) * len(rows) * len(widths)
    assert earlier["unet", DEFAULT_PER_CHANNEL, "W8A8"] == pytest.approx((0.8792, 0.0003))


def test_names_are_unique_and_committed_results_are_those_of_cells() -> None:
    names = [cell.name for cell in cells(WHOLE)]
    assert len(names) == len(set(names))
    keys = {cell.key(WHOLE) for cell in cells(WHOLE)}
    assert {row["key"] for row in rows_of(COMMITTED)} <= keys


def test_page_shows_what_misses_beside_its_neighbours() -> None:
    run = Run(("resnet", "resnet_hard"))
    found: dict[tuple[str, str, str, str], list[float | None]] = {}
    for cell in cells(run):
        found.setdefault((cell.table.title, cell.network, cell.width, cell.row.name), []).append(0.9)
    found[METHODS.title, "resnet_hard", "W8A8", EQUALIZED] = [0.5, 0.5, 0.5]
    found[METHODS.title, "resnet", "W4A4", "plain"] = [None, None, None]
    text = section(Measured(run, {"resnet": 0.9, "resnet_hard": 0.9}, found), {})
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
    monkeypatch.setattr(ptq_accuracy, "QUICK", dataclasses.replace(FEW, seeds=1, images=40))
    assert main(["--quick", "--output", str(tmp_path)]) == 0
    assert not (tmp_path / "page.md").exists()
    captured = capsys.readouterr()
    assert captured.out.startswith("## Accuracy") and "40 images of the validation split" in captured.out
    assert "seed 0  resnet" in captured.err
