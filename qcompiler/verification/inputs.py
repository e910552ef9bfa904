"""The verified inputs compared with the ranges of the program's inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.types import DType
from qcompiler.program.program import Program
from qcompiler.validation.metrics import sqnr_db

__all__ = ["input_diagnostics"]

CLIPPED_SHARE = 0.01
"""Share of clipped elements above which an input is reported: ten times what the default calibration clips."""
CLIPPED_DB = 20.0
"""Signal-to-noise ratio of clipping below which an input is reported, however few its clipped elements are."""
USED_SHARE = 1 / 8
"""Share of the range below which the verified numbers are unlike those of the calibration: three bits are unused."""


def input_diagnostics(program: Program, inputs: Sequence[Tensor], where: Sequence[str] = ()) -> Iterator[Diagnostic]:
    """Inputs that the program clips, or whose range is far larger than the given numbers.

    Args:
        program: Integer program.
        inputs: Float tensors, flat.
        where: Name of each input for messages; by default its name in the program.
    """
    tensors = dict(zip(program.inputs, inputs, strict=True))
    names = dict(zip(program.inputs, where or program.inputs, strict=True))
    seen = set()
    for item in program.instructions:
        name = item.inputs[0] if item.inputs else ""
        if item.op != "quantize" or name not in tensors or name in seen:
            continue
        real = tensors[name]
        real = real[torch.isfinite(real)].double()
        grid = program.tensors[item.output]
        if not real.numel() or len(grid.scale) != 1:
            continue
        seen.add(name)
        low, high = (grid.scale[0] * (code - grid.zero_point[0]) for code in DType(grid.dtype).limits)
        found = [float(real.min()), float(real.max()), low, high]
        ends = {
            key: float(f"{number:.6g}")
            for key, number in zip(("seen_low", "seen_high", "low", "high"), found, strict=True)
        }
        margin = grid.scale[0]
        share = float(((real < low - margin) | (real > high + margin)).double().mean())
        if share > CLIPPED_SHARE or sqnr_db(real, real.clamp(low - margin, high + margin)) < CLIPPED_DB:
            fix = "Calibrate with inputs like these, or use effort='fast', whose ranges are the extremes of the data."
            data = {"input": names[name], "share": float(f"{share:.6g}"), **ends, "fix": fix}
            yield Diagnostic("clipped-input", data, names[name])
        elif 0.0 < found[1] - found[0] < USED_SHARE * (high - low) and math.isfinite(high - low):
            fix = "Verify with inputs like those of the calibration, or calibrate with inputs like these."
            yield Diagnostic("unlike-calibration", {"input": names[name], **ends, "fix": fix}, names[name])
