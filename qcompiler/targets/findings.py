"""Errors in a descriptor, as sentences with file, line and key."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import ValidationError

from qcompiler.errors import TargetError
from qcompiler.targets.descriptor import Descriptor
from qcompiler.targets.lines import Spot

__all__ = ["describe", "nearest"]


def describe(error: ValidationError, where: str, spot: Spot | None = None) -> TargetError:
    """The first finding of pydantic.

    Args:
        error: Validation error of pydantic.
        where: Name of the validated source.
        spot: Positions of the keys.
    """
    findings = error.errors(include_url=False)
    # A misspelt key also counts as missing: report the misspelling.
    finding = next((item for item in findings if item["type"] == "extra_forbidden"), findings[0])
    key: tuple[str | int, ...] = finding.get("ctx", {}).get("key") or finding["loc"]
    place = where if spot is None else str(spot.find(key))
    name = ".".join(map(str, key))
    if finding["type"] == "extra_forbidden":
        fix = nearest(str(key[-1]), _keys_of(key[:-1]))
        return TargetError(f"there is no key {name!r}", where=place, fix=fix or "Remove it.")
    return TargetError(finding["msg"].removeprefix("Value error, "), where=f"{place}, key {name}" if name else place)


def nearest(word: str, known: Collection[str]) -> str | None:
    """A question that names the known word most like `word`; None if no known word is similar."""
    near = difflib.get_close_matches(word, sorted(known), n=1)
    return f"Did you mean {near[0]!r}?" if near else None


def _keys_of(table: Sequence[str | int]) -> list[str]:
    """The keys that a table may have; the keys of all tables if the schema fixes none for it."""
    schema = Descriptor.model_json_schema(by_alias=True)
    node: dict[str, Any] | None = schema
    for part in table:
        node = None if node is None else _within(node, part, schema["$defs"])
    if node is not None and "properties" in node:
        return list(node["properties"])
    keys = set(schema["properties"])
    for definition in schema["$defs"].values():
        keys.update(definition.get("properties", {}))
    return sorted(keys)


def _within(node: dict[str, Any], part: str | int, definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of an element of a list or a table."""
    found = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
    if found is None:
        found = node.get("additionalProperties")
    if not isinstance(found, dict):
        return None
    for option in (found, *found.get("anyOf", ()), *found.get("allOf", ())):
        if "$ref" in option:
            return definitions.get(str(option["$ref"]).rpartition("/")[2])
    return found
