"""The kernels in C: templates over element types, and those instances of them that a model needs.

A template is a file of C in `templates/` with placeholders such as ${X}. Lines that begin with `//:` say

    //: over X Y ACC       what its instances differ in
    //: needs dot4 place   what it calls: other templates, by name or by role (multiply, requantize, divide)
    //: header             what follows goes to kernels.h
    //: body               what follows goes to kernels.c

Within it ${f} is the name of the instance, ${name} that of what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template

from qcompiler.backends.integer.c.shapes import MAX_RANK
from qcompiler.errors import ArtifactError, UnsupportedError

SHORT = {"int8_t": "i8", "uint8_t": "u8", "int16_t": "i16", "uint16_t": "u16", "int32_t": "i32", "int64_t": "i64"}
_USUAL = {"W": "int8_t", "ACC": "int32_t"}
"""Types that names do not mention."""

MODES: Mapping[str, Mapping[str, str]] = {
    **{
        mode: {
            "multiply": f"multiply_{mode}",
            "requantize": "requantize_integer",
            "requantize_channels": "requantize_channels_integer",
        }
        for mode in ("single", "double", "double_hu")
    },
    "f32_rne": {"requantize": "requantize_float", "requantize_channels": "requantize_channels_float"},
}
"""For each requantization mode the templates that play its roles."""
ROUNDINGS = ("rne", "rhaz", "rhup", "floor", "trunc")
"""Roundings of divisions."""


@dataclass(frozen=True)
class _Source:
    over: tuple[str, ...]
    needs: tuple[str, ...]
    header: str
    body: str


@cache
def _read(name: str) -> _Source:
    text = resources.files(__package__).joinpath("templates", f"{name}.c").read_text(encoding="utf-8")
    words: dict[str, tuple[str, ...]] = {"over": (), "needs": ()}
    parts: dict[str, list[str]] = {"header": [], "body": []}
    current: list[str] = []
    for line in text.splitlines(keepends=True):
        if not line.startswith("//: "):
            current.append(line)
            continue
        key, *values = line.removeprefix("//: ").split()
        if key in words:
            words[key] = tuple(values)
        else:
            current = parts[key]
    return _Source(words["over"], words["needs"], "".join(parts["header"]), "".join(parts["body"]))


class Library:
    """Collects the kernels of one model.

    Args:
        name: Prefix of what other files see.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._headers: dict[str, str] = {}
        self._bodies: dict[str, str] = {}

    def use(self, template: str, **types: str) -> str:
        """The name of an instance, which is written once.

        Args:
            template: Name of the template.
            types: What it is over: X, Y, A, B, W, ACC: element types of C; MODE, ROUNDING: names.

        Raises:
            UnsupportedError: There is no such mode or rounding.
        """
        source = _read(template)
        chosen = {key: types[key] for key in source.over}
        stem = template if not source.header else f"{self.name}_{_stem(template)}"
        marks = [SHORT.get(value, value) for key, value in chosen.items() if _USUAL.get(key) != value]
        function = "_".join([stem, *marks])
        if function in self._bodies:
            return function
        names = {need: self.use(_role(need, types), **types) for need in source.needs}
        values = {**types, **names, "f": function, "n": self.name, "RANK": str(MAX_RANK)}
        if "X" in types:  # a code less its zero point
            values["STEP"] = "int16_t" if types["X"] in ("int8_t", "uint8_t") else "int32_t"
        if source.header:
            self._headers[function] = Template(source.header).substitute(values)
        self._bodies[function] = Template(source.body).substitute(values)
        return function

    @property
    def has_floats(self) -> bool:
        """Whether a kernel computes with real numbers."""
        return "float_assumptions" in self._bodies

    def header(self) -> str:
        """`kernels.h`."""
        guard = f"{self.name.upper()}_KERNELS_H"
        return "\n".join(
            [
                f"/* The kernels of {self.name}. Written by qcompiler.",
                "",
                "   Codes are integers that stand for real numbers: real = scale * (code - zero_point). Sizes and",
                "   distances are counted in elements, not in bytes. */",
                f"#ifndef {guard}",
                f"#define {guard}",
                "",
                "#include <stdint.h>",
                "",
                *self._headers.values(),
                "#endif\n",
            ]
        )

    def source(self) -> str:
        """`kernels.c`."""
        lines = [f"/* The kernels of {self.name}. Written by qcompiler. */", '#include "kernels.h"', ""]
        if self.has_floats:
            lines += ["#include <float.h>", ""]
        return "\n".join([*lines, *self._bodies.values()])


def _stem(template: str) -> str:
    """`requantize_integer` and `requantize_float` serve modes, which their instances are named after."""
    return template.removesuffix("_integer").replace("_float", "_f32_rne")


def _role(need: str, types: Mapping[str, str]) -> str:
    if need == "divide":
        if types["ROUNDING"] not in ROUNDINGS:
            raise UnsupportedError(f"C has no rounding {types['ROUNDING']!r}", expected=", ".join(ROUNDINGS))
        return f"divide_{types['ROUNDING']}"
    if need not in ("multiply", "requantize", "requantize_channels"):
        return need
    mode = types["MODE"]
    if mode not in MODES:
        raise UnsupportedError(f"C has no requantization mode {mode!r}", expected=", ".join(MODES))
    if need not in MODES[mode]:
        raise ArtifactError(f"the mode {mode!r} has no {need}", where="program.json")
    return MODES[mode][need]
