"""The kernels in C: templates over element types, and the instances that a model needs.

A template is a file of C in `templates/` with placeholders such as ${X}. Lines that begin with `//:` say

    //: over X Y ACC       what its instances differ in
    //: needs dot4 place   called templates, by name or by role (multiply, requantize, divide, ...)
    //: header             what follows goes to kernels.h
    //: body               what follows goes to kernels.c

Within a template, ${f} is the name of the instance and ${name} the name of a needed template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template
from typing import Literal

from qcompiler.backends.integer.c.shapes import MAX_RANK
from qcompiler.errors import ArtifactError, UnsupportedError

SHORT = {"int8_t": "i8", "uint8_t": "u8", "int16_t": "i16", "uint16_t": "u16", "int32_t": "i32", "int64_t": "i64"}
_HEAD = 2048
"""Bytes before each panel of weights, see `templates/panels.c`."""
_USUAL = {"W": "int8_t", "ACC": "int32_t"}
"""Types that names do not mention."""


@dataclass(frozen=True)
class Mode:
    """How C requantizes in one mode.

    Args:
        form: `integer`, significand and exponent; `shift`, an exponent alone; `float`, a float32.
        multiply: Template that multiplies and rounds; none where the multiplier is a float.
        significand: Element type of an array of significands.
        width: Bits of a significand.
        lanes: Template that requantizes vectors; that of most does it number by number.
    """

    form: Literal["integer", "shift", "float"]
    multiply: str = ""
    significand: str = ""
    width: int = 0
    lanes: str = "requantize_four"


MODES: Mapping[str, Mode] = {
    "single": Mode("integer", "multiply_single", "int32_t", 31, "requantize_four_single"),
    **{mode: Mode("integer", f"multiply_{mode}", "int32_t", 31) for mode in ("double", "double_hu")},
    "tosa16": Mode("integer", "multiply_narrow", "int16_t", 15),
    "s64_16": Mode("integer", "multiply_narrow", "int16_t", 15),
    "nvdla_cvt": Mode("integer", "multiply_nvdla_cvt", "int16_t", 15),
    "pow2_shift": Mode("shift", "shift_rhup"),
    **{f"pow2_shift_{rounding}": Mode("shift", f"shift_{rounding}") for rounding in ("rhaz", "rne", "floor", "trunc")},
    "f32_rne": Mode("float", lanes="requantize_four_float"),
}
"""Every requantization mode; a test fails when there is one more."""
ROUNDINGS = ("rne", "rhaz", "rhup", "floor", "trunc")
"""Roundings of divisions."""
RAW = "_raw"
"""Ends the name of a rounding of averages that is a rounding of raw codes."""


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
        self._panels = 0

    def use(self, template: str, **types: str) -> str:
        """The name of an instance, which is written once.

        Args:
            template: Name of the template.
            types: Template parameters: X, Y, A, B, W, ACC: element types of C; MODE, ROUNDING, SOFTMAX, ...: names.
                Others are texts for its placeholders.

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
        values = {**types, **names, "f": function, "n": self.name, "N": self.name.upper(), "RANK": str(MAX_RANK)}
        if types.get("Y") in ("int8_t", "uint8_t"):  # names of instructions of vectors
            sign, kind = ("", "epi8") if types["Y"] == "int8_t" else ("us", "epu8")
            values |= {"packs": f"pack{sign or 's'}_epi16", "min": f"min_{kind}", "max": f"max_{kind}"}
        if "X" in types:  # a code less its zero point
            values["STEP"] = "int16_t" if types["X"] in ("int8_t", "uint8_t") else "int32_t"
        if "ROUNDING" in chosen:
            divisor = "call->divisor" if template == "mean_divided" else "divisor"
            values |= _average(types["ROUNDING"], f"({types['ACC']}){divisor}")
        if "MODE" in chosen:
            mode = mode_of(types["MODE"])
            values |= {"M": mode.significand, "WIDTH": str(mode.width)}
        if source.header:
            self._headers[function] = Template(source.header).substitute(values)
        self._bodies[function] = Template(source.body).substitute(values)
        return function

    def reserve_panels(self, panels: int, size: int) -> int:
        """Room for weights in the order of vectors.

        Args:
            panels: How many.
            size: Bytes of their weights.

        Returns:
            The first byte.
        """
        begin = self._panels
        self._panels += panels * _HEAD + size
        return begin

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
                "   Codes are integers that represent real numbers: real = scale * (code - zero_point). Sizes and",
                "   strides are in elements, not in bytes. */",
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
        if self._panels:
            lines += [f"#define PANELS_BYTES {self._panels}", ""]
        return "\n".join([*lines, *self._bodies.values()])


def _average(rounding: str, divisor: str) -> dict[str, str]:
    """Add the zero point after the division of a sum, or before it, where the mean of raw codes is rounded.

    Args:
        rounding: Name of the rounding.
        divisor: C expression of the divisor.

    Returns:
        Texts by name of placeholder.
    """
    if rounding.endswith(RAW):
        return {"raw_sum": f" + {divisor} * call->zero_point", "then": "", "about": "; halves away from code 0"}
    return {"raw_sum": "", "then": " + call->zero_point", "about": ""}


def _stem(template: str) -> str:
    """The templates of forms serve modes, which their instances are named after."""
    if template.startswith("requantize"):
        return template.removesuffix("_integer").removesuffix("_shift").replace("_float", "_f32_rne")
    return template


def _role(need: str, types: Mapping[str, str]) -> str:
    if need == "requantize_lanes":
        return mode_of(types["MODE"]).lanes
    if need == "softmax_mode":
        return f"softmax_{types['SOFTMAX']}"
    if need in ("divide", "shift"):
        rounding = types["ROUNDING"].removesuffix(RAW)
        if rounding not in ROUNDINGS:
            raise UnsupportedError(f"C has no rounding {types['ROUNDING']!r}", expected=", ".join(ROUNDINGS))
        return f"{need}_{rounding}"
    if need not in ("multiply", "requantize", "requantize_channels"):
        return need
    mode = mode_of(types["MODE"])
    if need != "multiply":
        return f"{need}_{mode.form}"
    if not mode.multiply:
        raise ArtifactError(f"the mode {types['MODE']!r} has no integer multiplier", where="program.json")
    return mode.multiply


def mode_of(name: str) -> Mode:
    """How C requantizes in the mode of this name.

    Raises:
        UnsupportedError: It does not.
    """
    if name not in MODES:
        raise UnsupportedError(f"C has no requantization mode {name!r}", expected=", ".join(MODES))
    return MODES[name]
