"""A form as its user runs it, with all optimizations of the runtime and only the outputs visible.

Optimizers fuse operators between which nothing is read, so the comparison tensor by tensor does not see what they do.
The outputs of the default session are compared with the outputs of the same file without optimization, both against the
float model:

    | 10 log10(sum (p - x)^2 / sum (u - x)^2) | <= 0.5 dB        p: default, u: as written, x: float model

In an output with few elements, single roundings to the other side of a tie move this ratio by chance. Its numerator is
sum (u - x)^2 + 2 sum (u - x) d + sum d^2 with d = p - u. If u - x and d are independent, the middle term has the
standard deviation 2 sqrt(sum (u - x)^2 d^2), and three of these are allowed in addition. Few differences of one step
are allowed in any case. The class with the largest logit must be the same for 99 % of the samples whose margin exceeds
the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from qcompiler.backends.base import Array, Bound, Deployed
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.verification.report import Form, Status

__all__ = ["Trial", "compare_deployed"]

LARGEST_DB = 0.5
"""Allowed difference of the signal-to-noise ratios of both sessions, dB."""
DEVIATIONS = 3.0
"""Allowed standard deviations of chance in addition."""
FEW = Bound(1, 0.005)
"""Differences that are allowed in any case: sums in float32 round half a percent of the elements to another step."""
OTHER_CLASSES = 0.01
"""Allowed share of samples with another class, among those whose margin exceeds the noise."""
MARGIN = 2.0
"""Least margin of two logits, in units of their noise or of one step, at which noise does not decide the class."""

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trial:
    """Inputs on which a deployed form is tried.

    Args:
        inputs: Float tensors, flat.
        wanted: Outputs of the float model; None if there is no float model.
        real: Whether the inputs are data of the user, and not random numbers.
    """

    inputs: Sequence[Tensor]
    wanted: Sequence[Tensor] | None = None
    real: bool = False


def compare_deployed(deployed: Deployed, trial: Trial, steps: Mapping[str, float]) -> tuple[Form, Diagnostic | None]:
    """Compare the form as its user runs it with the same form without optimization.

    Args:
        deployed: The form.
        trial: Inputs and float outputs.
        steps: Size of one step of each quantized output, by name.

    Returns:
        The comparison, which is required only for real data and where the runtime is exact; and a diagnostic if a
        difference beyond the bound is only counted.
    """
    inputs = [x.numpy() for x in trial.inputs]
    found, written = deployed.run(inputs), deployed.as_written(inputs)
    required = trial.real and trial.wanted is not None and not deployed.doubt
    elements = differing = largest = 0
    first, faults = "", []
    for index, (new, old) in enumerate(zip(found, written, strict=True)):
        name = f"output {index}"
        step = steps.get(name, 0.0)
        elements += old.size
        count, distance = _distance(new, old, step)
        if not count:
            continue
        first = first or name
        differing, largest = differing + count, max(largest, distance)
        wanted = None if trial.wanted is None else trial.wanted[index].numpy()
        fault = "" if wanted is None else _fault(new, old, wanted, step)
        if fault and not (step and FEW.allows(count, old.size, distance)):
            faults.append((name, fault))
    status: Status = "equal" if not differing else "within bound"
    if faults or (differing and trial.wanted is None):
        status = "differs"
    first = faults[0][0] if faults else first
    form = Form(deployed.name, status, required, len(found), elements, differing, largest, first)
    if required or not faults:
        return form, None
    cause = deployed.doubt or "the inputs are random"
    data = {"form": deployed.name, "found": f"{faults[0][0]} {faults[0][1]}; {cause}"}
    kernels = list(deployed.kernels())
    return form, Diagnostic("runtime", {**data, "kernels": kernels, "fix": deployed.fix})


def _distance(new: Array, old: Array, step: float) -> tuple[int, int]:
    """Number of differing elements, and the largest difference in steps; 1 at least where the step is unknown."""
    if new.shape != old.shape:
        return old.size, 1
    # Numbers that are not finite are equal where both are the same.
    same = (new == old) | ((new != new) & (old != old))
    count = int(np.count_nonzero(~same))
    if not count or not step:
        return count, min(count, 1)
    apart = np.abs(new.astype(np.float64) - old.astype(np.float64))[~same].max() / step
    return count, max(1, math.ceil(min(apart, 2.0**31) - 1e-3)) if math.isfinite(apart) else 2**31


def _fault(new: Array, old: Array, wanted: Array, step: float) -> str:
    """The bound that an output exceeds; empty if it exceeds none."""
    if new.shape != old.shape or wanted.shape != old.shape:
        return f"has the shape {list(new.shape)}"
    if wanted.dtype.kind != "f":
        return ""
    finite = np.isfinite(wanted) & np.isfinite(new) & np.isfinite(old)
    x, p, u = (np.where(finite, item, 0).astype(np.float64) for item in (wanted, new, old))
    error, other, moved = np.square(u - x), np.square(p - x), np.square(p - u)
    before, after = float(error.sum()), float(other.sum())
    chance = DEVIATIONS * 2.0 * math.sqrt(float((error * moved).sum()))
    low, high = before * 10 ** (-LARGEST_DB / 10) - chance, before * 10 ** (LARGEST_DB / 10) + chance
    if not low <= after <= high:
        was, now = (_decibels(float(np.square(x).sum()), noise) for noise in (before, after))
        return f"has {now:.1f} dB against the float model, and {was:.1f} dB without optimization"
    return _other_classes(p, u, max(math.sqrt(before / max(u.size, 1)), step))


def _other_classes(p: Float, u: Float, noise: float) -> str:
    """A sentence about samples of another class; empty if there are few, or if the output has no classes."""
    if u.ndim != 2 or u.shape[1] < 2:
        return ""
    ordered = np.sort(u, axis=1)
    sure = ordered[:, -1] - ordered[:, -2] > MARGIN * noise
    wrong = int(np.count_nonzero((p.argmax(1) != u.argmax(1)) & sure))
    if wrong <= OTHER_CLASSES * int(np.count_nonzero(sure)):
        return ""
    return f"has another largest element in {wrong} of {int(np.count_nonzero(sure))} samples with a clear margin"


def _decibels(signal: float, noise: float) -> float:
    return math.inf if not noise else 10 * math.log10(signal / noise) if signal else -math.inf
