"""Pictures of shapes that a program draws: a data set without a download, the same on every machine.

32x32 pixels, three channels. One shape of twelve stands on a background that runs from one colour to another, at any
place, size, angle and colour. Discs and lines lie behind it and in front of it, three pictures of ten have a bar across
the shape, and all have noise. One scene has two views: which shape it is, and to which family each pixel belongs.

Shapes are implicit functions f(u, v) in their own frame, negative inside, about a distance there: a pixel is covered
by 0.5 - f times the radius in pixels, between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CLASSES", "FAMILIES", "SHAPES", "SIZE", "SPLITS", "Dice", "Scenes", "render", "split"]

SIZE = 32
"""Side of a picture, pixels."""
CHUNK = 1000
"""Scenes drawn at once. A part of what the pictures are: each chunk has a generator of its own."""
BLOBS, LINES = 2, 2
"""Discs and lines behind the shape. One more disc is in front of it."""
RADIUS = (7.0, 11.0)
"""Pixels."""
LEVELS = 255
"""Pixels are multiples of 1/255, so that the last bits of a machine's sine leave no trace."""

Field = Callable[[Tensor, Tensor], Tensor]


def _polygon(corners: int, apothem: float) -> Field:
    def field(u: Tensor, v: Tensor) -> Tensor:
        angles = [2 * math.pi * corner / corners for corner in range(corners)]
        sides = [u * math.cos(angle) + v * math.sin(angle) for angle in angles]
        return torch.stack(sides).amax(0) - apothem

    return field


def _box(u: Tensor, v: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(u.abs() - width, v.abs() - height)


def _star(u: Tensor, v: Tensor) -> Tensor:
    """Five points: one tenth of it, from a tip to a notch, folded over the rest."""
    step, notch = math.pi / 5, 0.42
    angle = (torch.atan2(v, u) + step).remainder(2 * step) - step
    r = torch.hypot(u, v)
    along, across = r * angle.cos(), r * angle.sin().abs()
    to_notch = (notch * math.cos(step) - 1, notch * math.sin(step))
    length = math.hypot(*to_notch)
    return ((along - 1) * to_notch[1] - across * to_notch[0]) / length


def _ell(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u + 0.45, v, 0.3, 0.85), _box(u - 0.05, v + 0.55, 0.8, 0.3))


SHAPES: dict[str, tuple[int, Field]] = {
    "circle": (1, lambda u, v: torch.hypot(u, v) - 0.85),
    "square": (1, lambda u, v: _box(u, v, 0.75, 0.75)),
    "triangle": (1, _polygon(3, 0.55)),
    "hexagon": (1, _polygon(6, 0.8)),
    "half disc": (1, lambda u, v: torch.maximum(torch.hypot(u + 0.4, v) - 1, -(u + 0.4))),
    "bar": (1, lambda u, v: _box(u, v, 1.0, 0.42)),
    "ring": (2, lambda u, v: (torch.hypot(u, v) - 0.7).abs() - 0.22),
    "frame": (2, lambda u, v: (_box(u, v, 0.62, 0.62)).abs() - 0.2),
    "crescent": (2, lambda u, v: torch.maximum(torch.hypot(u, v) - 0.95, 0.75 - torch.hypot(u - 0.45, v))),
    "star": (3, _star),
    "cross": (3, lambda u, v: torch.minimum(_box(u, v, 0.9, 0.32), _box(u, v, 0.32, 0.9))),
    "ell": (3, _ell),
}
"""Family and field of each shape: 1 convex, 2 hollow, 3 with corners that point inwards."""

CLASSES = len(SHAPES)
FAMILIES = 4
"""Classes of a pixel: 0 is all that is no part of the shape."""


class Scenes(NamedTuple):
    """Drawn scenes.

    Args:
        images: float32 [N, 3, SIZE, SIZE] in [0, 1].
        labels: int64 [N] in [0, CLASSES).
        masks: int64 [N, SIZE, SIZE] in [0, FAMILIES): the family where the shape shows, 0 elsewhere.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor


SPLITS: dict[str, tuple[int, int]] = {
    "train": (24_000, 1),
    "validation": (4_000, 2),
    "calibration": (4_096, 3),
    "test": (5_000, 4),
}
"""Number of scenes and seed. `validation` is what the difficulty of the data and the training were chosen on."""


def split(name: str) -> Scenes:
    """The scenes of a part of the data set."""
    return render(*SPLITS[name])


def render(count: int, seed: int) -> Scenes:
    """Draw `count` scenes, as many of each class as of any other within a chunk."""
    sizes = [min(CHUNK, count - begin) for begin in range(0, count, CHUNK)]
    # Seeds far apart: no chunk of one split is a chunk of another.
    chunks = [_chunk(size, 1_000_003 * seed + index) for index, size in enumerate(sizes)]
    return Scenes(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


class Dice:
    """Random numbers for a chunk: one per scene, in a shape that broadcasts over pixels."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, channels: int = 1) -> Tensor:
        """Numbers in low..high: float32 [N, channels, 1, 1]."""
        unit = torch.rand(self.count, channels, 1, 1, generator=self.generator)
        return low + (high - low) * unit


