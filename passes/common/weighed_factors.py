"""Factors of channels that lower the expected noise of a quantized model.

For the channels of a group with ranges r1 of the producer's rows, R of the activations and r2 of the readers' columns,
factors of the form

    s = r1^a R^b / r2^c

make the rows (a), the activations (b) and the columns (c) more equal. Each form is tried as it is, and with s limited
so that no channel grows beyond the largest one; then weaker factors s^(1/2) and s^(1/4). A group takes the factors with
the least expected noise, and none unless that is below the present noise by `gain`. Groups are visited in turn until
none changes. In the end the factors of a group go back to 1 if the noise does not rise by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qcompiler.ir.graph import Node
from qcompiler.passes.common.channel_noise import Facts, GroupNoise, ScaledLayer, Widths
from qcompiler.passes.common.equalization import Group

GAIN, GAIN_WITHOUT_DATA = 0.1, 0.3
"""Share of its noise that a group must lose for new factors. Moments of batch norms say less than data."""
ROUNDS = 12
"""Maximum number of visits of each group."""
FORMS = ((0.5, 0.0, 0.5), (0.0, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3), (0.5, 0.5, 0.0), (0.0, 1.0, 0.0))
"""Exponents a, b, c."""
STRENGTHS = (0.5, 0.25)
STEPS = 16
"""Factors per octave: a few whole numbers say the same on every machine, and steps of 4 % cost no noise."""
OCTAVES = 20
"""Factors are at most 2^OCTAVES, and at least 2^-OCTAVES."""


def weighed(
    found: Sequence[Group],
    layers: Mapping[Node, ScaledLayer],
    facts: Facts,
    widths: Widths,
    gain: float = GAIN,
) -> dict[Node, Tensor]:
    """Find the factors and apply them to `layers` and `facts`.

    Args:
        found: Groups.
        layers: Their layers.
        facts: Known facts about their channels.
        widths: Grids of the target.
        gain: Share of its noise that a group must lose.

    Returns:
        By producer, log2 s of each channel in sixteenths, int64; only of groups that are rescaled. `layers` and `facts`
        are then those of these factors.
    """
    noises = [GroupNoise(group, layers, facts, widths) for group in found]
    factors = [torch.ones(item.producer.rows.numel(), dtype=torch.float64) for item in noises]
    waiting = list(range(len(noises)))
    for _ in range(ROUNDS):
        changed = [number for number in waiting if _improve(noises[number], factors, number, gain)]
        if not changed:
            break
        # A group changes what its own layers' other groups see.
        touched = {node for number in changed for node in _nodes(found[number])}
        waiting = [number for number, group in enumerate(found) if not touched.isdisjoint(_nodes(group))]
    for number, item in enumerate(noises):
        back = 1.0 / factors[number]
        if bool((back != 1.0).any()) and item.noise(back) * (1.0 - gain) <= item.noise():
            item.apply(back)
            factors[number] = torch.ones_like(back)
    steps = {group.producer: (s.log2() * STEPS).round().long() for group, s in zip(found, factors, strict=True)}
    for layer in layers.values():
        layer.reset()
    for tensor in facts.tensors.values():
        tensor.reset()
    steps = {node: exponents for node, exponents in steps.items() if bool(exponents.any())}
    for item in noises:
        if item.group.producer in steps:
            item.apply(factors_of(steps[item.group.producer]))
    return steps


def factors_of(steps: Tensor) -> Tensor:
    """The factors s of channels from their logarithms in sixteenths, float64."""
    return (steps / STEPS).to(torch.float64).exp2()


def _nodes(group: Group) -> set[Node]:
    return {group.producer, *(consumer.node for consumer in group.consumers)}


def _improve(item: GroupNoise, factors: list[Tensor], number: int, gain: float) -> bool:
    """Apply the best factors to a group; whether there are any."""
    choices = _forms(item, factors[number])
    if choices is None:
        return False
    before, *noises = item.noises(torch.cat([torch.ones_like(choices[:1]), choices]))
    best = min((noise for noise in noises if noise < before), default=before)
    if not best < before:
        return False
    chosen = choices[noises.index(best)]
    # The second strength applies to the result of the first, whichever that is.
    half, quarter = STRENGTHS
    weaker = torch.stack([chosen**half, chosen**quarter, (chosen**half) ** quarter])
    noises = item.noises(weaker)
    place = 2 if noises[0] < best else 1
    if noises[0] < best:
        best, chosen = noises[0], weaker[0]
    if noises[place] < best:
        best, chosen = noises[place], weaker[place]
    if not best < before * (1.0 - gain):
        return False
    item.apply(chosen)
    factors[number] = factors[number] * chosen
    return True


def _forms(item: GroupNoise, present: Tensor) -> Tensor | None:
    """The factors of each form, as it is and limited, [choices, channels]; None where all channels are dead."""
    rows, seen, columns = item.ranges()
    alive = (rows > 0.0) & (columns > 0.0)
    if not bool(alive.any()):
        return None
    logs = [torch.where(alive & (x > 0.0), x, 1.0).log2() for x in (rows, seen, columns)]
    share = torch.where(alive, seen / seen.max().clamp(min=1e-300), 0.0)
    largest = int(torch.where(alive, seen, -1.0).argmax())
    a, b, c = torch.tensor(FORMS, dtype=torch.float64).T.unsqueeze(2)
    exponent = a * logs[0] + b * logs[1] - c * logs[2]
    exponent = torch.where(alive, exponent - exponent[:, largest, None], 0.0)
    s = exponent.exp2()
    s = torch.stack([s, torch.maximum(s, share)], 1).flatten(0, 1)
    total = (present.log2() + torch.where(alive, s, 1.0).log2()).clamp(-OCTAVES, OCTAVES)
    return (total - present.log2()).exp2()
