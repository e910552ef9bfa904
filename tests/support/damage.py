"""Damage to files, drawn by a generator: JSON, safetensors, headers of arrays, bytes, and what stands in a file's place."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ODD_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 10**6, 10**15, 2**31, 2**63, -(2**63), 10**30, 1.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), float("-inf"), "", "x", "0", "\0", "é\ud800", "N" * 5000, "../../etc/passwd", "i8", "f32",
    "call", [], {}, [[]], [0], [-1, -1], [10**9] * 6, {"a": 1},
]  # fmt: skip
DEEP = "[" * 5000 + "]" * 5000


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values within `node`."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def change_json(text: str, source: random.Random) -> bytes:
    """The text with a few values changed, removed, renamed or repeated; or damaged as text."""
    if source.random() < 0.08:
        return damaged_text(text, source)
    tree = json.loads(text)
    for _ in range(source.choice([1, 1, 1, 2, 4])):
        found = list(places(tree))
        if not found:
            break
        *outer, last = source.choice(found)
        node = tree
        for key in outer:
            node = node[key]
        match source.randrange(8):
            case 0 | 1 | 2:
                node[last] = copy.deepcopy(source.choice(ODD_VALUES))
            case 3:
                del node[last]
            case 4 if isinstance(node, dict):
                node[source.choice(["x", "shape", "scale", "", "op"])] = node.pop(last)
            case 5 if isinstance(node, list):
                node.insert(last, copy.deepcopy(node[last]))
            case 6 if isinstance(node[last], int | float) and not isinstance(node[last], bool):
                node[last] = node[last] * source.choice([-1, 2, 10, 2**20, 0]) + source.choice([-1, 0, 1])
            case _:  # the value of another place
                *elsewhere, name = source.choice(found)
                other = tree
                with contextlib.suppress(KeyError, IndexError, TypeError):
                    for key in elsewhere:
                        other = other[key]
                    node[last] = copy.deepcopy(other[name])
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def damaged_text(text: str, source: random.Random) -> bytes:
    """Cut, deeply nested, not UTF-8, or with a key twice."""
    match source.randrange(5):
        case 0:
            return text[: source.randrange(len(text))].encode()
        case 1:
            return text.replace("[", DEEP[:5000] + "[", 1).encode() if source.random() < 0.5 else DEEP.encode()
        case 2:
            return b"\xff\xfe" + text.encode()
        case 3:
            return text.replace("{", '{"schema": 1, "schema": 2, ', 1).encode()
    return changed_bytes(text.encode(), source)


def changed_bytes(data: bytes, source: random.Random) -> bytes:
    """Bytes flipped, cut out, repeated or cut off; sometimes none are left."""
    found = bytearray(data)
    for _ in range(source.choice([1, 1, 2, 8])):
        if not found:
            break
        at = source.randrange(len(found))
        match source.randrange(4):
            case 0:
                found[at] ^= 1 << source.randrange(8)
            case 1:
                del found[at : at + source.choice([1, 8, 100])]
            case 2:
                found[at:at] = found[at : at + source.choice([1, 8, 100])]
            case _:
                found[at : at + 8] = source.choice([b"\0" * 8, b"\xff" * 8, b"9" * 8])
    if source.random() < 0.15:
        del found[source.randrange(len(found) + 1) :]
    return bytes(found)


def changed_safetensors(data: bytes, source: random.Random) -> bytes:
    """Another header before the same numbers, or changed bytes."""
    if source.random() < 0.3:
        return changed_bytes(data, source)
    size = int.from_bytes(data[:8], "little")
    try:
        header = change_json(data[8 : 8 + size].decode(), source)
    except (ValueError, RecursionError):  # it has been damaged before
        return changed_bytes(data, source)
    length = source.choice([len(header)] * 8 + [0, 2**62, len(header) + 1])
    return length.to_bytes(8, "little") + header + data[8 + size :]


def special_file(path: Path, source: random.Random) -> None:
    """Something else than a file in its place: a pipe, a folder, a link in a circle, a device, or nothing."""
    path.unlink(missing_ok=True)
    match source.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path.name)
        case 3:
            path.symlink_to("/dev/zero")


def odd_header(source: random.Random) -> bytes:
    """An array whose header names what does not follow."""
    shape = source.choice(
        ["(1000000000000000,)", "(-1,)", "(2, 'x')", "(10**9,)", "()", "[" * 200, "(" + "1," * 500 + ")"]
    )
    kind = source.choice(["<f4", "<f8", "|O", "<U5", "no", "|V9999999999", "('<i4', (10000, 10000))"])
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"
    length = source.choice([len(text), 65535, 0])
    return (
        b"\x93NUMPY"
        + bytes([source.choice([1, 2, 3, 9]), 0])
        + length.to_bytes(2, "little")
        + text.encode()
        + b"\0" * 64
    )
