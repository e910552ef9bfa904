"""The pages of analyses: scores, causes, the parts that lose most, and what their numbers look like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from qcompiler.analysis.diagnosis import MARKS, Diagnosis
from qcompiler.analysis.parts import Part
from qcompiler.errors import InputError
from qcompiler.pages.markup import anchor, decibels, document, items, number, paragraph, result, section, table
from qcompiler.pages.plots import Histogram, Histograms

__all__ = ["Page", "analysis_html", "analysis_summary"]

SHOWN = 12
"""Parts with a histogram."""
PART = "part"
"""Kind of the places of parts; see `pages.markup.anchor`."""


@dataclass(frozen=True)
class Page:
    """The content of the page of an analysis; the fields are those of `Analysis` of the same names.

    Args:
        verdict: The result in a sentence.
        unit: Title of a column of scores.
        scores: Scores by name of the model.
        findings: Layer, cause, evidence, keywords of the remedy and gain of each finding, the worst first.
        notes: Sentences for the user.
        samples: Number of samples of the table of parts.
        parts: All parts, the worst first.
    """

    model: str
    target: str
    verdict: str
    unit: str
    scores: Mapping[str, float]
    findings: Sequence[tuple[str, str, str, str, str]]
    notes: Sequence[str]
    samples: int
    parts: Sequence[Part]


def analysis_html(page: Page, diagnosis: Diagnosis | None) -> str:
    """The page of an analysis, with tables that sort.

    Args:
        page: The content.
        diagnosis: A path through the flow chart of debugging, which the page draws; None for none.
    """
    title = f"Analysis of {page.model} for {page.target}"
    parts = [
        section("Scores", _scores(page)),
        section("Findings", _findings(page)),
        *([section("Notes", items(page.notes))] if page.notes else []),
        *([section("Debugging flow", _flow(diagnosis))] if diagnosis is not None else []),
        section("Parts", *_parts(page)),
        section("Histograms", *_histograms(page.parts[:SHOWN])),
    ]
    return document(title, page.verdict, parts, sorts=True)


def analysis_summary(page: Page) -> str:
    """Verdict and findings, for notebooks."""
    return result(page.verdict) + _findings(page)


def _scores(page: Page) -> str:
    rows = [
        [escape(name), number(f"{score:.4g}" if math.isfinite(score) else "exact")]
        for name, score in page.scores.items()
    ]
    return table(["model", page.unit], rows)


def _findings(page: Page) -> str:
    if not page.findings:
        return paragraph("No cause stands out.")
    rows = [
        [
            escape(layer),
            escape(cause),
            escape(evidence),
            f"<code>{escape(keywords)}</code>" if keywords else "no keyword of compile helps",
            number(gain),
        ]
        for layer, cause, evidence, keywords, gain in page.findings
    ]
    return table(["layer", "cause", "evidence", "remedy", "gain"], rows)


def _flow(diagnosis: Diagnosis) -> str:
    """The boxes of the path from the top, each with the score after it; fixes that did not help are grey."""
    rows = []
    for step in diagnosis.steps:
        fate = {True: "kept", False: "not kept", None: ""}[step.kept]
        score = "" if step.score is None else f"{step.score:.4g}"
        rows.append([MARKS[step.kept], escape(step.title), escape(step.answer), fate, number(score)])
    end = "The score is within the allowed drop." if diagnosis.met else "The score is still below the allowed drop."
    typed = f"<pre>compile(..., {escape(diagnosis.keywords)})</pre>" if diagnosis.remedy else ""
    return table(["", "step", "answer", "", "score after it"], rows) + paragraph(end) + typed


def _parts(page: Page) -> Sequence[str]:
    text = (
        f"Each part is quantized alone, and left in float alone, on {page.samples} samples: the signal-to-noise "
        "ratio of the outputs. Spread: the largest channel over the median one. Tail: the largest number over the root "
        "of the mean square. A click on a title sorts."
    )
    rows = [_row(part) for part in page.parts]
    head = ["part", "layer", "kind", "bits", "alone", "without", "spread", "tail", "clipped", "products", "bytes"]
    return paragraph(text), table(head, rows, anchors=[anchor(PART, f"{part.kind}-{part.name}") for part in page.parts])


def _row(part: Part) -> list[object]:
    shares = [number(f"{100 * share:.2f} %") for share in (part.clipped, part.macs, part.bytes)]
    return [
        escape(part.name),
        escape(part.layer),
        part.kind,
        part.bits,
        decibels(part.alone_db),
        decibels(part.without_db),
        number(f"{part.spread:.1f}"),
        number(f"{part.tail:.1f}"),
        *shares,
    ]


def _histograms(parts: Sequence[Part]) -> Sequence[str]:
    text = (
        "The numbers of the parts that lose most, counted on a logarithmic axis. Dashed lines: the limits of the grid."
    )
    plots = [
        Histogram(f"{part.kind} {part.name}", part.histogram, part.reach, part.limits, f"alone {part.alone_db:.1f} dB")
        for part in parts
    ]
    try:
        return paragraph(text), f'<div class="wide">{Histograms(plots).svg()}</div>'
    except InputError as error:  # no matplotlib
        return (paragraph(str(error)),)
