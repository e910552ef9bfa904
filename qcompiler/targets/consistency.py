"""Contradictions between the fields of a descriptor: all checks that need no model.

Each finding names its key, so that the loader can add the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qcompiler.quant.modes import RequantMode
from qcompiler.quant.spec import ScaleKind
from qcompiler.targets.schema import Combination, Fields, FixedGrid, NumberType, OpRule

Key = tuple[str | int, ...]

FOLLOWS = {
    "clamp_channels": "the rule for clamp; set requantize.per_channel_clamp",
    "scaled_unary": "the rules for tables; set their per_channel",
}
"""Ops without a rule of their own, and the setting that enables each."""

ACTIVATIONS = ("relu", "clamp")
"""Ops absorbed by a requantization; no other op is computed on an accumulator."""


@dataclass(frozen=True)
class Contradiction:
    """A reason why a descriptor cannot be honoured.

    Args:
        key: Path of the key concerned.
        reason: A sentence without a full stop.
    """

    key: Key
    reason: str


def contradictions(d: Fields) -> Iterator[Contradiction]:
    """All contradictions in a descriptor whose fields have the right types.

    Args:
        d: The descriptor.

    Yields:
        Findings, basic ones first; later checks assume that earlier ones found nothing.
    """
    for rule in _RULES:
        yield from rule(d)


def _names(d: Fields) -> Iterator[Contradiction]:
    """Unknown number types, and widths claimed by two number types."""
    for role in ("activation", "weight"):
        name, others = getattr(d.defaults, role), getattr(d.defaults, _OTHERS[role])
        if name not in d.dtypes:
            reason = f"defaults.{role} is {name!r}, which is not one of dtypes {sorted(d.dtypes)}"
            yield Contradiction(("defaults", role), reason)
            return
        taken = dict.fromkeys(d.dtypes[name].widths, name)
        for index, other in enumerate(others):
            key = ("defaults", _OTHERS[role], index)
            if other not in d.dtypes:
                yield Contradiction(key, f"{other!r} is not one of dtypes {sorted(d.dtypes)}")
                return
            for width in d.dtypes[other].widths:
                if width in taken:
                    yield Contradiction(key, f"{taken[width]} and {other} both have {width} bits")
                    return
                taken[width] = other


_OTHERS = {"activation": "other_activations", "weight": "other_weights"}


def _grids(d: Fields) -> Iterator[Contradiction]:
    """Grids that no arithmetic supports."""
    for name in (d.defaults.weight, *d.defaults.other_weights):
        weight = d.dtypes[name]
        if not weight.symmetric:
            reason = "weights must be symmetric: a weight zero point needs a sum over the input for each output"
            yield Contradiction(("dtypes", name, "symmetric"), reason)
        if not weight.signed:
            reason = "weights must be signed: a symmetric grid of unsigned codes has no negative values"
            yield Contradiction(("dtypes", name, "signed"), reason)
        if weight.granularity != "per_tensor" and not d.requantize.per_channel:
            reason = f"{name} has one scale per channel, but requantize.per_channel is false"
            yield Contradiction(("dtypes", name, "granularity"), reason)
    for name in (d.defaults.activation, *d.defaults.other_activations):
        if d.dtypes[name].granularity != "per_tensor":
            reason = (
                "activations must be per tensor: scales per channel cannot be factored out of the sum over channels"
            )
            yield Contradiction(("dtypes", name, "granularity"), reason)
        if d.dtypes[name].packing != "none":
            yield Contradiction(("dtypes", name, "packing"), "only weights can be packed")
    used = {d.defaults.activation, d.defaults.weight, *d.defaults.other_activations, *d.defaults.other_weights}
    for name in d.dtypes:
        if name not in used:
            yield Contradiction(("dtypes", name), f"the number type {name!r} is not used in defaults")


def _rules(d: Fields) -> Iterator[Contradiction]:
    """Rules for ops: duplicates, and rules that cannot apply."""
    seen: set[str] = set()
    for index, rule in enumerate(d.op):
        for place, name in enumerate(rule.names):
            if name in FOLLOWS:
                yield Contradiction(("op", index, "names", place), f"{name} is controlled by {FOLLOWS[name]}")
            if name in seen:
                yield Contradiction(("op", index, "names", place), f"the op {name!r} has two rules")
            seen.add(name)
        for key, reason in _rule(d, rule):
            yield Contradiction(("op", index, *key), reason)
    lists: list[tuple[Key, tuple[str, ...]]] = []
    for index, group in enumerate(d.supergroup):
        lists += [(("supergroup", index, "steps", place), step) for place, step in enumerate(group.steps)]
    lists += [(("tie", index, "ops"), tie.ops) for index, tie in enumerate(d.tie)]
    for key, names in lists:
        for place, name in enumerate(names):
            if name not in seen:
                yield Contradiction((*key, place), f"a supergroup or tie names the op {name!r}, which has no rule")


def _rule(d: Fields, rule: OpRule) -> Iterator[tuple[Key, str]]:
    """Contradictions within one rule."""
    first = rule.names[0]
    if rule.kind == "table" and rule.per_channel and rule.out_fixed is not None:
        yield ("per_channel",), f"{first} has one table per channel, but out_fixed fixes one grid for all channels"
    if rule.per_channel and rule.kind == "mac" and not d.requantize.per_channel:
        yield ("per_channel",), f"{first} has one scale per channel, but requantize.per_channel is false"
    if rule.per_channel is not None and rule.kind not in ("mac", "table"):
        yield ("per_channel",), f"{first} has neither a weight nor a table"
    if rule.out_fixed is not None:
        number = next((n for n in _activations(d) if rule.out_fixed.bits in n.widths), _activations(d)[0])
        reason = fixed_grid_misfit(rule.out_fixed, number)
        if reason:
            yield ("out_fixed",), f"out_fixed of {first}: {reason}"
        if rule.kind in ("movement", "exact"):
            yield ("out_fixed",), f"{first} only moves elements, so its result keeps the grid of its input"
    if rule.kind == "float":
        for field in ("per_channel", "limits", "requantize", "combinations"):
            if getattr(rule, field):
                yield (field,), f"{first} runs in float, so {field} has no meaning"
        if rule.out_fixed is None:
            yield ("kind",), f"{first} runs in float and has no out_fixed: remove the rule"
    if rule.limits is not None:
        for field in ("kernel", "stride", "dilation"):
            ends = getattr(rule.limits, field)
            if ends is not None and ends[0] > ends[1]:
                yield ("limits", field), f"{field} has the minimum {ends[0]} and the maximum {ends[1]}"
    if rule.requantize is not None and rule.kind in ("movement", "exact", "table"):
        yield ("requantize",), f"{first} is not requantized"
    yield from _combinations(d, rule)


def _combinations(d: Fields, rule: OpRule) -> Iterator[tuple[Key, str]]:
    """Pairs of number types, whose arithmetic may depend only on the storage width of the activation."""
    if rule.combinations and rule.kind not in ("mac", "product"):
        yield ("combinations",), f"{rule.names[0]} has no weight"
        return
    activations = (d.defaults.activation, *d.defaults.other_activations)
    # The second operand of a product of two activations is an activation, too.
    second = activations if rule.kind == "product" else (d.defaults.weight, *d.defaults.other_weights)
    known = {"activation": activations, "weight": second}
    special: dict[bool, Combination] = {}
    for index, pair in enumerate(rule.combinations):
        for role, names in known.items():
            if getattr(pair, role) not in names:
                kind = "activation" if names == activations else role
                reason = f"{getattr(pair, role)!r} is not one of the target's number types for {kind}s, {list(names)}"
                yield ("combinations", index, role), reason
                return
        wide = max(d.dtypes[pair.activation].widths) > 8
        mine, other = pair, special.setdefault(wide, pair)
        fields = ("requantize", "accumulator", "bias")
        if any(getattr(mine, field) != getattr(other, field) for field in fields):
            reason = "pairs whose activations have the same storage width must have the same arithmetic"
            yield ("combinations", index), reason


def fixed_grid_misfit(grid: FixedGrid, number: NumberType) -> str:
    """Why results of `number` cannot be on `grid`; empty if they can."""
    low, high = number.model_copy(update={"bits": grid.bits}).limits
    if not low <= grid.zero_point <= high:
        return f"zero_point is {grid.zero_point}, which is outside of {low} to {high}"
    if number.symmetric and grid.zero_point:
        return f"zero_point is {grid.zero_point}, but activations are symmetric"
    if number.scale is ScaleKind.POW2 and math.frexp(grid.scale)[0] != 0.5:
        return f"scale is {grid.scale}, but the scales of activations are powers of two"
    return ""


def _arithmetic(d: Fields) -> Iterator[Contradiction]:
    """Modes that need other grids, and accumulators too narrow for one product."""
    numbers = [d.dtypes[name] for name in _used(d)]
    places: list[tuple[Key, RequantMode]] = [(("requantize", "mode"), d.requantize.mode)]
    for index, rule in enumerate(d.op):
        if rule.requantize is not None:
            places.append((("op", index, "requantize", "mode"), rule.requantize.mode))
        for place, pair in enumerate(rule.combinations):
            if pair.requantize is not None:
                places.append((("op", index, "combinations", place, "requantize", "mode"), pair.requantize.mode))
    for key, mode in places:
        if mode.is_shift and any(number.scale is not ScaleKind.POW2 for number in numbers):
            yield Contradiction(key, f"the mode {mode} only shifts, so all scales must be powers of two")
        if mode is RequantMode.NVDLA and not all(number.symmetric for number in numbers):
            reason = f"the mode {mode} adds no zero point, so all number types must be symmetric"
            yield Contradiction(key, reason)
    weight = max(max(d.dtypes[name].widths) for name in (d.defaults.weight, *d.defaults.other_weights))
    activation = d.dtypes[d.defaults.activation]
    product = 2 ** (activation.bits + weight - 1)
    if d.accumulator.bits < 64 and product > 2 ** (d.accumulator.bits - 1) - 1:
        reason = f"an accumulator of {d.accumulator.bits} bits cannot hold a single product"
        yield Contradiction(("accumulator", "bits"), reason)


def _groups(d: Fields) -> Iterator[Contradiction]:
    """Supergroups that pass an accumulator to an op that reads codes."""
    kinds = {name: rule.kind for rule in d.op for name in rule.names}
    for index, group in enumerate(d.supergroup):
        for place, name in enumerate(group.steps[0]):
            if kinds[name] in ("movement", "exact", "table", "float"):
                reason = f"{name} has no accumulator into which an activation could be fused"
                yield Contradiction(("supergroup", index, "steps", 0, place), reason)
        for later, step in enumerate(group.steps[1:], start=1):
            for place, name in enumerate(step):
                if name not in ACTIVATIONS:
                    reason = (
                        f"{name} is not computed on accumulators: only {' and '.join(ACTIVATIONS)} join a supergroup"
                    )
                    yield Contradiction(("supergroup", index, "steps", later, place), reason)


def _memories(d: Fields) -> Iterator[Contradiction]:
    names: set[str] = set()
    for index, memory in enumerate(d.memory):
        if memory.name in names:
            yield Contradiction(("memory", index, "name"), f"two memories have the name {memory.name!r}")
        names.add(memory.name)


def _activations(d: Fields) -> list[NumberType]:
    return [d.dtypes[name] for name in (d.defaults.activation, *d.defaults.other_activations)]


def _used(d: Fields) -> list[str]:
    return [d.defaults.activation, d.defaults.weight, *d.defaults.other_activations, *d.defaults.other_weights]


_RULES: tuple[Callable[[Fields], Iterator[Contradiction]], ...] = (
    _names,
    _grids,
    _rules,
    _arithmetic,
    _groups,
    _memories,
)
