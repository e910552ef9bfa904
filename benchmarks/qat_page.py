"""The page of `qat_accuracy`: the tables of the papers in small, as far as their trainings are finished."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.ptq_page import WIDTH, figure
from benchmarks.qat_results import Earlier
from benchmarks.qat_tables import (
    ABLATION,
    BASELINE,
    CHOICES,
    DAMPENING,
    FLOOR,
    FREEZING,
    GATED,
    HELD,
    HELD_WAYS,
    LOW,
    METHODS,
    PLACES,
    TWIN,
    TWIN_WAYS,
    WHOLE,
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
"""Keys of a result, for those columns."""
OLD = COLUMNS[:3]
"""Columns that stand a second time at the end of a row, with the figures of the numerics before."""
NOTHING = "–"
"""Text of a figure that is missing."""


@dataclass(frozen=True)
class _Found:
    """The figures of a run.

    Args:
        done: Results of the finished trainings.
        planned: The trainings of the run: the tables have no other rows.
        earlier: Figures of the numerics before.
    """

    done: Done
    planned: frozenset[Cell]
    earlier: Earlier

    def ways(self, place: Place, ways: Sequence[Way]) -> list[Way]:
        """The methods that are trained at a place."""
        return [way for way in ways if Cell(place, way) in self.planned]

    def seeds(self, place: Place, way: Way) -> list[int]:
        """Seeds of the trainings of a row."""
        return [seed for seed in range(place.seeds) if Cell(place, way, seed) in self.planned]


def section(run: Run, done: Done, earlier: Earlier | None = None) -> str:
    """All of it, Markdown. A quick run has the tables and rows that it trains for.

    Args:
        run: The run.
        done: Results of the finished trainings.
        earlier: Figures of the numerics before, to be shown next to the results; None for none.
    """
    about = f"""Made by `python -m benchmarks.qat_accuracy`. Networks and pictures are those of the accuracy of
        post-training quantization above; each training starts from the committed weights and runs over
        {run.scenes:,} scenes {run.epochs} times, in batches of {run.batch}. The scheme is that of the papers (target
        `lsq_paper`): one scale per tensor, inputs and weights of layers quantized, first and last layer with 8 bits,
        batch norms in float. Figures are top-1 accuracy on {run.images:,} images of the {run.split} split, percent
        (chance: {100 / CLASSES:.1f}), before and after batch norms were estimated anew from 50 batches. A weight
        oscillates if the frequency of its oscillations is above 0.005 (momentum {run.momentum:g}); frozen weights
        do not. Columns called "old" have the figures of the same trainings before the gradients of scales changed
        ([decision 27](decisions/0027-gradients-of-scales.md)). Two rows of one seed that are nearer than half a point
        are not told apart; what else is to be said of the differences stands in [decision
        26](decisions/0026-oscillations-in-short-trainings.md)."""
    found = _Found(done, frozenset(cells(run)), earlier or Earlier({}))
    planned = len(found.planned)
    state = f"{len(done)} of {planned} trainings are finished; a dash stands for a figure that is missing."
    lines = [
        "## Accuracy of quantization-aware training",
        "",
        *_paragraph(about),
        "",
        *([state, ""] if len(done) < planned else []),
        *_methods(found),
        *_gated(found),
        *_widths(found),
        *_choices(found),
        *_ablation(found, "Dampening", "Table 4 of the paper on oscillations", DAMPENING),
        *_ablation(found, "Freezing", "Table 5 of the paper on oscillations", FREEZING),
        *_divergences(found),
        *_twin(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _paragraph(text: str) -> list[str]:
    """Lines of Markdown; links are not broken at the hyphens of file names."""
    return textwrap.wrap(" ".join(text.split()), WIDTH, break_on_hyphens=False, break_long_words=False)


def _methods(found: _Found) -> list[str]:
    lines = ["### Methods", "", "Table 6 of the paper on oscillations."]
    for place, methods in ((PLACES[0], METHODS), (HELD, HELD_WAYS), *((place, METHODS) for place in PLACES[1:])):
        lines += _place(found, place, methods)
    return [*lines, ""]


def _gated(found: _Found) -> list[str]:
    lines = ["### Networks with squeeze and excite", "", "Tables 7 and 8 of the paper on oscillations."]
    for place in GATED:
        lines += _place(found, place, HELD_WAYS)
    return [*lines, ""]


def _place(found: _Found, place: Place, methods: Sequence[Way]) -> list[str]:
    """The table of one network at one width."""
    ways = found.ways(place, methods)
    if not ways:
        return []
    count = len(found.seeds(place, ways[0]))
    seeds = f", {count} seeds: mean and 95 % confidence interval (Student's t)" if count > 1 else ""
    held = f", rates end at {place.floor:.0%} in place of {FLOOR:.0%}" if place.floor != FLOOR else ""
    table = f"{place.network} {place.width}{held}"
    return ["", f"**{place.network} {place.width}**{held}{seeds}", "", *_rows(found, table, place, ways)]


def _rows(found: _Found, table: str, place: Place, ways: Sequence[Way]) -> list[str]:
    rows = [(way.name, [_figure(found, place, way, key) for key in KEYS]) for way in ways]
    return _with_old(found, table, rows, COLUMNS, OLD)


def _with_old(
    found: _Found, table: str, rows: Sequence[tuple[str, list[str]]], columns: Sequence[str], old: Sequence[str]
) -> list[str]:
    """Header and rows; the columns `old` follow once more, where the table had figures before."""
    before = [found.earlier.of(table, name, *old) for name, _ in rows]
    if not any(any(texts) for texts in before):
        return [*_header(*columns), *(_row(name, figures) for name, figures in rows)]
    lines = _header(*columns, *(f"old: {column}" for column in old))
    for (name, figures), texts in zip(rows, before, strict=True):
        lines.append(_row(name, [*figures, *(text or NOTHING for text in texts)]))
    return lines


def _widths(found: _Found) -> list[str]:
    title = "Before and after batch norms are estimated anew"
    lines = [f"### {title}", "", "Table 2 of the paper on oscillations: LSQ.", ""]
    rows = []
    for place in (place for place in WIDTHS_OF_TABLE_2 if found.ways(place, [BASELINE])):
        figures = [_figure(found, place, BASELINE, key) for key in KEYS[:3]]
        rows.append((f"{place.network} {place.width}", figures))
    return [*lines, *_with_old(found, title, rows, COLUMNS[:3], OLD), ""]


def _ablation(found: _Found, title: str, about: str, ways: Sequence[Way]) -> list[str]:
    lines = [f"### {title}", "", f"{about}: {ABLATION.network} {ABLATION.width}.", ""]
    return [*lines, *_rows(found, title, ABLATION, found.ways(ABLATION, (BASELINE, *ways))), ""]


def _choices(found: _Found) -> list[str]:
    chosen = found.done.get(Cell(ABLATION, CHOICES))
    moved = f" Optimisation moved {chosen['optimised']['moved']} codes." if chosen else ""
    about = f"""Table 3 of the paper on oscillations: {ABLATION.network} {ABLATION.width}, LSQ; loss on training scenes,
        nats, and accuracy, after batch norms were estimated anew.{moved}"""
    title = "Codes chosen after training"
    lines = [f"### {title}", "", *_paragraph(about), ""]
    count = len(chosen["samples"]) if chosen else WHOLE.samples
    names = ["LSQ", f"sampled {count} times, mean (standard deviation)", "the sample of least loss", "optimised"]
    figures = [[NOTHING, NOTHING] for _ in names]
    if chosen is not None:
        samples = chosen["samples"]
        losses, accuracies = ([item[key] for item in samples] for key in ("loss", "accuracy"))
        spread = [
            f"{statistics.fmean(values) * unit:.{digits}f} ({statistics.stdev(values) * unit:.{digits}f})"
            for values, unit, digits in ((losses, 1, 4), (accuracies, 100, 2))
        ]
        best = min(samples, key=lambda item: item["loss"])
        figures = [_chosen(chosen["as it is"]), spread, _chosen(best), _chosen(chosen["optimised"])]
    frozen = FREEZING[-1]
    names.append(f"for comparison: {frozen.name}")
    figures.append([NOTHING, _figure(found, ABLATION, frozen, "after")])
    columns = ("loss", "accuracy")
    return [*lines, *_with_old(found, title, list(zip(names, figures, strict=True)), columns, columns), ""]


def _chosen(item: Mapping[str, float]) -> list[str]:
    return [f"{item['loss']:.4f}", f"{100 * item['accuracy']:.2f}"]


def _divergences(found: _Found) -> list[str]:
    """The largest divergences, by layer."""
    title = "Statistics of batch norms"
    about = "Table 1 of the paper on oscillations: KL divergence of the running statistics from those of data, nats."
    rows = []
    for place in (*WIDTHS_OF_TABLE_2[1:2], ABLATION, LOW):
        trained = found.done.get(Cell(place, BASELINE))
        divergence = trained["divergence"] if trained else {}
        for name, (largest, mean) in sorted(divergence.items(), key=lambda item: -item[1][0])[:3]:
            rows.append((f"{place.network} {place.width} `{name}`", [f"{largest:.4f}", f"{mean:.4f}"]))
    columns = ("largest", "mean")
    return [f"### {title}", "", about, "", *_with_old(found, title, rows, columns, columns), ""]


def _twin(found: _Found) -> list[str]:
    about = f"""Table 9 of the white paper: {TWIN.network} {TWIN.width}, one scale per weight, batch norms folded,
        target `int8_dsp`; accuracy of the integer program, of whose elements on the test images so many differ from
        what the module computes in eval mode; "refused" where training has destroyed a range, which compile says."""
    title = "Training needs equalization"
    lines = [f"### {title}", "", *_paragraph(about), ""]
    rows = []
    for way in found.ways(TWIN, TWIN_WAYS):
        trained = found.done.get(Cell(TWIN, way))
        figures = [NOTHING] * 3
        if trained is not None:
            differing = trained["differing"]
            figures = [f"{100 * trained[key]:.2f}" for key in ("at first", "before")]
            figures.append(str(differing) if isinstance(differing, int) else "refused")
        rows.append((way.name, figures))
    columns = ("at first", "trained", "differing")
    return [*lines, *_with_old(found, title, rows, columns, columns[1:]), ""]


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
