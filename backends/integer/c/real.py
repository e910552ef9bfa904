"""From real numbers to codes and back, in C without a math library: the optional file beside the core."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.backends.integer.c.ends import End
from qcompiler.backends.integer.c.frames import fill
from qcompiler.errors import UnsupportedError

ROUNDED = {
    "rne": "whole + up - down",
    "rhaz": "whole + (rest >= 0.5f) - (rest <= -0.5f)",
    "rhup": "whole + (rest >= 0.5f) - (rest < -0.5f)",
    "floor": "whole - (rest < 0.0f)",
    "trunc": "whole",
}
"""A real number, whose integer part towards zero is `whole` and whose rest is `rest`, to an integer."""
_HALVES = {
    "rne": "to the nearest integer, halves to the even one",
    "rhaz": "to the nearest integer, halves away from zero",
    "rhup": "to the nearest integer, halves up",
    "floor": "down",
    "trunc": "towards zero",
}


def float_header(name: str, ends: Sequence[End]) -> str:
    """The header of the helpers."""
    parts = []
    for end in ends:
        size = f"{name.upper()}_{end.label.upper()}_SIZE"
        if end.rounding:
            parts.append(
                f"/* Input {end.index}: {size} real numbers, in the order of the codes in memory, to codes. */\n"
                f"void {name}_quantize_{end.label}(const float *real);\n\n"
            )
        elif end.kind == "output" and end.scale:
            parts.append(
                f"/* Output {end.index}: its {size} codes to real numbers, in the order of the codes in memory. */\n"
                f"void {name}_dequantize_{end.label}(float *real);\n\n"
            )
    return fill("float.h", n=name, N=name.upper(), prototypes="".join(parts))


def float_source(name: str, ends: Sequence[End]) -> str:
    """The helpers.

    Raises:
        UnsupportedError: A quantizer rounds in a way that C has not.
    """
    roundings = list(dict.fromkeys(end.rounding for end in ends if end.rounding))
    parts = [_code_function(rounding) for rounding in roundings]
    for end in ends:
        stem = f"{name.upper()}_{end.label.upper()}"
        if end.rounding:
            limits = ", ".join(f"{stem}_{part}" for part in ("ZERO_POINT", "LOW", "HIGH"))
            parts.append(
                f"void {name}_quantize_{end.label}(const float *real)\n{{\n"
                f"    {end.ctype} *codes = {name}_{end.label}();\n"
                f"    for (int32_t i = 0; i < {stem}_SIZE; ++i) {{\n"
                f"        const float quotient = real[i] / {stem}_SCALE;\n"
                f"        codes[i] = ({end.ctype})code_{end.rounding}(quotient, {limits});\n"
                "    }\n}\n"
            )
        elif end.kind == "output" and end.scale:
            parts.append(
                f"void {name}_dequantize_{end.label}(float *real)\n{{\n"
                f"    const {end.ctype} *codes = {name}_{end.label}();\n"
                f"    for (int32_t i = 0; i < {stem}_SIZE; ++i) {{\n"
                f"        real[i] = (float)(codes[i] - {stem}_ZERO_POINT) * {stem}_SCALE;\n"
                "    }\n}\n"
            )
    return fill("float.c", n=name, body="\n".join(parts))


def _code_function(rounding: str) -> str:
    if rounding not in ROUNDED:
        raise UnsupportedError(f"C has no rounding {rounding!r}", expected=", ".join(ROUNDED))
    lines = [
        f"/* A quotient, rounded {_HALVES[rounding]}, plus the zero point, between low and high.",
        "   NaN counts as 0. */",
        f"static int32_t code_{rounding}(float quotient, int32_t zero_point, int32_t low, int32_t high)",
        "{",
        "    /* One more than the limits: beyond them the code is a limit anyhow, and an int32_t holds the rest. */",
        "    const float least = (float)(low - zero_point - 1), most = (float)(high - zero_point + 1);",
        "    const float number = quotient == quotient ? quotient : 0.0f;",
        "    const float inside = number < least ? least : number > most ? most : number;",
        "    const int32_t whole = (int32_t)inside; /* towards zero */",
    ]
    if rounding != "trunc":
        lines.append("    const float rest = inside - (float)whole; /* exact */")
    if rounding == "rne":
        lines.append("    const int32_t odd = whole & 1, up = (rest > 0.5f) | ((rest == 0.5f) & odd);")
        lines.append("    const int32_t down = (rest < -0.5f) | ((rest == -0.5f) & odd);")
    lines += [
        f"    const int32_t code = {ROUNDED[rounding]} + zero_point;",
        "    return code < low ? low : code > high ? high : code;",
        "}",
        "",
    ]
    return "\n".join(lines)
