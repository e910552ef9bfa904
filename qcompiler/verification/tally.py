"""Counts of the elements in which a form differs from the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.backends.base import Bound
from qcompiler.verification.report import Form, Status

__all__ = ["Array", "Tally", "Tensors"]

Array: TypeAlias = npt.NDArray[np.generic]
Tensors: TypeAlias = Mapping[str, Array]


@dataclass
class Tally:
    """Counts the elements that differ.

    Args:
        name: Name of the form.
        required: Whether a difference beyond the bounds is a failure.
        bounds: Allowed difference of each tensor; a tensor without a bound must be equal.
    """

    name: str
    required: bool = True
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    tensors: int = 0
    elements: int = 0
    differing: int = 0
    largest: int = 0
    first: str = ""
    beyond: str = ""
    """First tensor beyond its bound."""

    def compare(
        self,
        expected: Tensors,
        found: Tensors,
        steps: Mapping[str, float] | None = None,
        rounded: Callable[..., Array | None] | None = None,
    ) -> None:
        """Add the tensors that both have.

        Args:
            expected: Tensors of the reference.
            found: Tensors of the form.
            steps: Size of one step, for tensors of real numbers.
            rounded: Function from `name` and `reference` to other codes that elements may have; see `rounded_once`.
                Such elements count as differing, but not towards the share and distance that a bound allows.
        """
        for name in (name for name in expected if name in found):
            old, new = expected[name], found[name]
            self.tensors += 1
            self.elements += old.size
            if np.array_equal(old, new):  # nearly always: comparing takes a tenth of measuring distances
                continue
            distances = np.ones(old.shape)
            if old.shape != new.shape:
                count, distance = old.size, 1
            else:
                distances = np.abs(new.astype(np.float64) - old.astype(np.float64)) / (steps or {}).get(name, 1.0)
                count, distance = int(np.count_nonzero(distances)), math.ceil(distances.max(initial=0) - 1e-3)
            if not count:
                continue
            self.first = self.first or name
            self.differing += count
            self.largest = max(self.largest, distance, 1)
            bound = self.bounds.get(name, Bound())
            if not bound.allows(count, old.size, distance) and rounded is not None and old.shape == new.shape:
                others = rounded(name, reference=old)
                if others is not None:
                    # A multiplier of 15 bits is some steps off at the end of 16 bits. An element that has neither code
                    # counts its distance from the nearer code, because both roundings are correct.
                    nearest = np.minimum(distances, np.abs(new.astype(np.float64) - others.astype(np.float64)))
                    count, distance = int(np.count_nonzero(nearest)), math.ceil(nearest.max(initial=0))
            if not bound.allows(count, old.size, distance):
                self.beyond = self.beyond or name

    def form(self) -> Form:
        """The comparison so far."""
        if not self.tensors:
            # Nothing to compare is no proof, but no failure either: a model may have nothing to quantize.
            return Form(self.name, "not run", required=False, reason="no tensor of the model is quantized")
        status: Status = "differs" if self.beyond else "within bound" if self.differing else "equal"
        first = self.beyond or self.first
        counts = (self.tensors, self.elements, self.differing, self.largest)
        return Form(self.name, status, self.required, *counts, first)
