"""Digits as strokes of a pen, drawn by a program: sequences of moves, and the digit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CLASSES", "FEATURES", "STEPS", "Strokes", "draw"]

STEPS, FEATURES = 32, 2
"""Moves of a stroke, and numbers of a move: to the right and up, in tenths of the height of a digit."""
CORNERS = 12
JITTER, SHAKE, TURN, SHEAR, STRETCH, PACE = 0.13, 0.012, 0.35, 0.35, 0.3, 0.7
"""Spread of the corners and of the points, in heights; of the angle, rad; of slant, size and speed, relative."""

_CORNERS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0.5, 1.0), (0.15, 0.8), (0.1, 0.4), (0.3, 0.0), (0.7, 0.05), (0.9, 0.5), (0.8, 0.9), (0.5, 1.0)),
    ((0.25, 0.75), (0.5, 1.0), (0.5, 0.5), (0.5, 0.0)),
    ((0.15, 0.8), (0.4, 1.0), (0.75, 0.9), (0.75, 0.6), (0.4, 0.3), (0.1, 0.0), (0.5, 0.0), (0.9, 0.0)),
    ((0.15, 0.95), (0.6, 1.0), (0.75, 0.75), (0.4, 0.55), (0.8, 0.35), (0.7, 0.05), (0.15, 0.05)),
    ((0.35, 1.0), (0.2, 0.6), (0.1, 0.35), (0.85, 0.4), (0.7, 0.75), (0.65, 0.4), (0.6, 0.0)),
    ((0.8, 1.0), (0.25, 1.0), (0.2, 0.6), (0.65, 0.6), (0.8, 0.3), (0.55, 0.0), (0.1, 0.1)),
    ((0.7, 1.0), (0.3, 0.7), (0.15, 0.3), (0.35, 0.0), (0.75, 0.1), (0.75, 0.4), (0.45, 0.5), (0.2, 0.3)),
    ((0.1, 1.0), (0.5, 1.0), (0.85, 1.0), (0.6, 0.55), (0.35, 0.0)),
    ((0.75, 0.85), (0.4, 1.0), (0.25, 0.75), (0.7, 0.35), (0.6, 0.0), (0.25, 0.1), (0.35, 0.45), (0.75, 0.85)),
    ((0.75, 0.75), (0.5, 0.55), (0.2, 0.75), (0.45, 1.0), (0.75, 0.85), (0.75, 0.45), (0.6, 0.0)),
)
"""Corners of each digit, in a square of height 1."""
CLASSES = len(_CORNERS)


@dataclass(frozen=True)
class Strokes:
    """Sequences and their digits.

    Args:
        moves: [N, STEPS, FEATURES].
        labels: [N], from 0 to 9.
    """

    moves: Tensor
    labels: Tensor


def draw(count: int, seed: int) -> Strokes:
    """Strokes of all digits in random order.

    The corners of a digit are moved, the whole is turned, slanted and stretched, and the pen runs at a changing speed.

    Args:
        count: Number of strokes.
        seed: Seed for all random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    labels = torch.randint(CLASSES, (count,), generator=generator)
    corners = torch.stack([_along(torch.tensor(item), torch.linspace(0, 1, CORNERS)[None])[0] for item in _CORNERS])
    points = corners[labels] + JITTER * normal(count, CORNERS, 2)
    angle, slant, size = TURN * normal(count), SHEAR * normal(count), (STRETCH * normal(count, 2)).exp()
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([torch.stack([cos, slant * cos - sin], -1), torch.stack([sin, slant * sin + cos], -1)], -2)
    points = ((points - 0.5) * size[:, None]) @ turned.transpose(1, 2)
    pace = (PACE * normal(count, STEPS)).exp()
    times = torch.cat([torch.zeros(count, 1), pace.cumsum(1) / pace.sum(1, keepdim=True)], 1)
    path = _along(points, times) + SHAKE * normal(count, STEPS + 1, 2)
    return Strokes(10.0 * path.diff(dim=1), labels)


def _along(corners: Tensor, times: Tensor) -> Tensor:
    """Points on lines through corners [..., C, 2] at times [N, T] from 0 to 1."""
    corners = corners.expand(times.shape[0], -1, -1)
    places = times * (corners.shape[1] - 1)
    first = places.floor().long().clamp(0, corners.shape[1] - 2)
    share = (places - first)[..., None]
    before, after = (corners.gather(1, (first + step)[..., None].expand(-1, -1, 2)) for step in (0, 1))
    return before + share * (after - before)
