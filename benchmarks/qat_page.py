"""The page of `qat_accuracy`: the tables of the papers in small, as far as their trainings are finished."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.ptq_page import WIDTH, figure
from benchmarks.qat_tables import (
    ABLATION,
    BASELINE,
    CHOICES,
    DAMPENING,
    FLOOR,
    FREEZING,
    HELD,
    HELD_WAYS,
    LOW,
    METHODS,
    PLACES,
    TWIN,
    TWIN_WAYS,
    WIDTHS_OF_TABLE_2,
    Cell,
    Place,
    Run,
    Way,
    cells,
)
from benchmarks.rendered import CLASSES

__all__ = ["section"]

Done = Mapping[Cell, Mapping[str, Any]]
COLUMNS = ("before", "after", "oscillating, %", "frozen, %")
KEYS = ("before", "after", "oscillating", "frozen")
"""What a training gave, for those columns."""
NOTHING = "–"
"""Of a cell that is not there."""


@dataclass(frozen=True)
class _Found:
    """What a run has to show.

    Args:
        done: What each finished training gave.
        planned: The trainings of the run: the tables have no other rows.
    """

    done: Done
    planned: frozenset[Cell]

    def ways(self, place: Place, ways: Sequence[Way]) -> list[Way]:
        """Those that are trained at a place."""
        return [way for way in ways if Cell(place, way) in self.planned]

    def seeds(self, place: Place, way: Way) -> list[int]:
        """Of the trainings of a row."""
        return [seed for seed in range(place.seeds) if Cell(place, way, seed) in self.planned]


def section(run: Run, done: Done) -> str:
    """All of it, Markdown. A quick run has the tables and rows that it trains for.

    Args:
        run: Which.
        done: What each finished training gave.
    """
    about = f"""Made by `python -m benchmarks.qat_accuracy`. Networks and pictures are those of the accuracy of
        post-training quantization above; each training starts from the committed weights and runs over
        {run.scenes:,} scenes {run.epochs} times, in batches of {run.batch}. The scheme is that of the papers (target
        `lsq_paper`): one scale per tensor, inputs and weights of layers quantized, first and last layer with 8 bits,
        batch norms in float. Figures are top-1 accuracy on {run.images:,} images of the {run.split} split, percent
        (chance: {100 / CLASSES:.1f}), before and after batch norms were estimated anew from 50 batches. A weight
        oscillates if the frequency of its oscillations is above 0.005 (momentum {run.momentum:g}); frozen weights
        do not. Two rows of one seed that are nearer than half a point are not told apart; what else is to be said of
        the differences stands in [decision 26](decisions/0026-oscillations-in-short-trainings.md)."""
    found = _Found(done, frozenset(cells(run)))
    lines = [
        "## Accuracy of quantization-aware training",
        "",
        *textwrap.wrap(" ".join(about.split()), WIDTH),
        "",
        *_methods(found),
        *_widths(found),
        *_choices(found),
        *_ablation(found, "Dampening", "Table 4 of the paper on oscillations", DAMPENING),
        *_ablation(found, "Freezing", "Table 5 of the paper on oscillations", FREEZING),
        *_divergences(found),
        *_twin(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _methods(found: _Found) -> list[str]:
    lines = ["### Methods", "", "Table 6 of the paper on oscillations."]
    for place, methods in ((PLACES[0], METHODS), (HELD, HELD_WAYS), *((place, METHODS) for place in PLACES[1:])):
        ways = found.ways(place, methods)
        if not ways:
            continue
        count = len(found.seeds(place, ways[0]))
        seeds = f", {count} seeds: mean and 95 % confidence interval (Student's t)" if count > 1 else ""
        held = f", rates end at {place.floor:.0%} in place of {FLOOR:.0%}" if place.floor != FLOOR else ""
        lines += ["", f"**{place.network} {place.width}**{held}{seeds}", "", *_header(*COLUMNS)]
        lines += [_row(way.name, [_figure(found, place, way, key) for key in KEYS]) for way in ways]
    return [*lines, ""]


def _widths(found: _Found) -> list[str]:
    lines = [
        "### Before and after batch norms are estimated anew",
        "",
        "Table 2 of the paper on oscillations: LSQ.",
        "",
    ]
    lines += ["| network | width | before | after | oscillating, % |", "|---|---|---:|---:|---:|"]
    for place in (place for place in WIDTHS_OF_TABLE_2 if found.ways(place, [BASELINE])):
        figures = [_figure(found, place, BASELINE, key) for key in ("before", "after", "oscillating")]
        lines.append(_row(f"{place.network} | {place.width}", figures))
    return [*lines, ""]


def _ablation(found: _Found, title: str, about: str, ways: Sequence[Way]) -> list[str]:
    lines = [f"### {title}", "", f"{about}: {ABLATION.network} {ABLATION.width}.", ""]
    lines += _header(*COLUMNS)
    for way in found.ways(ABLATION, (BASELINE, *ways)):
        figures = [_figure(found, ABLATION, way, key) for key in KEYS]
        lines.append(_row(way.name, figures))
    return [*lines, ""]


def _choices(found: _Found) -> list[str]:
    about = f"""Table 3 of the paper on oscillations: {ABLATION.network} {ABLATION.width}, LSQ; loss on training scenes,
        nats, and accuracy, after batch norms were estimated anew."""
    lines = ["### Codes chosen after training", "", *textwrap.wrap(" ".join(about.split()), WIDTH), ""]
    lines += _header("loss", "accuracy")
    chosen = found.done.get(Cell(ABLATION, CHOICES))
    if chosen is None:
        return [*lines, _row("not finished", [NOTHING, NOTHING]), ""]
    samples = chosen["samples"]
    best = min(samples, key=lambda item: item["loss"])

    def row(name: str, item: Mapping[str, float]) -> str:
        return _row(name, [f"{item['loss']:.4f}", f"{100 * item['accuracy']:.2f}"])

    losses, accuracies = ([item[key] for item in samples] for key in ("loss", "accuracy"))
    lines.append(row("LSQ", chosen["as it is"]))
    spread = [
        f"{statistics.fmean(values) * unit:.{digits}f} ({statistics.stdev(values) * unit:.{digits}f})"
        for values, unit, digits in ((losses, 1, 4), (accuracies, 100, 2))
    ]
    lines.append(_row(f"sampled {len(samples)} times, mean (standard deviation)", spread))
    lines.append(row("the sample of least loss", best))
    lines.append(row(f"optimised, {chosen['optimised']['moved']} codes moved", chosen["optimised"]))
    frozen = FREEZING[-1]
    lines.append(_row(f"for comparison: {frozen.name}", [NOTHING, _figure(found, ABLATION, frozen, "after")]))
    return [*lines, ""]


def _divergences(found: _Found) -> list[str]:
    """The largest of the divergences, by layer."""
    lines = ["### Statistics of batch norms", "", "Table 1 of the paper on oscillations: KL divergence of the running"]
    lines[-1] += " statistics from those of data, nats."
    lines += ["", "| network | width | batch norm | largest | mean |", "|---|---|---|---:|---:|"]
    for place in (*WIDTHS_OF_TABLE_2[1:2], ABLATION, LOW):
        trained = found.done.get(Cell(place, BASELINE))
        if trained is None:
            continue
        for name, (largest, mean) in sorted(trained["divergence"].items(), key=lambda item: -item[1][0])[:3]:
            lines.append(f"| {place.network} | {place.width} | `{name}` | {largest:.4f} | {mean:.4f} |")
    return [*lines, ""]


def _twin(found: _Found) -> list[str]:
    about = f"""Table 9 of the white paper: {TWIN.network} {TWIN.width}, one scale per weight, batch norms folded,
        target `int8_dsp`; accuracy of the integer program, of whose elements on the test images so many differ from
        what the module computes in eval mode; "refused" where training has destroyed a range, which compile says."""
    lines = ["### Training needs equalization", "", *textwrap.wrap(" ".join(about.split()), WIDTH), ""]
    lines += _header("at first", "trained", "differing")
    for way in found.ways(TWIN, TWIN_WAYS):
        trained = found.done.get(Cell(TWIN, way))
        if trained is None:
            lines.append(_row(way.name, [NOTHING] * 3))
        else:
            figures = [f"{100 * trained[key]:.2f}" for key in ("at first", "before")]
            differing = trained["differing"]
            lines.append(_row(way.name, [*figures, str(differing) if isinstance(differing, int) else "refused"]))
    return [*lines, ""]


def _figure(found: _Found, place: Place, way: Way, key: str) -> str:
    """Mean over the seeds of a row, and its interval; percent."""
    trained = [found.done.get(Cell(place, way, seed)) for seed in found.seeds(place, way)]
    known = [item[key] for item in trained if item is not None and key in item]
    if not known:
        return NOTHING
    if len(known) < len(trained):
        return f"{100 * statistics.fmean(known):.2f} ({len(known)} of {len(trained)})"
    return str(figure(known))


def _header(*columns: str) -> list[str]:
    return [f"| | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]


def _row(name: str, figures: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(figures)} |"
