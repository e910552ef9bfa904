"""Multipliers, limits and accumulators of an instruction, in the form that its kernel takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompiler.backends.integer.c.library import mode_of
from qcompiler.backends.integer.c.text import Value
from qcompiler.backends.integer.c.writer import Step, Writer
from qcompiler.errors import ArtifactError, UnsupportedError
from qcompiler.program.kernels import Call
from qcompiler.program.program import Array

INT32_LIMIT, INT64_LIMIT = 2**31, 2**63


@dataclass(frozen=True)
class Scale:
    """The multiplier from numbers to codes, in the form of a requantization mode.

    Args:
        mode: The mode.
        multiplier: Significands, or float32; None where there are none but powers of two.
        exponent: None where there is a float32.
    """

    mode: str
    multiplier: Array | None
    exponent: Array | None

    def text(self) -> str:
        """The real numbers, for a comment."""
        real: Array = np.ones((), np.float64) if self.multiplier is None else np.asarray(self.multiplier, np.float64)
        if self.exponent is not None:
            real = real * np.exp2(np.asarray(self.exponent, np.float64) - mode_of(self.mode).width)
        low, high = float(np.min(real)), float(np.max(real))
        return f"multiplier {low:.6g}" if real.size == 1 else f"multipliers {low:.6g} to {high:.6g}, one per channel"

    def members(self, prefix: str = "") -> dict[str, Value]:
        """The members of a structure with one multiplier."""
        parts: dict[str, Value] = {}
        if self.multiplier is not None:
            number = self.multiplier.reshape(-1)[0].item()
            parts[f"{prefix}multiplier"] = float(number) if self.exponent is None else int(number)
        if self.exponent is not None:
            parts[f"{prefix}exponent"] = int(self.exponent.reshape(-1)[0])
        return parts


def scale_of(writer: Writer, call: Call, first: int) -> Scale:
    """The multipliers in the operands of an instruction from `first` on.

    Raises:
        UnsupportedError: C has not its mode, or they are computed.
    """
    mode = str(call["mode"])
    form = mode_of(mode).form
    multiplier = None if form == "shift" else writer.operand(call.instruction, first)
    exponent = None if form == "float" else writer.operand(call.instruction, first + (form == "integer"))
    return Scale(mode, multiplier, exponent)


def scalar_scale_of(writer: Writer, step: Step, call: Call, first: int) -> Scale:
    """The one multiplier in the operands from `first` on; notes it."""
    parts = scale_of(writer, call, first)
    multiplier, exponent = (None if p is None else p.reshape(-1)[:1] for p in (parts.multiplier, parts.exponent))
    scale = Scale(parts.mode, multiplier, exponent)
    step.notes.append(scale.text())
    return scale


def scale_in(call: Call, name: str) -> Scale:
    """The multiplier in the attributes of an instruction: `left` for `left_multiplier` and `left_exponent`.

    Raises:
        UnsupportedError: C has not its mode.
        ArtifactError: There is none.
    """
    mode = str(call["mode"])
    form = mode_of(mode).form
    parts = [call.get(f"{name}_{part}") for part in ("multiplier", "exponent")]
    for part, unused in zip(parts, ("shift", "float"), strict=True):
        if (part is None) != (form == unused):
            raise ArtifactError(f"no {name} multiplier of the mode {mode!r}", where=f"%{call.instruction.output}")
    multiplier, exponent = (None if part is None else np.asarray(part) for part in parts)
    return Scale(mode, multiplier, exponent)


def requantizer(call: Call, scale: Scale) -> dict[str, Value]:
    """Members of the structure that requantizes with one multiplier, to the grid and the limits of the result."""
    low, high = call.limits
    return {**scale.members(), "zero_point": call.output.zero_point[0], "low": int(low), "high": int(high)}


def accumulator(bound: int) -> str:
    """The narrowest type of accumulators that holds every sum whose magnitude is at most `bound`.

    Raises:
        UnsupportedError: None does.
    """
    if bound >= INT64_LIMIT:
        raise UnsupportedError(f"a sum can reach {bound}", expected=f"less than {INT64_LIMIT}")
    return "int32_t" if bound < INT32_LIMIT else "int64_t"
