"""Write what of the reference follows from the code: `python docs/generate.py`. A test tells when to run it.

In pages, what stands between `<!-- generated: NAME -->` and `<!-- end -->` is written anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import qcompiler
from qcompiler.targets.descriptor import Descriptor
from qcompiler.targets.facts import grid_text, multiplier_text

REFERENCE = Path(__file__).with_name("reference")
_REGION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> dict[str, str]:
    """Content by name of file."""
    regions = {"targets": targets_table(), "unknown": unknown_list(), "fields": fields_tables()}
    path = REFERENCE / "targets.md"
    page = _REGION.sub(lambda m: f"{m[1]}{regions[m[2]]}{m[3]}", path.read_text(encoding="utf-8"))
    return {path.name: page, "target.schema.json": json.dumps(_schema(), indent=1, sort_keys=True) + "\n"}


def _schema() -> dict[str, Any]:
    return Descriptor.model_json_schema(by_alias=True)


def targets_table() -> str:
    """One row per shipped target."""
    lines = ["| name | activations | weights | requantization | accumulator, bias | |", "|---|---|---|---|---|---|"]
    for name in qcompiler.targets():
        target = qcompiler.load_target(name)
        d = target.descriptor
        conv = target.arithmetic.at("conv2d", target.activation_bits)
        rule = target.op_rule("conv2d")
        wide = target.activation_bits > 8
        pairs = () if rule is None else rule.combinations
        special = next(
            (p.requantize for p in pairs if p.requantize and (max(d.dtypes[p.activation].widths) > 8) == wide), None
        )
        item = special or (rule.requantize if rule is not None and rule.requantize is not None else d.requantize)
        grids = [
            "; also ".join(grid_text(d.dtypes[n]) for n in names)
            for names in (
                (d.defaults.activation, *d.defaults.other_activations),
                (d.defaults.weight, *d.defaults.other_weights),
            )
        ]
        bits = f"{conv.accumulator_bits}, {conv.bias_bits} bits"
        lines.append(
            f"| `{name}` | {grids[0]} | {grids[1]} | {multiplier_text(item)} | {bits} | {d.target.description} |"
        )
    return "\n".join(lines) + "\n"


def unknown_list() -> str:
    """The assumptions about unknown facts, by target."""
    lines = []
    for name in qcompiler.targets():
        unknown = qcompiler.load_target(name).descriptor.target.unknown
        lines += [f"* `{name}`", *(f"    * {text}" for text in unknown)] if unknown else []
    return "\n".join(lines) + "\n"


def fields_tables() -> str:
    """All keys of all tables."""
    schema = _schema()
    sections = []
    for name, node in schema["properties"].items():
        if name == "schema":
            continue
        model, header = _model(node, schema), _header(name, node)
        if model is not None:
            sections += _section(header, model, schema)
    return "\n".join(sections) + "\n"


def _section(header: str, model: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    lines = [f"### `{header}`", "", model.get("description", "").replace("\n", " "), ""]
    lines += ["| key | value | default | |", "|---|---|---|---|"]
    inner = []
    for key, node in model["properties"].items():
        default = "" if "default" not in node or node["default"] is None else f"`{json.dumps(node['default'])}`"
        if key in model.get("required", ()):
            default = "required"
        text = node.get("description", "").replace("\n", " ")
        lines.append(f"| `{key}` | {_kind(node, schema)} | {default} | {text} |")
        nested = _model(node, schema)
        if nested is not None and nested["title"] not in ("Multiplier", "Accumulator", "Bias"):
            brackets = 2 if node.get("type") == "array" else 1
            inner += _section(f"{'[' * brackets}{header.strip('[]')}.{key}{']' * brackets}", nested, schema)
    return [*lines, "", *inner]


def _header(name: str, node: dict[str, Any]) -> str:
    if node.get("type") == "array":
        return f"[[{name}]]"
    return f"[{name}.NAME]" if "additionalProperties" in node else f"[{name}]"


def _model(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """The table that a value is, or that its elements are."""
    options = [node, *node.get("anyOf", ()), node.get("items"), node.get("additionalProperties")]
    for option in options:
        if isinstance(option, dict) and "$ref" in option:
            found: dict[str, Any] = schema["$defs"][option["$ref"].rpartition("/")[2]]
            if "properties" in found:
                return found
    return None


def _kind(node: dict[str, Any], schema: dict[str, Any]) -> str:
    """The allowed values of a field, in words."""
    options = [option for option in node.get("anyOf", [node]) if option.get("type") != "null"]
    return " or ".join(_one_kind(option, schema) for option in options)


def _one_kind(node: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in node:
        target = schema["$defs"][node["$ref"].rpartition("/")[2]]
        return _one_kind(target, schema) if "enum" in target else "a table"
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    kind = node.get("type")
    if kind == "array":
        items = node.get("items") or (node.get("prefixItems") or [{}])[0]
        return f"list of {_one_kind(items, schema)}" if "prefixItems" not in node else "`[least, most]`"
    if kind == "object":
        return "a table"
    words = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text"}[str(kind)]
    low, high = node.get("minimum", node.get("exclusiveMinimum")), node.get("maximum")
    if kind != "boolean" and low is not None and high is not None:
        return f"{low} to {high}"
    return words


def main() -> None:
    """Write what differs."""
    for name, text in pages().items():
        path = REFERENCE / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
