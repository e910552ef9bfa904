"""The page of a front: measured points between cost and score, and the noise of every group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from qcompiler.errors import InputError
from qcompiler.pages.markup import Number, document, items, number, paragraph, result, section, table
from qcompiler.pages.plots import Points
from qcompiler.validation.noise import decibels

__all__ = ["Page", "Row", "front_html", "front_summary"]


@dataclass(frozen=True)
class Row:
    """One measured point; the fields are those of `analysis.front.Point` of the same names.

    Args:
        overrides: The overrides as text.
        optimal: Whether no other point dominates it.
    """

    cost: float
    score: float | None
    expected_db: float
    accuracy: float | None
    accuracy_error: float | None
    overrides: str
    error: str
    optimal: bool


@dataclass(frozen=True)
class Page:
    """The content of the page of a front; the fields are those of `analysis.front.Front` of the same names.

    Args:
        unit: Unit of the cost.
        rows: Measured points, by rising cost.
        groups: Name, kind and noise by width of each group.
    """

    model: str
    target: str
    unit: str
    rows: Sequence[Row]
    groups: Sequence[tuple[str, str, Mapping[int, float]]]
    base: float
    rank_correlation: float | None
    notes: Sequence[str]


def front_html(page: Page) -> str:
    """The page, with tables that sort."""
    title = f"Widths of {page.model} for {page.target}"
    parts = [
        section("Front", _plot(page)),
        section("Points", _points(page)),
        *([section("Notes", items(page.notes))] if page.notes else []),
        section("Groups", *_groups(page)),
    ]
    return document(title, _verdict(page), parts, sorts=True)


def front_summary(page: Page) -> str:
    """Verdict and points, for notebooks."""
    return result(_verdict(page)) + _points(page)


def _verdict(page: Page) -> str:
    best, base = sum(row.optimal for row in page.rows), f"{page.base:.4g} {page.unit}"
    text = f"{len(page.rows)} measured points, {best} of them on the front. Without the front, a sample costs {base}."
    if page.rank_correlation is not None:
        text += f" Rank correlation of expectation and measurement: {page.rank_correlation:.2f}."
    return text


def _plot(page: Page) -> str:
    on = [(row.cost, row.score) for row in page.rows if row.optimal and row.score is not None]
    off = [(row.cost, row.score) for row in page.rows if not row.optimal and row.score is not None]
    groups = {"on the front": on, **({"dominated": off} if off else {})}
    try:
        plot = Points("Measured points", f"cost, {page.unit}", "SQNR of the outputs, dB", groups, on).svg()
    except InputError as error:  # no matplotlib
        return paragraph(str(error))
    return f'<div class="wide">{plot}</div>'


def _points(page: Page) -> str:
    rows = [
        [
            number(f"{row.cost:.4g}"),
            _decibels(row.score),
            number(f"{row.expected_db:.1f} dB"),
            number(_accuracy(row)),
            "yes" if row.optimal else "",
            f"<code>{escape(row.overrides)}</code>" if not row.error else escape(row.error),
        ]
        for row in page.rows
    ]
    return table([f"cost, {page.unit}", "measured", "expected", "score of evaluate", "on the front", "overrides"], rows)


def _decibels(score: float | None) -> Number:
    return number("" if score is None else f"{score:.1f} dB")


def _accuracy(row: Row) -> str:
    if row.accuracy is None:
        return ""
    return f"{row.accuracy:.4g}" + ("" if row.accuracy_error is None else f" ± {row.accuracy_error:.2g}")


def _groups(page: Page) -> tuple[str, str]:
    """Expected signal-to-noise ratios of the outputs if only one group is quantized."""
    text = "Expected signal-to-noise ratio of the outputs if only this group is quantized, by width."
    widths = sorted({width for *_, noise in page.groups for width in noise})
    rows = [
        [
            escape(name),
            kind,
            *(number(f"{decibels(noise[width]):.1f} dB" if noise.get(width) else "") for width in widths),
        ]
        for name, kind, noise in page.groups
    ]
    return paragraph(text), table(["group", "kind", *(f"{width} bits" for width in widths)], rows)
