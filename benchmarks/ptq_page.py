"""The page of `ptq_accuracy`: tables of means and confidence intervals, and which goals are missed."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from benchmarks.networks import TWINS, weights_digest
from benchmarks.ptq_tables import BEST, BEST_PER_CHANNEL, EQUALIZED, GOALS, METHODS, TABLES, Goal, Run, Table
from benchmarks.rendered import CLASSES, FAMILIES, SPLITS

__all__ = ["Figure", "Measured", "figure", "section"]

CONFIDENCE = 0.95
WIDTH = 120
"""Width of the page's text, characters."""


@dataclass(frozen=True)
class Measured:
    """The results of a run.

    Args:
        run: Settings of the run.
        exact: Accuracy of each network in float, 0..1.
        found: Per title of a table, network, width and name of a row: the accuracy with each seed, None where the
            compile failed.
    """

    run: Run
    exact: dict[str, float]
    found: dict[tuple[str, str, str, str], list[float | None]]

    def figure(self, table: Table, network: str, width: str, row: str) -> Figure:
        """The figure of a cell."""
        return figure(self.found[table.title, network, width, row])


@dataclass(frozen=True)
class Figure:
    """Mean over seeds and half of its confidence interval; None where a compile failed, or there is one seed."""

    mean: float | None
    half: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return "fails"
        return f"{100 * self.mean:.2f}" + ("" if self.half is None else f" ± {100 * self.half:.2f}")


def figure(values: Sequence[float | None]) -> Figure:
    """Mean of accuracies and its interval by Student's t distribution: s t / sqrt(n)."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Figure(None, None)
    if len(known) == 1:
        return Figure(known[0], None)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(known) - 1))
    return Figure(statistics.mean(known), quantile * statistics.stdev(known) / len(known) ** 0.5)


def section(measured: Measured) -> str:
    """All of it, Markdown."""
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
    lines += ["", *_goals(measured)]
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
        asked = [name for name in goal.networks if name in measured.exact]
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
