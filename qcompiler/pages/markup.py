"""HTML markup: documents without external resources, tables, and places that links point to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

from qcompiler.pages.script import SORTING

__all__ = [
    "Number",
    "anchor",
    "decibels",
    "details",
    "document",
    "items",
    "number",
    "paragraph",
    "result",
    "section",
    "table",
]

STYLE = """
:root { --text: #222; --paper: #fff; --line: #ddd; --box: #e8eaee; --light: 82%; --edge: #777; --marked: #fff3c4 }
@media (prefers-color-scheme: dark) {
  :root { --text: #ddd; --paper: #181818; --line: #444; --box: #333840; --light: 28%; --edge: #888; --marked: #4a4220 }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
  color: var(--text); background: var(--paper) }
p, li, h1, summary { overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
a { color: inherit; text-decoration-color: var(--edge) }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem }
th, td { text-align: left; padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--line); vertical-align: top }
th { white-space: nowrap }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
th[tabindex] { cursor: pointer } th[aria-sort=ascending]::after { content: " \\25b2" }
th[aria-sort=descending]::after { content: " \\25bc" }
tr:target { background: var(--marked) } g:target rect { stroke: var(--text); stroke-width: 2 }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--edge); padding-left: 0.8rem }
.differs { color: #d0223c } .equal { color: #16893c }
.scroll { overflow: auto; max-height: 44rem; border: 1px solid var(--line); border-radius: 4px }
.wide { overflow-x: auto } .wide svg { max-width: 100%; height: auto }
svg { font: 11px system-ui, sans-serif; fill: var(--text); max-width: none }
svg .edge { fill: none; stroke: var(--edge); stroke-width: 1.2 }
svg .name { font-weight: 600 }
pre { overflow-x: auto; background: var(--box); padding: 0.6rem; border-radius: 4px }
"""


class Number(str):
    """A right-aligned cell."""

    __slots__ = ()


def number(text: object) -> Number:
    """A right-aligned cell."""
    return Number(text)


def decibels(ratio: float) -> Number:
    """A signal-to-noise ratio as a cell; an infinite one is exact."""
    return Number("exact" if ratio == math.inf else f"{ratio:.1f} dB")


def anchor(kind: str, name: str) -> str:
    """The id of a place, such as the row of a tensor: without blanks and quotes."""
    return f"{kind}-{quote(name, safe='._-')}"


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{escape(text)}</p>"


def items(texts: Iterable[str]) -> str:
    """A list of texts."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def section(title: str, *parts: str) -> str:
    """A heading and what belongs to it."""
    return "\n".join([f"<h2>{escape(title)}</h2>", *parts])


def details(summary: str, content: str) -> str:
    """Content that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, anchors: Sequence[str] = ()) -> str:
    """A table whose columns of numbers are right-aligned.

    Args:
        head: Titles of the columns.
        rows: Cells, which contain markup.
        anchors: Ids of the rows.
    """
    cells = list(rows)
    kinds = [
        ' class="number"' if cells and all(isinstance(row[column], int | Number) for row in cells) else ""
        for column in range(len(head))
    ]
    titles = (f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    lines = ["<table><thead><tr>", *titles, "</tr></thead><tbody>"]
    places = [f' id="{name}"' for name in anchors] or [""] * len(cells)
    for place, row in zip(places, cells, strict=True):
        line = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"<tr{place}>{line}</tr>")
    return f'<div class="wide">{"".join(lines)}</tbody></table></div>'


def result(text: str) -> str:
    """The result in a sentence, set off from the rest."""
    return f'<p class="verdict">{escape(text)}</p>'


def document(title: str, verdict: str, parts: Iterable[str], *, sorts: bool = False) -> str:
    """A whole page: title, verdict and content.

    Args:
        title: Title of the page and of its window.
        verdict: The result in a sentence.
        parts: Markup.
        sorts: Whether a click on a title of a table sorts its rows, for which the page has a script.
    """
    body = "\n".join([f"<h1>{escape(title)}</h1>", result(verdict), *parts])
    script = f"<script>{SORTING}</script>" if sorts else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n{script}</body></html>\n"
    )
