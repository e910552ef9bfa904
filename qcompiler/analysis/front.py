"""The result of a search for widths: measured points between cost and score, and assignments for every budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qcompiler.analysis.assignment import Problem, Widths
from qcompiler.analysis.front_page import Page, Row, front_html, front_summary
from qcompiler.analysis.plain import finite
from qcompiler.analysis.search import call_text
from qcompiler.analysis.width_costs import UNITS, CostKind
from qcompiler.errors import InputError
from qcompiler.passes.base import Override
from qcompiler.passes.common.overrides import WEIGHT_BITS_LIMIT
from qcompiler.storage.writing import write_file
from qcompiler.validation.noise import decibels

__all__ = ["Choice", "Front", "Point"]

Overrides = Mapping[str, Override]


@dataclass(frozen=True)
class Choice:
    """A group of quantizers that share a width, and the noise of each width.

    Args:
        name: Names of its tensors.
        layers: Names of the operators whose widths decide; empty for an input of the model, whose width is fixed.
        kind: `weight` or `activation`.
        noise: Expected noise of the outputs from this group alone, as a share of their power, by possible width.
    """

    name: str
    layers: tuple[str, ...]
    kind: str
    noise: Mapping[int, float]


@dataclass(frozen=True)
class Point:
    """One assignment of widths.

    Args:
        widths: Width of each group, in the order of `Front.groups`.
        overrides: The same as `overrides` of `compile`.
        cost: Cost for one sample in the unit of the front.
        expected_db: Expected signal-to-noise ratio of the outputs, dB.
        score: Measured signal-to-noise ratio of the outputs of the integer program, dB; None if it failed.
        accuracy: Score of `evaluate` for the integer program; None without it.
        accuracy_error: Standard error of `accuracy`; None if it is unknown.
        error: Error of an assignment that cannot be compiled, with its class.
    """

    widths: Widths
    overrides: Overrides
    cost: float
    expected_db: float
    score: float | None
    accuracy: float | None = None
    accuracy_error: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Front:
    """Measured points between the cheapest and the most accurate assignment of widths.

    Args:
        model: Name of the model.
        target: Name of the target.
        cost: Kind of cost.
        groups: Groups of quantizers, with the noise of their widths.
        points: Measured points that no other one dominates, by rising cost.
        measured: All measured points, by rising cost.
        base: Cost of the widths of the call without `overrides` of the front.
        rank_correlation: Spearman's rank correlation of `expected_db` and `score` over all measured points; None for
            fewer than three.
        problem: The costs and the noise, from which `at` finds assignments.
        given: Overrides of the caller.
        now: Widths of the groups in a compile without `overrides` of the front.
        notes: Sentences for the user.
        seconds: Wall-clock time by step, seconds.
    """

    model: str
    target: str
    cost: CostKind
    groups: tuple[Choice, ...]
    points: tuple[Point, ...]
    measured: tuple[Point, ...]
    base: float
    rank_correlation: float | None
    problem: Problem = field(repr=False)
    given: Overrides = field(default_factory=dict)
    now: Widths = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    def at(
        self, *, cost: float | None = None, score: float | None = None, accuracy: float | None = None
    ) -> dict[str, Override]:
        """Overrides for `compile`; no model runs.

        Args:
            cost: Largest cost in the unit of the front: the assignment with the least expected noise within it. It
                need not be one of the measured points.
            score: Smallest signal-to-noise ratio of the outputs, dB: the cheapest measured point that reaches it.
            accuracy: Smallest score of `evaluate`: the cheapest measured point that reaches it.

        Raises:
            InputError: Not exactly one argument was given, or nothing is within it.
        """
        wanted = {"cost": cost, "score": score, "accuracy": accuracy}
        given = [name for name, value in wanted.items() if value is not None]
        if len(given) != 1:
            raise InputError(
                f"at has {' and '.join(given) or 'no argument'}", expected="one of cost=, score= and accuracy="
            )
        if cost is not None:
            widths = self.problem.best(cost)
            if widths is None:
                least = self.problem.cost(self.problem.cheapest())
                raise InputError(
                    f"no assignment costs at most {cost:g} {UNITS[self.cost]}", expected=f"at least {least:g}"
                )
            return self.overrides(widths)
        name, smallest = given[0], next(value for value in (score, accuracy) if value is not None)
        values = [(getattr(point, name), point) for point in self.measured]
        known = [(value, point) for value, point in values if value is not None]
        if not known:
            raise InputError(f"no point has a measured {name}", fix="Pass evaluate= to mixed_precision.")
        for value, point in known:
            if value >= smallest:
                return dict(point.overrides)
        best = max(value for value, _ in known)
        raise InputError(f"no measured point has the {name} {smallest:g}", expected=f"at most {best:.6g}")

    def overrides(self, widths: Widths) -> dict[str, Override]:
        """The overrides of `compile` that stand for the widths of all groups."""
        return overrides_of(self.groups, widths, self.now, self.given)

    def call(self, overrides: Overrides) -> str:
        """Text of a call of `compile` with overrides."""
        keywords = {"target": "target", "calibration_data": "calibration_data", "overrides": repr(dict(overrides))}
        return call_text("qcompiler.compile", keywords)

    def to_dict(self) -> dict[str, object]:
        """The result as data for JSON; numbers that are not finite are None."""
        return {
            "model": self.model,
            "target": self.target,
            "cost": self.cost,
            "unit": UNITS[self.cost],
            "base": self.base,
            "rank_correlation": self.rank_correlation,
            "groups": [
                {
                    "name": item.name,
                    "layers": list(item.layers),
                    "kind": item.kind,
                    "noise_db": {str(bits): finite(decibels(noise)) for bits, noise in item.noise.items()},
                }
                for item in self.groups
            ],
            "points": [_plain(point, point in self.points) for point in self.measured],
            "notes": list(self.notes),
        }

    def report(self, path: str | Path) -> Path:
        """Write an HTML page: the points as a plot and as a table that sorts, and the groups with their noise.

        The page needs no network. The plot needs matplotlib (`qcompiler[plots]`).

        Args:
            path: File to write.

        Returns:
            The path.
        """
        return write_file(path, front_html(self._page()).encode())

    def _repr_html_(self) -> str:
        """The points, for notebooks."""
        return front_summary(self._page())

    def _page(self) -> Page:
        best = {id(point) for point in self.points}
        rows = [
            Row(
                point.cost,
                point.score,
                point.expected_db,
                point.accuracy,
                point.accuracy_error,
                ", ".join(f"{name}={width}" for name, width in point.overrides.items()),
                point.error,
                optimal=id(point) in best,
            )
            for point in self.measured
        ]
        groups = [(item.name, item.kind, dict(item.noise)) for item in self.groups]
        return Page(
            self.model, self.target, UNITS[self.cost], rows, groups, self.base, self.rank_correlation, self.notes
        )

    def __str__(self) -> str:
        unit = UNITS[self.cost]
        lines = [f"{self.model} on {self.target}: {len(self.points)} points, cost in {unit} for one sample."]
        head = (unit, "share", "expected dB", "measured dB", "accuracy", "widths")
        rows = [head, *(self._row(point) for point in self.points)]
        sizes = [max(len(row[index]) for row in rows) for index in range(len(head))]
        lines += ["  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows]
        if self.rank_correlation is not None:
            lines.append(f"rank correlation of expected and measured: {self.rank_correlation:.2f}")
        lines += [f"note: {text}" for text in self.notes]
        return "\n".join(lines)

    def _row(self, point: Point) -> tuple[str, ...]:
        accuracy = "" if point.accuracy is None else f"{point.accuracy:.4g}"
        if point.accuracy_error is not None:
            accuracy += f" ± {point.accuracy_error:.2g}"
        counts: dict[str, int] = {}
        for group, bits in zip(self.groups, point.widths, strict=True):
            name = f"{group.kind[0]}{bits}"
            counts[name] = counts.get(name, 0) + 1
        shown = ", ".join(f"{count} × {name}" for name, count in sorted(counts.items()))
        score = "failed" if point.score is None else f"{point.score:.2f}"
        share = f"{100.0 * point.cost / self.base:.0f} %" if self.base else ""
        return f"{point.cost:.4g}", share, f"{point.expected_db:.2f}", score, accuracy, shown


def overrides_of(groups: tuple[Choice, ...], widths: Widths, now: Widths, given: Overrides) -> dict[str, Override]:
    """Overrides for the widths of all groups; groups whose width is that of a compile without them are left out.

    Args:
        groups: The groups.
        widths: Width of each group.
        now: Width of each group in a compile with the given overrides.
        given: Overrides of the caller, which come first.
    """
    found: dict[str, dict[str, int]] = {}
    for group, bits, before in zip(groups, widths, now, strict=True):
        if bits != before:
            for layer in group.layers:
                found.setdefault(layer, {})[f"{group.kind}_bits"] = bits
    return merged_overrides(given, found)


def merged_overrides(given: Overrides, found: Mapping[str, Mapping[str, int]]) -> dict[str, Override]:
    """Overrides of the caller, and after them those of a search, which keep what the caller gave to the same layer."""
    merged: dict[str, Override] = {name: value for name, value in given.items() if name not in found}
    for name, value in found.items():
        before = given.get(name, {})
        if isinstance(before, int):
            before = {"activation_bits": before, "weight_bits": min(before, WEIGHT_BITS_LIMIT)}
        merged[name] = {**before, **value} if isinstance(before, Mapping) else value
    return merged


def _plain(point: Point, optimal: bool) -> dict[str, object]:
    return {
        "cost": point.cost,
        "expected_db": finite(point.expected_db),
        "score": None if point.score is None else finite(point.score),
        "accuracy": point.accuracy,
        "accuracy_error": point.accuracy_error,
        "overrides": {
            name: dict(value) if isinstance(value, Mapping) else value for name, value in point.overrides.items()
        },
        "error": point.error,
        "dominated": not optimal,
    }
