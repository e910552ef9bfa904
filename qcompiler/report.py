"""The artifact as one page for the browser: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompiler.artifact import Artifact

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem }
th, td { text-align: left; padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.differs { color: #b00020 } .equal { color: #0a6b2d }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } th, td { border-color: #444 } }
"""


def write_report(artifact: Artifact, path: str | Path) -> Path:
    """Write `report_html` to `path`."""
    destination = Path(path)
    destination.write_text(report_html(artifact), encoding="utf-8")
    return destination


def report_html(artifact: Artifact) -> str:
    """Forms compared, tensors with their ranges, and what each pass did and refused."""
    sections = [
        f"<h1>Compiled for {escape(artifact.target.name)}</h1>",
        f"<p>{escape(artifact.target.descriptor.target.description)}</p>",
        *(f"<p>{escape(text)}</p>" for text in artifact.diagnostics),
        "<h2>Forms</h2>",
        _forms(artifact.verification),
        "<h2>Tensors</h2>",
        _tensors(artifact),
        "<h2>Passes</h2>",
        _passes(artifact.passes),
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>qcompiler report</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _forms(verification: dict[str, Any] | None) -> str:
    if verification is None:
        return "<p>Not verified.</p>"
    rows = []
    for form in verification["forms"]:
        status = f'<span class="{escape(form["status"].split()[0])}">{escape(form["status"])}</span>'
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
    share = verification["onnxruntime_integer_macs"]
    text = f"Compared with the {verification['reference']} on {verification['samples']} samples."
    if share is not None:
        text += f" ONNX Runtime does {100 * share:.1f} % of the products in integer kernels."
    return f"<p>{escape(text)}</p>{_table(head, rows)}"


def _tensors(artifact: Artifact) -> str:
    program = artifact.program.program
    rows = []
    for item in program.instructions:
        tensor = program.tensors[item.output]
        grid = ["", "", "", ""]
        if tensor.scale:
            low, high = _limits(tensor.dtype)
            scale, zero = tensor.scale[0], tensor.zero_point[0]
            grid = [f"{scale:.6g}", str(zero), f"{scale * (low - zero):.4g}", f"{scale * (high - zero):.4g}"]
        shape = " × ".join("N" if size == -1 else str(size) for size in tensor.shape)
        rows.append([escape(item.output), escape(item.op), f"{tensor.dtype}[{shape}]", *grid])
    return _table(["tensor", "operation", "type", "scale", "zero point", "lowest", "highest"], rows)


def _limits(dtype: str) -> tuple[int, int]:
    bits = int(dtype[1:])
    return (0, 2**bits - 1) if dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _passes(passes: Sequence[dict[str, Any]]) -> str:
    parts = []
    for record in passes:
        metrics = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in record["metrics"].items()
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


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Cells hold markup; numbers are set right."""
    lines = ["<table><thead><tr>", *(f"<th>{escape(name)}</th>" for name in head), "</tr></thead><tbody>"]
    for row in rows:
        cells = (f'<td class="number">{c}</td>' if isinstance(c, int) else f"<td>{c}</td>" for c in row)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table>"])
