"""Pictures of 64x64 pixels in 48 classes, for training from scratch: the shapes of `rendered`, each in four fills.

A shape is plain, striped, checked or dotted in a second colour; both halves of the class, shape and fill, must be
recognized. Backgrounds, clutter and noise are as in `rendered`, at twice the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.rendered import SHAPES, Dice

__all__ = ["CLASSES", "FILLS", "SIZE", "SPLITS", "Pictures", "render", "split"]

SIZE = 64
"""Side of a picture, pixels."""
CHUNK = 500
"""Pictures drawn at once; each chunk has a generator of its own."""
RADIUS = (18.0, 26.0)
"""Pixels. With 14 to 24 the small ResNet-18 recognizes 51 % of the validation pictures after 60,000 in training; with
18 to 26, and half of the noise, 74 %."""
PERIOD = (0.32, 0.5)
"""Period of a fill in units of the radius."""
NOISE = 0.06
"""Largest standard deviation of the noise of a picture: it makes the classes hard to tell apart."""
LEVELS = 255

FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": lambda u, v: torch.full_like(u, -1.0),
    "stripes": lambda u, v: torch.sin(2 * math.pi * u),
    "checks": lambda u, v: torch.sin(2 * math.pi * u) * torch.sin(2 * math.pi * v),
    "dots": lambda u, v: torch.cos(2 * math.pi * u) + torch.cos(2 * math.pi * v) - 0.9,
}
"""The second colour is where the function is above 0."""
CLASSES = len(SHAPES) * len(FILLS)

SPLITS: dict[str, tuple[int, int]] = {"train": (12_000, 11), "validation": (3_000, 12), "test": (5_000, 13)}
"""Number of pictures and seed."""


class Pictures(NamedTuple):
    """Drawn pictures.

    Args:
        images: float32 [N, 3, SIZE, SIZE] in [0, 1].
        labels: int64 [N] in [0, CLASSES): shape * 4 + fill.
    """

    images: Tensor
    labels: Tensor


def split(name: str, count: int | None = None) -> Pictures:
    """The first pictures of a part of the data set.

    Args:
        name: Name of the part.
        count: Number of pictures; None: all.
    """
    whole, seed = SPLITS[name]
    return render(whole if count is None else min(count, whole), seed)


def render(count: int, seed: int) -> Pictures:
    """Draw `count` pictures; the first ones do not depend on how many follow."""
    chunks = [_chunk(1_000_003 * seed + index) for index in range(-(-count // CHUNK))]
    return Pictures(*(torch.cat(parts)[:count] for parts in zip(*chunks, strict=True)))


def _chunk(seed: int) -> Pictures:
    dice = Dice(CHUNK, seed)
    labels = torch.arange(CHUNK)[torch.randperm(CHUNK, generator=dice.generator)] % CLASSES
    axis = torch.arange(SIZE, dtype=torch.float32) - (SIZE - 1) / 2
    y, x = axis.reshape(1, 1, SIZE, 1), axis.reshape(1, 1, 1, SIZE)
    begin, end, angle = dice.uniform(0, 1, 3), dice.uniform(0, 1, 3), dice.uniform(0, 2 * math.pi)
    images = begin + (end - begin) * ((x * angle.cos() + y * angle.sin()) / SIZE + 0.5).clamp(0, 1)
    for _ in range(4):
        images = images + (dice.uniform(0, 1, 3) - images) * _disc(dice, x, y)

    right, down = x - dice.uniform(-8, 8), y - dice.uniform(-8, 8)
    radius, angle = dice.uniform(*RADIUS), dice.uniform(0, 2 * math.pi)
    u, v = right * angle.cos() + down * angle.sin(), down * angle.cos() - right * angle.sin()
    coverage = _by_label(
        labels // len(FILLS),
        [lambda a, b, f=field: 0.5 - f(a, b) for _, field in SHAPES.values()],  # type: ignore[misc]
        u / radius,
        v / radius,
    )
    coverage = (0.5 + (coverage - 0.5) * radius).clamp(0, 1)
    turn, period = dice.uniform(0, 2 * math.pi), radius * dice.uniform(*PERIOD)
    p, q = (u * turn.cos() + v * turn.sin()) / period, (v * turn.cos() - u * turn.sin()) / period
    fill = (_by_label(labels % len(FILLS), list(FILLS.values()), p, q) > 0).to(torch.float32)

    colour = dice.uniform(0, 1, 3)
    around = (begin + end) / 2
    near = (colour - around).abs().amax(1, keepdim=True) < 0.3
    colour = torch.where(near, around + torch.where(around < 0.5, 0.35, -0.35), colour)
    second = torch.where(colour < 0.5, colour + 0.4, colour - 0.4)
    images = images + (colour + (second - colour) * fill - images) * coverage
    images = images + (dice.uniform(0, 1, 3) - images) * _disc(dice, x, y)
    noise = torch.randn(CHUNK, 3, SIZE, SIZE, generator=dice.generator)
    images = (images + noise * dice.uniform(0.0, NOISE)).clamp(0, 1)
    # Multiples of 1/255, so that the last bits of a machine's sine leave no trace.
    return Pictures((images * LEVELS + 0.5).floor() / LEVELS, labels)


def _by_label(labels: Tensor, functions: list[Callable[[Tensor, Tensor], Tensor]], u: Tensor, v: Tensor) -> Tensor:
    """The function of each picture's label, [N, 1, SIZE, SIZE]."""
    result = torch.empty_like(u)
    for label, function in enumerate(functions):
        chosen = labels == label
        result[chosen] = function(u[chosen], v[chosen])
    return result


def _disc(dice: Dice, x: Tensor, y: Tensor) -> Tensor:
    """Coverage of a small disc."""
    half = SIZE / 2
    right, down = x - dice.uniform(-half, half), y - dice.uniform(-half, half)
    return (0.5 + dice.uniform(1.5, 6.0) - torch.hypot(right, down)).clamp(0, 1)
