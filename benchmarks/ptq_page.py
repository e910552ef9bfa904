"""The page of `ptq_accuracy`: tables of means and confidence intervals, missed goals, and rows that changed."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from benchmarks.finished import lines as rows_of
from benchmarks.networks import TWINS, weights_digest
from benchmarks.ptq_tables import (
    BEST,
    BEST_PER_CHANNEL,
    DEFAULT,
    DEFAULT_PER_CHANNEL,
    EQUALIZED,
    GOALS,
    METHODS,
    TABLES,
    Goal,
    Run,
    Table,
)
from benchmarks.rendered import CLASSES, FAMILIES, SPLITS

__all__ = ["EARLIER", "Figure", "Measured", "figure", "read_earlier", "section"]

EARLIER = Path(__file__).with_name("results") / "ptq_accuracy_earlier.jsonl"
"""Figures of the page of 2026-11-21, before decisions 38 and 41, as they were printed."""
SEEDS = 3
"""Seeds of the earlier figures."""

CONFIDENCE = 0.95
WIDTH = 120
"""Width of the page's text, characters."""


@dataclass(frozen=True)
class Measured:
    """The results of a run.

    Args:
        run: Settings of the run.
        exact: Accuracy of each network in float, 0..1.
        found: Per title of a table, network, width and name of a row: the accuracy with each seed that is finished,
            None where the compile failed.
    """

    run: Run
    exact: dict[str, float]
    found: dict[tuple[str, str, str, str], list[float | None]]

    def figure(self, table: Table, network: str, width: str, row: str) -> Figure:
        """The figure of a cell."""
        return figure(self.found.get((table.title, network, width, row), []), self.run.seeds)


@dataclass(frozen=True)
class Figure:
    """Mean over seeds and half of its confidence interval; None where a compile failed, or there is one seed.

    Args:
        mean: Mean over the finished seeds.
        half: Half of the interval.
        finished: Number of seeds.
        planned: Number of seeds of the run.
    """

    mean: float | None
    half: float | None
    finished: int
    planned: int

    def __str__(self) -> str:
        if not self.finished:
            return "–"
        if self.mean is None:
            return "fails"
        text = f"{100 * self.mean:.2f}"
        if self.finished < self.planned:
            return f"{text} ({self.finished} of {self.planned})"
        return text + ("" if self.half is None else f" ± {100 * self.half:.2f}")


def figure(values: Sequence[float | None], planned: int | None = None) -> Figure:
    """Mean of accuracies and its interval by Student's t distribution: s t / sqrt(n).

    Args:
        values: Accuracies with the seeds that are finished; None where a compile failed.
        planned: Number of seeds of the run; None: all are finished.
    """
    planned = len(values) if planned is None else planned
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Figure(None, None, len(values), planned)
    if len(known) == 1:
        return Figure(known[0], None, 1, planned)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(known) - 1))
    half = quantile * statistics.stdev(known) / len(known) ** 0.5
    return Figure(statistics.mean(known), half, len(known), planned)


Place = tuple[str, str, str]
"""Network, row and width of a figure of the table of methods."""


def read_earlier(path: Path) -> dict[Place, tuple[float, float]]:
    """Earlier figures of the table of methods: mean and half of the interval, 0..1."""
    found = {}
    for row in rows_of(path):
        if row["table"] != METHODS.title:
            continue
        for width, text in row["figures"].items():
            mean, _, half = text.partition(" ± ")
            found[row["network"], row["row"], width] = (float(mean) / 100, float(half) / 100)
    return found


def _is_significant(now: Figure, mean: float, half: float) -> bool:
    """Whether two means over seeds differ: Welch's t test."""
    assert now.mean is not None and now.half is not None
    deviations = [
        size * seeds**0.5 / float(stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1))
        for size, seeds in ((now.half, now.finished), (half, SEEDS))
    ]
    if not any(deviations):
        return now.mean != mean
    test = stats.ttest_ind_from_stats(
        now.mean, deviations[0], now.finished, mean, deviations[1], SEEDS, equal_var=False
    )
    return bool(test.pvalue < 1 - CONFIDENCE)


