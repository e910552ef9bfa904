"""Values in C syntax."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.program.program import Array

Value: TypeAlias = "int | float | str | Sequence[Value] | Mapping[str, Value]"

WIDTH = 120
_ROW = 22
"""Elements in a line of a constant."""
_BYTES = {kind: [f"{code}," for code in range(*limits)] for kind, limits in (("i1", (-128, 128)), ("u1", (0, 256)))}


def integer(value: int) -> str:
    """An integer constant. The smallest value of a type is not a constant in C, so it is written as a difference.

    >>> integer(-3), integer(-(2**31))
    ('-3', '(-2147483647 - 1)')
    """
    if value in (-(2**31), -(2**63)):
        return f"({value + 1} - 1)"
    return str(value)


def real(value: float) -> str:
    """A float constant with the digits that give the same float32 back.

    >>> real(0.1), real(2.0)
    ('0.100000001f', '2.0f')
    """
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if any(mark in text for mark in ".en") else f"{text}.0f"


def quoted(data: bytes) -> str:
    r"""A string literal.

    >>> print(quoted(b'a"1?'))
    "a\0421\077"
    """
    return '"' + "".join(chr(byte) if _is_plain(byte) else f"\\{byte:03o}" for byte in data) + '"'


def _is_plain(byte: int) -> bool:
    # Two question marks begin a trigraph, and programs that drop comments do not look for string literals.
    return 32 <= byte < 127 and chr(byte) not in '"\\?*'


def initializer(value: Value) -> str:
    """A number, a symbol or a list."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return real(value)
    if isinstance(value, int):
        return integer(value)
    assert isinstance(value, Sequence)
    return "{" + ", ".join(initializer(item) for item in value) + "}"


def structure(type: str, name: str, members: Mapping[str, Value]) -> str:
    """A constant structure with its members in filled lines and nested structures in separate lines."""
    return f"static const {type} {name} = {{\n{_members(members, '    ')}}};\n"


def _members(members: Mapping[str, Value], indent: str) -> str:
    plain = [f".{key} = {initializer(item)}," for key, item in members.items() if not isinstance(item, Mapping)]
    inner = [
        f"{indent}.{key} = {{\n{_members(item, indent + '    ')}{indent}}},\n"
        for key, item in members.items()
        if isinstance(item, Mapping)
    ]
    return filled(plain, indent) + "".join(inner)


def filled(items: Sequence[str], indent: str, first: str | None = None) -> str:
    """Fill lines with items that must not be broken.

    Args:
        items: Texts.
        indent: Text before each line.
        first: Text before the first line, if different.
    """
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(item) < WIDTH:
            lines[-1] += f" {item}"
        else:
            lines.append((indent if lines or first is None else first) + item)
    return "".join(f"{line}\n" for line in lines)


def elements(array: Array) -> str:
    """The elements of an array, separated by commas, in lines."""
    flat = np.asarray(array, order="C").reshape(-1)
    if flat.dtype.itemsize == 1:
        table, first = _BYTES[flat.dtype.str[1:]], -128 if flat.dtype.kind == "i" else 0
        words = [table[at] for at in (flat.astype(np.int16) - first).tolist()]
    else:
        write = real if flat.dtype.kind == "f" else integer
        words = [f"{write(value)}," for value in flat.tolist()]
    row = _ROW if flat.dtype.itemsize == 1 else _ROW // 3
    return "".join([f"    {''.join(words[at : at + row])}\n" for at in range(0, len(words), row)])


def parse_elements(text: str, dtype: npt.DTypeLike) -> Array:
    """The array that `elements` wrote."""
    kind = np.dtype(dtype)
    for power in (31, 63):
        text = text.replace(f"({1 - 2**power} - 1)", str(-(2**power)))
    plain = text.replace("f,", ",").rstrip(" ,\n") if kind.kind == "f" else text.rstrip(" ,\n")
    numbers: Array = np.fromstring(plain, np.float64 if kind.kind == "f" else np.int64, sep=",").astype(kind)
    return numbers


def comment(text: str) -> str:
    """Text that cannot end a C comment, for any name of a tensor.

    >>> comment("*/ int x; /" + chr(92) + chr(10) + "*??/")
    '* / int x; /...*.../'
    """
    plain = re.sub(r"[^ -~]|\\|\?\?", ".", text)
    return plain.replace("*/", "* /").replace("/*", "/ *")


def sizes(shape: Sequence[int]) -> str:
    """`[1, 3, 8, 8]`."""
    return "[" + ", ".join(map(str, shape)) + "]"


def dimensions(shape: Sequence[int]) -> str:
    """`[1][3][8][8]`."""
    return "".join(f"[{size}]" for size in shape) or "[1]"
