"""The candidates of a search: hardware settings, techniques, and the passes that they stand for.

hardware     the given target, a scale per channel, more bits for some layers, more bits for all
techniques   ranges, equalization, absorption, bias correction, smoothing, adaptive rounding: no cost at run time
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qcompiler.analysis.remedies import changed_overrides, per_channel_target, widest
from qcompiler.errors import QCompilerError
from qcompiler.passes import Pass
from qcompiler.passes.absorb_bias import AbsorbBias
from qcompiler.passes.adaptive_rounding.adaround import AdaRound
from qcompiler.passes.base import Override
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.passes.partition import Partition
from qcompiler.passes.smooth_activations import SmoothActivations
from qcompiler.session.options import Effort, Options
from qcompiler.session.pipeline import print_pipeline
from qcompiler.targets import Target

__all__ = ["ROUNDING", "TECHNIQUES", "Candidate", "Hardware", "given_hardware", "wider_targets", "with_layers"]

Passes = tuple[Pass, ...]
Edit = Callable[[Passes], Passes]


@dataclass(frozen=True)
class Hardware:
    """A target and widths.

    Args:
        target: The target with the changes.
        changes: Keywords of `Target.override` that lead from the given target to this one.
        overrides: Widths by layer.
        name: Words for what differs from the given target.
    """

    target: Target
    changes: Mapping[str, object] = field(default_factory=dict)
    overrides: Mapping[str, Override] = field(default_factory=dict)
    name: str = "given target"

    def per_channel(self) -> Hardware | None:
        """The same with a scale per channel of a weight; None if the hardware cannot have that, or has it already."""
        target = per_channel_target(self.target)
        if target is None:
            return None
        return Hardware(target, {**self.changes, "per_channel": True}, self.overrides, "a scale per channel")

    def wider(self, **bits: int) -> Hardware | None:
        """The same with other default widths; None if the target refuses them.

        Args:
            bits: `activation_bits`, `weight_bits`, or both.
        """
        with contextlib.suppress(QCompilerError):
            name = " and ".join(f"{value}-bit {key.removesuffix('_bits')}s" for key, value in bits.items())
            before = "a scale per channel, " if "per_channel" in self.changes else ""
            target = self.target.override(**bits)
            return Hardware(target, {**self.changes, **bits}, self.overrides, before + name)
        return None


def given_hardware(target: Target, overrides: Mapping[str, Override]) -> Hardware:
    """The hardware as the caller describes it."""
    return Hardware(target, overrides=dict(overrides))


def with_layers(hardware: Hardware, widths: Mapping[str, Mapping[str, int]]) -> Hardware:
    """Hardware with other widths for some layers.

    Args:
        hardware: The hardware before.
        widths: `activation_bits` and `weight_bits` by layer.
    """
    before = "a scale per channel, " if "per_channel" in hardware.changes else ""
    overrides = changed_overrides(hardware.overrides, widths)
    return dataclasses.replace(hardware, overrides=overrides, name=f"{before}more bits for {len(widths)} layers")


def wider_targets(hardware: Hardware) -> Iterator[Hardware]:
    """The hardware with its widest weights, its widest activations, and both, where that is more than now."""
    target = hardware.target
    most = {role: widest(target, role) for role in ("weight", "activation")}
    now = {"weight": target.weight_bits, "activation": target.activation_bits}
    gains = {f"{role}_bits": most[role] for role in most if most[role] > now[role]}
    choices = [{name: bits} for name, bits in gains.items()]
    for choice in (*choices, gains) if len(gains) > 1 else choices:
        found = hardware.wider(**choice)
        if found is not None:
            yield found


def _replaced(kind: type[Pass], **changes: object) -> Edit:
    """An edit that changes options of all passes of a kind."""

    def edit(passes: Passes) -> Passes:
        return tuple(dataclasses.replace(item, **changes) if isinstance(item, kind) else item for item in passes)

    return edit


def _before_placement(added: Pass) -> Edit:
    """An edit that inserts a pass before the first pass that places islands and quantizers."""

    def edit(passes: Passes) -> Passes:
        place = next((index for index, item in enumerate(passes) if isinstance(item, Partition)), None)
        return passes if place is None else (*passes[:place], added, *passes[place:])

    return edit


def _correct_biases(passes: Passes) -> Passes:
    """Biases corrected on data after the ranges of weights are found; adaptive rounding corrects them itself."""
    if any(isinstance(item, AdaRound) or item == CorrectBias() for item in passes):
        return passes
    found: list[Pass] = []
    for item in passes:
        if not isinstance(item, CorrectBias):
            found.append(item)
        if isinstance(item, CalibrateWeights):
            found.append(CorrectBias())
    return tuple(found)


def _absorb_biases(passes: Passes) -> Passes:
    """High biases absorbed where that lowers the noise; all of them if the pipeline does so already."""
    if any(isinstance(item, AbsorbBias) for item in passes):
        return _replaced(AbsorbBias, shifts="all")(passes)
    return _before_placement(AbsorbBias(shifts="noise"))(passes)


def _smooth(passes: Passes) -> Passes:
    """The formula of the paper in place of smoothing by noise."""
    if any(isinstance(item, SmoothActivations) for item in passes):
        return _replaced(SmoothActivations, factors="ranges")(passes)
    return _before_placement(SmoothActivations())(passes)


ROUNDING = "adaptive rounding"
"""The technique that `effort="best"` stands for: the most expensive one."""

TECHNIQUES: Mapping[str, Edit] = {
    "weight ranges by mse": _replaced(CalibrateWeights, method="mse"),
    "equalization by ranges": _replaced(CrossLayerEqualization, factors="ranges"),
    "ranges by min_max": _replaced(CalibrateActivations, method="min_max"),
    "ranges by percentile": _replaced(CalibrateActivations, method="percentile"),
    "ranges by mse": _replaced(CalibrateActivations, method="mse"),
    "bias correction": _correct_biases,
    "absorbed biases": _absorb_biases,
    "smoothing by ranges": _smooth,
    ROUNDING: lambda passes: passes,  # other passes: see `Candidate.passes`
}
"""Techniques that cost nothing at run time, by name, the cheapest first."""

_EXCLUSIVE = "ranges by "
"""Beginning of the names of techniques that replace each other."""


@dataclass(frozen=True)
class Candidate:
    """One way to compile a model.

    Args:
        hardware: Target and widths.
        techniques: Names of techniques, in the order of `TECHNIQUES`.
    """

    hardware: Hardware
    techniques: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Words for what differs from the default compile."""
        return "; ".join((self.hardware.name, *self.techniques))

    def with_technique(self, name: str) -> Candidate:
        """The candidate with one more technique, which replaces one of the same kind."""
        kept = {item for item in self.techniques if not (item.startswith(_EXCLUSIVE) and name.startswith(_EXCLUSIVE))}
        return Candidate(self.hardware, tuple(item for item in TECHNIQUES if item in kept or item == name))

    def on(self, hardware: Hardware) -> Candidate:
        """The same techniques on other hardware."""
        return Candidate(hardware, self.techniques)

    def options(self, options: Options) -> Options:
        """Options of a compile of the candidate.

        Args:
            options: Options of the caller, without passes.
        """
        effort: Effort = "best" if ROUNDING in self.techniques else "default"
        plain = dataclasses.replace(options, effort=effort, overrides=self.hardware.overrides)
        before = dataclasses.replace(plain, io="float").deployment_passes(self.hardware.target)
        passes = before
        for name in self.techniques:
            passes = TECHNIQUES[name](passes)
        return plain if passes == before else dataclasses.replace(plain, effort="default", pipeline=_text(passes))

    def key(self, options: Options) -> str:
        """Text of everything that the candidate changes."""
        found = self.options(options)
        parts = (self.hardware.target.digest(), repr(found.overrides), found.effort, found.pipeline or "")
        return "\n".join(parts)

    def keywords(self, options: Options, target: str) -> dict[str, str]:
        """Keywords of `compile` as they are typed.

        Args:
            options: Options of the caller.
            target: Text of the given target.
        """
        found = self.options(options)
        changes = ", ".join(f"{name}={value!r}" for name, value in self.hardware.changes.items())
        typed = {"target": f"{target}.override({changes})" if changes else target}
        if found.overrides:
            typed["overrides"] = repr(dict(found.overrides))
        if found.effort != "default":
            typed["effort"] = repr(found.effort)
        if found.pipeline is not None:
            typed["pipeline"] = repr(found.pipeline)
        return typed


def _text(passes: Sequence[Pass]) -> str:
    return print_pipeline(passes)
