"""The first difference between two contents of a file."""

from __future__ import annotations

import json

__all__ = ["difference"]


def difference(old: bytes | None, new: bytes | None) -> str:
    """A sentence that names the first difference: a key if both contents are JSON, otherwise a byte."""
    if old is None or new is None:
        return "it is missing after reading" if new is None else "it exists only after reading"
    try:
        return f"{_key_that_differs(json.loads(old), json.loads(new))} changed between writing and reading"
    except ValueError:
        pairs = zip(old, new, strict=False)
        place = next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))
        return f"byte {place} changed between writing and reading"


def _key_that_differs(old: object, new: object) -> str:
    """The path of the first key whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new} - {"sha256"}):
            if key not in old or key not in new:
                return str(key)
            if old[key] != new[key]:
                return f"{key}.{_key_that_differs(old[key], new[key])}".rstrip(".")
    if isinstance(old, list) and isinstance(new, list):
        for index, (a, b) in enumerate(zip(old, new, strict=False)):
            if a != b:
                return f"{index}.{_key_that_differs(a, b)}".rstrip(".")
        return str(min(len(old), len(new))) if len(old) != len(new) else ""
    return ""
