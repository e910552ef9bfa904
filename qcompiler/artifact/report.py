"""The HTML report of an artifact: one page without external resources, the worst tensors first.

The page in the folder has no script, holds no time and no path, and stays below `LARGEST_PAGE`. `Compiled.report`
writes the same page with tables that sort and with histograms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from qcompiler.artifact.drawing import BOX, draw
from qcompiler.ir.diagnostics import SUMMARY, Diagnostic
from qcompiler.ir.types import DType
from qcompiler.pages.markup import (
    anchor,
    decibels,
    details,
    document,
    items,
    number,
    paragraph,
    result,
    section,
    table,
)
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Instruction
from qcompiler.program.roofline import Estimate
from qcompiler.targets import Target
from qcompiler.verification.report import integer_kernels

__all__ = ["LARGEST_PAGE", "Page", "report_html", "summary_html", "verdict"]

LARGEST_PAGE = 300_000
"""Size of a page in bytes, above which its tables have fewer rows and its drawing is left out."""
MOST_ROWS = (2_000, 400, 200, 100, 50)
"""Numbers of rows of a table: the first whose page is not too large is used."""
TENSOR = "tensor"
"""Kind of the places of tensors; see `pages.markup.anchor`."""


@dataclass(frozen=True)
class Page:
    """The content of a report; the fields are those of `Artifact` of the same names."""

    target: Target
    program: ProgramFiles
    diagnostics: Sequence[Diagnostic]
    verification: Mapping[str, Any] | None
    sqnr: Mapping[str, float]
    islands: Sequence[Mapping[str, Any]]
    passes: Sequence[Mapping[str, Any]]
    memory: Mapping[str, int]
    estimate: Estimate
    sizes: Mapping[str, int]
    """Sizes of the forms in bytes, by name."""
    model: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Model and target."""
        return f"{self.model or 'A model'} for {self.target.name}"


def verdict(page: Page) -> str:
    """The result in one sentence."""
    found = page.verification
    if found is None:
        return "Not verified: the forms of this artifact were not compared with each other."
    differing = [form["name"] for form in found["forms"] if form["status"] == "differs" and form["required"]]
    if differing:
        return f"Do not ship this artifact: {', '.join(differing)} differ from the {found['reference']}."
    problems = sum("fix" in item.data for item in page.diagnostics)
    if problems:
        what = "one finding needs" if problems == 1 else f"{problems} findings need"
        return f"Verified: all forms agree, but {what} your attention; each has a remedy."
    return "Verified: all forms agree, and nothing needs attention."


def summary_html(page: Page) -> str:
    """Title, verdict and summary of quality, for notebooks."""
    told = [str(item) for item in page.diagnostics if item.code in SUMMARY or "fix" in item.data]
    return f"<h3>{escape(page.title)}</h3>{result(verdict(page))}{items(told)}"


def report_html(page: Page, extra: Sequence[str] = (), *, sorts: bool = False) -> str:
    """The page: verdict, quality, forms, outputs, program, tensors, islands, passes, sizes and estimate.

    Args:
        page: The content.
        extra: Sections that follow the tensors, as markup.
        sorts: Whether tables sort, for which the page has a script. Such a page may be of any size.
    """
    if sorts:
        return _page(page, max(MOST_ROWS[0], len(page.program.program.instructions)), extra, sorts=True)
    found = ""
    for most in MOST_ROWS:
        found = _page(page, most, extra, sorts=False)
        if len(found.encode()) <= LARGEST_PAGE:
            break
    return found


def _page(page: Page, most: int, extra: Sequence[str], *, sorts: bool) -> str:
    parts = [
        paragraph(page.target.descriptor.target.description),
        details("Target", _target(page.target)),
        *([paragraph(_made(page.versions))] if page.versions else []),
        section("Quality", items(map(str, page.diagnostics))),
        section("Forms", _forms(page.verification)),
        section("Outputs", _outputs(page.sqnr)),
        *([section("Float islands", _islands(page.islands))] if page.islands else []),
        section("Program", *_drawing(page, most)),
        section("Tensors", *_tensors(page, most)),
        *extra,
        section("Passes", _passes(page.passes, most)),
        section("Sizes", _sizes(page)),
        section("Estimate", _estimate(page.estimate, most)),
    ]
    return document(page.title, verdict(page), parts, sorts=sorts)


def _made(versions: Mapping[str, str]) -> str:
    return f"Made by {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}."


def _target(target: Target) -> str:
    rows = [[escape(name), escape(value)] for name, value in (*target.summary(), *target.facts())]
    return table(["", ""], rows)


def _forms(verification: Mapping[str, Any] | None) -> str:
    if verification is None:
        return paragraph("Not verified.")
    rows = []
    for form in verification["forms"]:
        word, harmless = form["status"], form["status"] == "differs" and not form["required"]
        # End to end a difference of one step grows; what counts is the comparison layer by layer.
        status = "differs, which is allowed" if harmless else f'<span class="{word.split()[0]}">{escape(word)}</span>'
        status = status if not form["reason"] else f"{status}: {escape(form['reason'])}"
        counts = [form[key] for key in ("tensors", "elements", "differing", "largest")]
        rows.append([escape(form["name"]), status, *counts, escape(form["first"])])
    head = ["form", "status", "tensors", "elements", "differing", "largest difference (LSB)", "first tensor"]
    text = f"Compared with the {verification['reference']} on {verification['samples']} samples."
    for sentence in integer_kernels(verification["integer_macs"]):
        text += f" {sentence}."
    return paragraph(text) + table(head, rows)