def section(measured: Measured, earlier: Mapping[Place, tuple[float, float]]) -> str:
    """All of it, Markdown.

    Args:
        measured: The finished cells.
        earlier: Figures from `read_earlier`.
    """
    run = measured.run
    interval = f", mean and {CONFIDENCE:.0%} confidence interval (Student's t)" if run.seeds > 1 else ""
    about = """Made by `python -m benchmarks.ptq_accuracy`. The networks are small ones, trained once, by `python -m
        benchmarks.train`, on pictures that a program draws (`benchmarks/rendered.py`); their weights are committed and
        were fixed before any of this was measured. A hard twin is the same function with channels that were scaled
        apart by three decades; that of the mobile network is made of one that was trained with ReLU."""
    figures = f"""Figures are those of the integer program on {run.images:,} images of the {run.split} split, percent:
        top-1 accuracy (chance: {100 / CLASSES:.1f}), of `unet` the mean intersection over union of {FAMILIES} classes.
        Seeds: {run.seeds}{interval}; each draws {run.calibration} calibration images out of
        {SPLITS["calibration"][0]:,} that are in no other split. Rows of an effort have the passes of that effort. In
        all others, unless a row says another method, weights of less than eight bits have ranges of least squared
        error, and activations those of the percentile 99.99; decision 41 explains those of efforts."""
    planned = run.seeds * sum(
        len(table.widths) * len(table.rows) * len({*table.networks} & {*measured.exact}) for table in TABLES
    )
    finished = sum(map(len, measured.found.values()))
    if finished < planned:
        figures += f" {finished} of {planned} cells are finished; a dash stands for a figure that is missing."
    lines = [
        "## Accuracy of post-training quantization",
        "",
        *textwrap.wrap(" ".join(about.split()), WIDTH),
        "",
        *textwrap.wrap(" ".join(figures.split()), WIDTH),
        "",
        "| network | float | weights, SHA-256 |",
        "|---|---:|---|",
    ]
    for network, exact in measured.exact.items():
        made_of = f"those of `{TWINS[network]}`" if network in TWINS else f"`{weights_digest(network)[:16]}`"
        lines.append(f"| {network} | {100 * exact:.2f} | {made_of} |")
    lines += ["", *_goals(measured), *_changes(measured, earlier)]
    for table in TABLES:
        networks = [name for name in table.networks if name in measured.exact]
        if networks:
            lines += ["", f"### {table.title}", "", table.about]
        for network in networks:
            lines += [
                "",
                f"**{network}**, float {100 * measured.exact[network]:.2f}",
                "",
                *_rows(measured, table, network),
            ]
    return "\n".join(lines) + "\n"


def _changes(measured: Measured, earlier: Mapping[Place, tuple[float, float]]) -> list[str]:
    """Rows of the efforts "default" and "best" that differ from earlier figures by more than the draws explain."""
    below: list[str] = []
    above: list[str] = []
    compared = 0
    for (network, row, width), (mean, half) in earlier.items():
        now = measured.figure(METHODS, network, width, row)
        whole = now.mean is not None and now.half is not None and now.finished == now.planned
        if row not in (DEFAULT, DEFAULT_PER_CHANNEL, BEST, BEST_PER_CHANNEL) or not whole:
            continue
        compared += 1
        if _is_significant(now, mean, half):
            text = f"  - {network} {width}, {row}: {now}, before {100 * mean:.2f} ± {100 * half:.2f}."
            (below if (now.mean or 0.0) < mean else above).append(text)
    if not compared:
        return []
    about = f"""{compared} rows of the efforts are compared with those of 2026-11-21 (Welch's t over seeds,
        {CONFIDENCE:.0%}; of as many rows that do not differ, about {(1 - CONFIDENCE) * compared:.0f} would be named).
        The images are the same, so that the test knows nothing of their choice."""
    return [
        "",
        "### Beside earlier figures",
        "",
        *textwrap.wrap(" ".join(about.split()), WIDTH),
        "",
        f"- significantly lower: {len(below) or 'none'}",
        *below,
        f"- significantly higher: {len(above) or 'none'}",
        *above,
    ]


def _rows(measured: Measured, table: Table, network: str) -> list[str]:
    lines = [f"| | {' | '.join(table.widths)} |", "|---" + "|---:" * len(table.widths) + "|"]
    for row in table.rows:
        figures = [str(measured.figure(table, network, width, row.name)) for width in table.widths]
        lines.append(f"| {row.name} | {' | '.join(figures)} |")
    return lines


def _goals(measured: Measured) -> list[str]:
    """Networks that miss a goal, with the cells that differ in one thing: in width, or in the row."""
    lines = ["### Goals", ""]
    for goal in GOALS:
        asked = [name for name in goal.networks if measured.figure(METHODS, name, goal.width, goal.row).finished]
        if not asked:
            continue
        missed = [name for name in asked if not _is_met(measured, goal, name)]
        lines.append(f"- {goal.text}: {len(asked) - len(missed)} of {len(asked)} networks.")
        for name in missed:
            near = [(width, goal.row) for width in (goal.width, *METHODS.widths)]
            near += [(goal.width, row) for row in (EQUALIZED, BEST, BEST_PER_CHANNEL)]
            near = list(dict.fromkeys(near))  # the missed cell first, each once
            figures = [f"{width} {row} {measured.figure(METHODS, name, width, row)}" for width, row in near]
            lines.append(f"  - `{name}`, float {100 * measured.exact[name]:.2f}: {'; '.join(figures)}.")
    return lines


def _is_met(measured: Measured, goal: Goal, network: str) -> bool:
    mean = measured.figure(METHODS, network, goal.width, goal.row).mean
    return mean is not None and goal.is_met(measured.exact[network], mean)