def _chunk(count: int, seed: int) -> Scenes:
    dice = Dice(count, seed)
    labels = torch.arange(count)[torch.randperm(count, generator=dice.generator)] % CLASSES
    axis = torch.arange(SIZE, dtype=torch.float32) - (SIZE - 1) / 2
    y, x = axis.reshape(1, 1, SIZE, 1), axis.reshape(1, 1, 1, SIZE)

    begin, end, angle = dice.uniform(0, 1, 3), dice.uniform(0, 1, 3), dice.uniform(0, 2 * math.pi)
    run = ((x * angle.cos() + y * angle.sin()) / SIZE + 0.5).clamp(0, 1)
    images = begin + (end - begin) * run
    images = _clutter(images, dice, x, y, BLOBS, LINES)

    centre_x, centre_y = dice.uniform(-6, 6), dice.uniform(-6, 6)
    radius, angle, stretch = dice.uniform(*RADIUS), dice.uniform(0, 2 * math.pi), dice.uniform(-0.12, 0.12)
    coverage = torch.zeros(count, 1, SIZE, SIZE)
    right, down = x - centre_x, y - centre_y
    u = (right * angle.cos() + down * angle.sin()) / (radius * (1 + stretch))
    v = (down * angle.cos() - right * angle.sin()) / (radius * (1 - stretch))
    families = torch.zeros(count, dtype=torch.int64)
    for label, (family, field) in enumerate(SHAPES.values()):
        chosen = labels == label
        coverage[chosen] = (0.5 - field(u[chosen], v[chosen]) * radius[chosen]).clamp(0, 1)
        families[chosen] = family
    around = (begin + end) / 2
    colour = dice.uniform(0, 1, 3)
    # A shape of about the colour behind it is moved away from it, towards the farther end of each channel.
    near = (colour - around).abs().amax(1, keepdim=True) < 0.4
    colour = torch.where(near, around + torch.where(around < 0.5, 0.45, -0.45), colour)
    images = images + (colour - images) * coverage

    front = _clutter_coverage(dice, x, y, 1, 0)
    angle, offset, width = dice.uniform(0, math.pi), dice.uniform(-0.9, 0.9), dice.uniform(1.0, 2.5)
    distance = (right * angle.cos() + down * angle.sin() - offset * radius).abs()
    bar = (0.5 + width - distance).clamp(0, 1) * (dice.uniform(0, 1) < 0.3)
    for over in (*front, bar):
        images = images + (dice.uniform(0, 1, 3) - images) * over
        coverage = coverage * (1 - over)
    noise = torch.randn(count, 3, SIZE, SIZE, generator=dice.generator)
    images = (images + noise * dice.uniform(0.0, 0.06)).clamp(0, 1)
    images = (images * LEVELS + 0.5).floor() / LEVELS
    masks = (coverage[:, 0] > 0.5) * families.reshape(-1, 1, 1)
    return Scenes(images, labels, masks)


def _clutter_coverage(dice: Dice, x: Tensor, y: Tensor, blobs: int, lines: int) -> list[Tensor]:
    """Small discs, and lines of about a pixel from one point to another, as coverages [N, 1, SIZE, SIZE]."""
    half = SIZE / 2
    found = []
    for _ in range(blobs):
        right, down = x - dice.uniform(-half, half), y - dice.uniform(-half, half)
        found.append((0.5 + dice.uniform(0.8, 3.0) - torch.hypot(right, down)).clamp(0, 1))
    for _ in range(lines):
        right, down, angle = x - dice.uniform(-half, half), y - dice.uniform(-half, half), dice.uniform(0, math.pi)
        across = (right * angle.cos() + down * angle.sin()).abs() - dice.uniform(0.3, 0.8)
        along = (down * angle.cos() - right * angle.sin()).abs() - dice.uniform(3, 10)
        found.append((0.5 - torch.maximum(across, along)).clamp(0, 1))
    return found


def _clutter(images: Tensor, dice: Dice, x: Tensor, y: Tensor, blobs: int, lines: int) -> Tensor:
    for coverage in _clutter_coverage(dice, x, y, blobs, lines):
        images = images + (dice.uniform(0, 1, 3) - images) * coverage
    return images
