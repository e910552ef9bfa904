"""Expected noise of widths, corrected by exact measurements of the groups that matter.

The model of noise takes errors of rounding as independent. The error of a weight of few bits is one fixed error, and
the noise of a clipped range is no rounding at all, so that single groups are several decibels away from the model:

    1. assign widths for some budgets with the noise that is known so far
    2. measure the groups that cause most of the noise of these assignments, each quantized alone
    3. scale the groups that were not measured as the median of the measured groups of the same kind and width
    4. repeat, until no group causes much noise without a measurement, or the largest number of measurements is reached

A measurement computes only what follows the group.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from qcompiler.analysis.assignment import Widths
from qcompiler.analysis.parts import groups_of, noise_alone
from qcompiler.session.session import Session

__all__ = ["corrected", "measured_alone"]

Noise = tuple[Mapping[int, float], ...]
Entry = tuple[int, int]
"""Number of a group, and a width."""

LEAST = 0.02
"""Share of the noise of an assignment from which a group is measured: 2 % are 0.1 dB."""
ROUNDS = 4
"""Largest number of assignments and measurements in turns."""


def corrected(
    noise: Noise,
    kinds: Sequence[str],
    assigned: Callable[[Noise], Collection[Widths]],
    measure: Callable[[Sequence[Entry]], Sequence[float]],
    limit: int,
) -> Noise:
    """The noise by width for each group, measured where it matters and scaled elsewhere.

    Args:
        noise: Expected noise by width, for each group.
        kinds: Kind of each group; groups of one kind and width are scaled alike.
        assigned: Function from noise to the assignments that it leads to.
        measure: Function from groups and widths to their measured noise.
        limit: Largest number of measurements.
    """
    known: dict[Entry, float] = {}
    current = noise
    for _ in range(ROUNDS):
        wanted = _dominant(current, assigned(current), known)[: limit - len(known)]
        if not wanted:
            break
        known.update(zip(wanted, measure(wanted), strict=True))
        current = _scaled(noise, kinds, known)
    return current


def _dominant(noise: Noise, assignments: Collection[Widths], known: Collection[Entry]) -> list[Entry]:
    """Unmeasured groups and widths that cause much of the noise of an assignment, the largest share first."""
    shares: dict[Entry, float] = {}
    for widths in assignments:
        whole = sum(item[width] for item, width in zip(noise, widths, strict=True))
        for group, width in enumerate(widths):
            if whole > 0.0 and (group, width) not in known:
                share = noise[group][width] / whole
                shares[group, width] = max(share, shares.get((group, width), 0.0))
    return [entry for entry in sorted(shares, key=lambda entry: (-shares[entry], entry)) if shares[entry] >= LEAST]


def _scaled(noise: Noise, kinds: Sequence[str], known: Mapping[Entry, float]) -> Noise:
    """Measured noise where it is known; elsewhere expected noise times the usual error of the same kind and width."""
    errors: dict[tuple[str, int], list[float]] = {}
    for (group, width), value in known.items():
        expected = noise[group][width]
        if expected > 0.0 and value > 0.0:
            errors.setdefault((kinds[group], width), []).append(value / expected)
    usual = {place: statistics.median(found) for place, found in errors.items()}

    def corrected_noise(group: int, width: int) -> float:
        expected = noise[group][width]
        value = known.get((group, width))
        # A group that loses nothing on these samples is not free.
        return value if value else expected * usual.get((kinds[group], width), 1.0)

    return tuple({width: corrected_noise(group, width) for width in item} for group, item in enumerate(noise))


def measured_alone(
    entries: Sequence[Entry],
    names: Sequence[Sequence[str]],
    sources: Mapping[Entry, Session],
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
) -> list[float]:
    """Measured noise of groups alone, as a share of the power of the outputs.

    Args:
        entries: Groups and widths.
        names: Names of the quantizers of each group.
        sources: Session in which a group has a width.
        inputs: Flat inputs.
        wanted: Outputs of the float model.
    """
    found: dict[Entry, float] = {}
    for session in dict.fromkeys(sources[entry] for entry in entries):
        graph, canonical = session.quantized.module.main, session.canonical.module.main
        by_name = {node.name: group for group in groups_of(graph) for node in group.quantizers}
        here = [entry for entry in entries if sources[entry] is session]
        groups = [by_name[names[group][0]] for group, _ in here]
        noises = noise_alone(canonical, graph, inputs, wanted, session.options.memory, groups)
        found.update(zip(here, noises, strict=True))
    return [found[entry] for entry in entries]
