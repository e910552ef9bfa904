"""The HTML report of an artifact: one page without scripts or external resources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from qcompiler.artifact.drawing import draw
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.types import DType
from qcompiler.program.files import ProgramFiles
from qcompiler.program.roofline import Estimate
from qcompiler.targets import Target
from qcompiler.verification.report import integer_kernels

_STYLE = """
:root { --text: #222; --paper: #fff; --line: #ddd; --box: #e8eaee; --light: 82%; --edge: #777 }
@media (prefers-color-scheme: dark) {
  :root { --text: #ddd; --paper: #181818; --line: #444; --box: #333840; --light: 28%; --edge: #888 }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
  color: var(--text); background: var(--paper) }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem }
th, td { text-align: left; padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--line); vertical-align: top }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.differs { color: #d0223c } .equal { color: #16893c }
.scroll { overflow: auto; max-height: 44rem; border: 1px solid var(--line); border-radius: 4px }
svg { font: 11px system-ui, sans-serif; fill: var(--text) }
svg path { fill: none; stroke: var(--edge); stroke-width: 1.2 }
svg .name { font-weight: 600 }
"""


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


def report_html(page: Page) -> str:
    """HTML text: comparison of forms, drawing of the program, tensors with ranges and noise, islands, passes, sizes."""
    sections = [
        f"<h1>Compiled for {escape(page.target.name)}</h1>",
        f"<p>{escape(page.target.descriptor.target.description)}</p>",
        f"<details><summary>Target</summary>{_target(page.target)}</details>",
        "<h2>Quality</h2>",
        f"<ul>{''.join(f'<li>{escape(str(item))}</li>' for item in page.diagnostics)}</ul>",
        "<h2>Forms</h2>",
        _forms(page.verification),
        "<h2>Outputs</h2>",
        _outputs(page.sqnr),
        *(["<h2>Float islands</h2>", _islands(page.islands)] if page.islands else []),
        "<h2>Program</h2>",
        "<p>Colours: the signal-to-noise ratio, from red at 10 dB to green at 40 dB; grey where there is none.</p>",
        f'<div class="scroll">{draw(page.program.program, page.sqnr)}</div>',
        "<h2>Tensors</h2>",
        _tensors(page),
        "<h2>Passes</h2>",
        _passes(page.passes),
        "<h2>Sizes</h2>",
        _sizes(page),
        "<h2>Estimate</h2>",
        _estimate(page.estimate),
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>qcompiler report</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _target(target: Target) -> str:
    rows = [[escape(name), escape(value)] for name, value in (*target.summary(), *target.facts())]
    return _table(["", ""], rows)


def _forms(verification: Mapping[str, Any] | None) -> str:
    if verification is None:
        return "<p>Not verified.</p>"
    rows = []
    for form in verification["forms"]:
        word, harmless = form["status"], form["status"] == "differs" and not form["required"]
        # End to end a difference of one step grows; what counts is the comparison layer by layer.
        status = "differs, which is allowed" if harmless else f'<span class="{word.split()[0]}">{escape(word)}</span>'
        rows.append(
            [
                escape(form["name"]),
                status if not form["reason"] else f"{status}: {escape(form['reason'])}",
                form["tensors"],
                form["elements"],
                form["differing"],
                form["largest"],
                escape(form["first"]),
            ]
        )
    head = ["form", "status", "tensors", "elements", "differing", "largest difference (LSB)", "first tensor"]
    text = f"Compared with the {verification['reference']} on {verification['samples']} samples."
    for sentence in integer_kernels(verification["integer_macs"]):
        text += f" {sentence}."
    return f"<p>{escape(text)}</p>{_table(head, rows)}"


def _outputs(sqnr: Mapping[str, float]) -> str:
    rows = [[name, _decibels(ratio)] for name, ratio in sqnr.items() if name.startswith("output ")]
    text = "The exact simulation compared with the float model, on the samples of the verification."
    return f"<p>{text}</p>{_table(['output', 'signal-to-noise ratio'], rows)}" if rows else "<p>None.</p>"


def _islands(islands: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            escape(item["name"]),
            escape(item["why"]),
            _number(f"{100 * item['macs']:.2f} %"),
            _number(f"{100 * item['elements']:.2f} %"),
        ]
        for item in islands
    ]
    return _table(["island", "", "share of the multiply-accumulates", "share of the elements"], rows)


def _tensors(page: Page) -> str:
    program = page.program.program
    rows = []
    for item in program.instructions:
        for name in item.outputs:
            tensor = program.tensors[name]
            grid = [""] * 4
            if tensor.scale:
                low, high = DType(tensor.dtype).limits
                scale, zero = tensor.scale[0], tensor.zero_point[0]
                grid = [f"{scale:.6g}", str(zero), f"{scale * (low - zero):.4g}", f"{scale * (high - zero):.4g}"]
            shape = " × ".join("N" if size == -1 else str(size) for size in tensor.shape)
            ratio = _decibels(page.sqnr[name]) if name in page.sqnr else _number("")
            rows.append([escape(name), escape(item.op), f"{tensor.dtype}[{shape}]", *map(_number, grid), ratio])
    return _table(["tensor", "operation", "type", "scale", "zero point", "lowest", "highest", "signal to noise"], rows)


def _passes(passes: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for record in passes:
        metrics = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in sorted(record["metrics"].items())
        )
        refusals = sum(event["kind"] == "refusal" for event in record["events"])
        summary = f"{record['pass_name']}: {len(record['events']) - refusals} rewrites, {refusals} refusals; {metrics}"
        rows = [
            [event["kind"], escape(event["node"]), escape(event["where"]), escape(event["detail"])]
            for event in record["events"]
        ]
        table = _table(["", "node", "where", ""], rows) if rows else ""
        parts.append(f"<details><summary>{escape(summary)}</summary>{table}</details>")
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
    return _table(["", ""], rows)


def _estimate(found: Estimate) -> str:
    """The roofline estimate from the descriptor's figures, not a measurement."""
    text = "Estimated for one image from the figures of the target. Nothing was measured; a real core takes longer."
    parts = [f"<p>{escape(line)}</p>" for line in (text, *str(found).splitlines())]
    rows = []
    for layer in found.layers:
        memory = ", ".join(f"{name} {cycles}" for name, cycles in layer.memory_cycles.items())
        share = "" if not found.cycles or layer.cycles is None else f"{100 * layer.cycles / found.cycles:.1f} %"
        cells: list[object] = [layer.macs, layer.bytes["activations"], layer.bytes["constants"]]
        cells += [_figure(layer.compute_cycles), _number(memory), _figure(layer.cycles), _number(share)]
        intensity = "" if layer.intensity is None else f"{layer.intensity:.3g}"
        rows.append([escape(layer.name), escape(layer.op), *cells, _number(intensity), layer.bound])
    head = ["tensor", "operation", "products", "activations, bytes", "constants, bytes", "compute cycles"]
    head += ["memory cycles", "cycles", "of all", "products per byte", "bound by"]
    if rows:
        parts.append(f"<details><summary>By instruction</summary>{_table(head, rows)}</details>")
    return "".join(parts)


def _figure(count: int | None) -> str:
    return _number("?" if count is None else str(count))


def _decibels(ratio: float) -> str:
    return _number("exact" if ratio == float("inf") else f"{ratio:.1f} dB")


class _Number(str):
    """A right-aligned cell."""

    __slots__ = ()


def _number(text: str) -> str:
    return _Number(text)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; cells contain markup, and columns of numbers are right-aligned."""
    table = list(rows)
    kinds = [
        ' class="number"' if table and all(isinstance(row[column], int | _Number) for row in table) else ""
        for column in range(len(head))
    ]
    titles = (f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    lines = ["<table><thead><tr>", *titles, "</tr></thead><tbody>"]
    for row in table:
        cells = (f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table>"])
