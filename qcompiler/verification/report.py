"""The result of a verification: how each form compares with the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from qcompiler.ir.diagnostics import Diagnostic

__all__ = ["Form", "Report", "Status", "not_verified"]

Status: TypeAlias = Literal["equal", "within bound", "differs", "not run"]


@dataclass(frozen=True)
class Form:
    """Comparison of one form with the reference.

    Args:
        name: Name of the form.
        status: `equal`: no element differs. `within bound`: differences are within the allowed bound.
        required: Whether `differs` is a failure.
        tensors: Number of tensors compared.
        elements: Number of elements compared.
        differing: Number of elements that differ.
        largest: Largest difference in steps of the grid.
        first: First tensor that differs; if tensors exceed their bound, the first of these.
        reason: Reason for the status `not run`.
    """

    name: str
    status: Status
    required: bool
    tensors: int = 0
    elements: int = 0
    differing: int = 0
    largest: int = 0
    first: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.status == "not run":
            return f"{self.name}: not run ({self.reason})"
        if self.status == "differs" and not self.tensors:
            return f"{self.name}: {self.first}"
        text = f"{self.name}: {self.differing} of {self.elements} elements differ in {self.tensors} tensors"
        return text if not self.differing else f"{text}, by {self.largest} at most, first in %{self.first}"


@dataclass(frozen=True)
class Report:
    """All comparisons of one verification.

    Args:
        reference: The form with which the others are compared.
        forms: Comparisons of the others.
        samples: Batch size of the inputs on which the forms ran.
        integer_macs: Share of the multiply-accumulates done in integer kernels, in [0, 1], by name of the runtime.
        diagnostics: Problems of the inputs and of runtimes.
    """

    reference: str
    forms: tuple[Form, ...]
    samples: int
    integer_macs: Mapping[str, float] = field(default_factory=dict)
    diagnostics: tuple[Diagnostic, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every required form ran and equals the reference within its bound."""
        return all(form.status in ("equal", "within bound") for form in self.forms if form.required)

    def form(self, name: str) -> Form:
        """The comparison of the form called `name`."""
        return next(form for form in self.forms if form.name == name)

    def summary(self, target: str) -> Diagnostic:
        """The comparison in one sentence.

        Args:
            target: Name of the target.
        """
        return Diagnostic(
            "forms",
            {
                "target": target,
                "reference": self.reference,
                "samples": self.samples,
                "agreeing": sum(form.status in ("equal", "within bound") for form in self.forms),
                "differing": [form.name for form in self.forms if form.status == "differs" and form.required],
                "not_run": {form.name: form.reason for form in self.forms if form.status == "not run"},
            },
        )

    def to_dict(self) -> dict[str, object]:
        """The report as plain data for JSON."""
        return {
            "passed": self.passed,
            "reference": self.reference,
            "samples": self.samples,
            "integer_macs": dict(self.integer_macs),
            "forms": [dataclasses.asdict(form) for form in self.forms],
            "diagnostics": [item.plain() for item in self.diagnostics],
        }

    def __str__(self) -> str:
        lines = [f"compared with the {self.reference} on {self.samples} samples", *map(str, self.forms)]
        return "\n".join([*lines, *integer_kernels(self.integer_macs), *map(str, self.diagnostics)])


def not_verified(target: str) -> Diagnostic:
    """The summary of a comparison that was not made."""
    return Diagnostic("forms", {"target": target, "samples": 0})


def integer_kernels(shares: Mapping[str, float]) -> list[str]:
    """Sentences about the share of products in integer kernels."""
    return [f"{name} does {100 * share:.1f} % of the products in integer kernels" for name, share in shares.items()]
