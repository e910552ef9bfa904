"""Converts real numbers to codes and back, in C without a math library: the optional helper file."""

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
    "rne": "to the nearest integer, halves to even",
    "rhaz": "to the nearest integer, halves away from zero",
    "rhup": "to the nearest integer, halves up",
    "floor": "down",
    "trunc": "towards zero",
}


_LIMITED = """/* Real numbers are quantized in blocks by two loops: for a single loop compilers generate branches. */
enum { PART = 256 };

/* Steps of the grid, clamped to the limits plus one step: beyond them the code is a limit in any case. The result fits
   into an int32_t. NaN becomes 0. */
static float limited(float steps, int32_t zero_point, int32_t low, int32_t high)
{
    const float least = (float)(low - zero_point - 1), most = (float)(high - zero_point + 1);
    const float number = steps == steps ? steps : 0.0f;
    const float raised = number < least ? least : number;
    return raised > most ? most : raised;
}
"""


def float_header(name: str, ends: Sequence[End]) -> str:
    """The header of the helpers."""
    parts = []
    for end in ends:
        size = f"{name.upper()}_{end.label.upper()}_SIZE"
        if end.rounding:
            parts.append(
                f"/* Convert {size} real numbers for input {end.index}, in the order of the codes, to codes. */\n"
                f"void {name}_quantize_{end.label}(const float *real);\n\n"
            )
        elif end.kind == "output" and end.scale:
            parts.append(
                f"/* Convert the {size} codes of output {end.index} to real numbers, in the order of the codes. */\n"
                f"void {name}_dequantize_{end.label}(float *real);\n\n"
            )
    return fill("float.h", n=name, N=name.upper(), prototypes="".join(parts))


def float_source(name: str, ends: Sequence[End]) -> str:
    """The helpers.

    Raises:
        UnsupportedError: A quantizer rounds in a way that C has not.
    """
    roundings = list(dict.fromkeys(end.rounding for end in ends if end.rounding))
    parts = [_LIMITED] if roundings else []
    parts += [_code_function(rounding) for rounding in roundings]
    for end in ends:
        stem = f"{name.upper()}_{end.label.upper()}"
        if end.rounding:
            limits = ", ".join(f"{stem}_{part}" for part in ("ZERO_POINT", "LOW", "HIGH"))
            parts.append(
                f"void {name}_quantize_{end.label}(const float *real)\n{{\n"
                f"    {end.ctype} *codes = {name}_{end.label}();\n"
                f"    for (int32_t i = 0; i < {stem}_SIZE; i += PART) {{\n"
                f"        float steps[PART];\n"
                f"        const int32_t count = {stem}_SIZE - i < PART ? {stem}_SIZE - i : PART;\n"
                f"        for (int32_t k = 0; k < count; ++k) {{\n"
                f"            steps[k] = limited(real[i + k] / {stem}_SCALE, {limits});\n"
                "        }\n"
                f"        for (int32_t k = 0; k < count; ++k) {{\n"
                f"            codes[i + k] = ({end.ctype})code_{end.rounding}(steps[k], {limits});\n"
                "        }\n"
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
        f"/* Steps of the grid, rounded {_HALVES[rounding]}, plus the zero point, between low and high. */",
        f"static int32_t code_{rounding}(float steps, int32_t zero_point, int32_t low, int32_t high)",
        "{",
        "    const int32_t whole = (int32_t)steps; /* towards zero */",
    ]
    if rounding != "trunc":
        lines.append("    const float rest = steps - (float)whole; /* exact */")
    if rounding == "rne":
        lines.append("    const int32_t odd = whole & 1, up = (rest > 0.5f) | ((rest == 0.5f) & odd);")
        lines.append("    const int32_t down = (rest < -0.5f) | ((rest == -0.5f) & odd);")
    lines += [
        f"    const int32_t code = {ROUNDED[rounding]} + zero_point;",
        "    const int32_t at_least = code < low ? low : code;",
        "    return at_least > high ? high : at_least;",
        "}",
        "",
    ]
    return "\n".join(lines)