def _outputs(sqnr: Mapping[str, float]) -> str:
    rows = [[escape(name), decibels(ratio)] for name, ratio in sqnr.items() if name.startswith("output ")]
    text = "The exact simulation compared with the float model, on the samples of the verification."
    return paragraph(text) + table(["output", "signal-to-noise ratio"], rows) if rows else paragraph("None.")


def _islands(islands: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            escape(item["name"]),
            escape(item["why"]),
            number(f"{100 * item['macs']:.2f} %"),
            number(f"{100 * item['elements']:.2f} %"),
        ]
        for item in islands
    ]
    return table(["island", "", "share of the multiply-accumulates", "share of the elements"], rows)


def _drawing(page: Page, most: int) -> Iterable[str]:
    program = page.program.program
    if len(program.instructions) > most:
        yield paragraph(f"The program has {len(program.instructions)} instructions, too many to draw on this page.")
        return
    yield paragraph(
        "Colours: the signal-to-noise ratio, from red at 10 dB to green at 40 dB; grey where there is none. "
        "A box leads to its tensor in the table below."
    )
    yield f'<div class="scroll">{draw(program, page.sqnr, lambda name: anchor(TENSOR, name))}</div>'


def _tensors(page: Page, most: int) -> Iterable[str]:
    """The table of tensors, the worst first; those without a ratio are last, in the order of the program."""
    program, sqnr = page.program.program, page.sqnr
    every = [(item, name) for item in program.instructions for name in item.outputs]
    every.sort(key=lambda pair: (pair[1] not in sqnr, sqnr.get(pair[1], 0.0)))
    if len(every) > most:
        yield paragraph(f"The worst {most} of {len(every)}; `provenance.json` and `encodings.json` have all.")
    drawn = len(program.instructions) <= most
    rows = [_tensor(page, item, name, linked=drawn and name == item.output) for item, name in every[:most]]
    head = ["tensor", "operation", "type", "scale", "zero point", "lowest", "highest", "signal to noise"]
    yield table(head, rows, anchors=[anchor(TENSOR, name) for _, name in every[:most]])


def _tensor(page: Page, item: Instruction, name: str, *, linked: bool) -> list[object]:
    tensor = page.program.program.tensors[name]
    grid = [""] * 4
    if tensor.scale:
        low, high = DType(tensor.dtype).limits
        scale, zero = tensor.scale[0], tensor.zero_point[0]
        grid = [f"{scale:.6g}", str(zero), f"{scale * (low - zero):.4g}", f"{scale * (high - zero):.4g}"]
    shape = " × ".join("N" if size == -1 else str(size) for size in tensor.shape)
    ratio = decibels(page.sqnr[name]) if name in page.sqnr else number("")
    shown = f'<a href="#{anchor(BOX, name)}">{escape(name)}</a>' if linked else escape(name)
    return [shown, escape(item.op), f"{tensor.dtype}[{shape}]", *map(number, grid), ratio]


def _passes(passes: Sequence[Mapping[str, Any]], most: int) -> str:
    parts = []
    for record in passes:
        metrics = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in sorted(record["metrics"].items())
        )
        events = record["events"]
        refusals = sum(event["kind"] == "refusal" for event in events)
        summary = f"{record['pass_name']}: {len(events) - refusals} rewrites, {refusals} refusals; {metrics}"
        rows = [
            [event["kind"], escape(event["node"]), escape(event["where"]), escape(event["detail"])]
            for event in events[:most]
        ]
        rest = len(events) - len(rows)
        more = paragraph(f"{rest} more are in provenance.json.") if rest else ""
        parts.append(details(summary, (table(["", "node", "where", ""], rows) if rows else "") + more))
    return "\n".join(parts)


def _sizes(page: Page) -> str:
    program, constants = page.program.program, page.program.constants
    weights = sum(array.nbytes for array in constants.values())
    elements = sum(array.size for name, array in constants.items() if program.constants[name].role == "weight")
    rows = [
        ["instructions", len(program.instructions)],
        ["constants, bytes", weights],
        ["weights, elements", elements],
        *([escape(f"{name}, bytes"), size] for name, size in (*page.sizes.items(), *page.memory.items())),
    ]
    return table(["", ""], rows)


def _estimate(found: Estimate, most: int) -> str:
    """The roofline estimate from the descriptor's figures, not a measurement; the longest instructions first."""
    text = (
        f"Estimated for {found.subject} from the figures of the target. Nothing was measured; a real core takes longer."
    )
    parts = [paragraph(line) for line in (text, *str(found).splitlines())]
    rows = []
    for layer in sorted(found.layers, key=lambda layer: -(layer.cycles or 0))[:most]:
        memory = ", ".join(f"{name} {cycles}" for name, cycles in layer.memory_cycles.items())
        share = "" if not found.cycles or layer.cycles is None else f"{100 * layer.cycles / found.cycles:.1f} %"
        cells: list[object] = [layer.macs, layer.bytes["activations"], layer.bytes["constants"]]
        cells += [_figure(layer.compute_cycles), number(memory), _figure(layer.cycles), number(share)]
        intensity = "" if layer.intensity is None else f"{layer.intensity:.3g}"
        rows.append([escape(layer.name), escape(layer.op), *cells, number(intensity), layer.bound])
    head = ["tensor", "operation", "products", "activations, bytes", "constants, bytes", "compute cycles"]
    head += ["memory cycles", "cycles", "of all", "products per byte", "bound by"]
    if rows:
        parts.append(details("By instruction", table(head, rows)))
    return "".join(parts)


def _figure(count: int | None) -> str:
    return number("?" if count is None else count)
