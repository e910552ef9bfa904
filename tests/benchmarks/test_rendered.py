"""The pictures are the same everywhere, of every class, and no picture of one split is in another."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.rendered import CLASSES, FAMILIES, SHAPES, SIZE, SPLITS, render, split

# For each of twelve pictures: the class, the sum of all levels, and the number of pixels of the shape.
LABELS = [8, 0, 5, 9, 7, 4, 2, 10, 3, 1, 11, 6]
SUMS = [297984, 505885, 401927, 385919, 408081, 377128, 459470, 341475, 404967, 522155, 241186, 376857]
INSIDE = [153, 105, 165, 45, 134, 61, 92, 162, 64, 171, 162, 165]
SIN36, SQRT3 = math.sin(math.pi / 5), math.sqrt(3)
AREAS = {
    "circle": math.pi * 0.85**2,
    "square": 1.5**2,
    "triangle": 3 * SQRT3 * 0.55**2,
    "hexagon": 2 * SQRT3 * 0.8**2,
    "half disc": math.pi / 2,
    "bar": 2.0 * 0.84,
    "ring": math.pi * (0.92**2 - 0.48**2),
    "frame": 1.64**2 - 0.84**2,
    # Two circles of radii 0.95 and 0.75 that are 0.45 apart; less what they share.
    "crescent": math.pi * 0.95**2,
    "star": 5 * 0.42 * SIN36,
    "cross": 2 * (1.8 * 0.64) - 0.64**2,
    "ell": 0.6 * 1.7 + 1.6 * 0.6 - 0.6 * 0.6,
}


def _lens(r: float, s: float, apart: float) -> float:
    """Area that two discs share."""
    at_r = math.acos((apart**2 + r**2 - s**2) / (2 * apart * r))
    at_s = math.acos((apart**2 + s**2 - r**2) / (2 * apart * s))
    kite = (-apart + r + s) * (apart + r - s) * (apart - r + s) * (apart + r + s)
    return r**2 * at_r + s**2 * at_s - 0.5 * math.sqrt(kite)


def test_known_pictures_come_out() -> None:
    scenes = render(12, 0)
    levels = (scenes.images * 255).round().sum((1, 2, 3), dtype=torch.int64)
    assert scenes.labels.tolist() == LABELS
    # Another machine's sine may move a pixel that is near a half by one level of 255: a few of 3072.
    assert (levels - torch.tensor(SUMS)).abs().max() <= 4
    assert ((scenes.masks > 0).sum((1, 2)) - torch.tensor(INSIDE)).abs().max() <= 1


def test_drawing_again_gives_the_same_bits() -> None:
    assert all(torch.equal(a, b) for a, b in zip(render(1500, 5), render(1500, 5), strict=True))


def test_seeds_and_chunks_differ() -> None:
    first, second = render(2000, 5).images, render(1000, 6).images
    assert not torch.equal(first[:1000], first[1000:])
    assert not torch.equal(first[:1000], second)


def test_pictures_are_levels_and_masks_are_of_the_family_of_the_shape() -> None:
    images, labels, masks = render(600, 7)
    assert images.shape == (600, 3, SIZE, SIZE)
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    torch.testing.assert_close(images * 255, (images * 255).round(), rtol=0, atol=1e-4)  # a rounded quotient times 255
    assert torch.bincount(labels, minlength=CLASSES).tolist() == [600 // CLASSES] * CLASSES
    families = torch.tensor([family for family, _ in SHAPES.values()])[labels].reshape(-1, 1, 1)
    assert bool(((masks == 0) | (masks == families)).all())
    assert {int(family) for family in families.unique()} == set(range(1, FAMILIES))


@pytest.mark.parametrize("name", SHAPES)
def test_shape_has_its_area(name: str) -> None:
    steps = 1200
    axis = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps * 3 - 1.5
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    inside = (SHAPES[name][1](u, v) < 0).double().sum().item() * (3 / steps) ** 2
    expected = AREAS[name] - (_lens(0.95, 0.75, 0.45) if name == "crescent" else 0)
    # Along an outline of length 10 at most, squares of side 1/400 are counted wrong by half of one.
    assert inside == pytest.approx(expected, abs=10 * (3 / steps) / 2)


def test_no_picture_is_in_two_splits() -> None:
    seen: dict[bytes, str] = {}
    for name in SPLITS:
        images = (split(name).images * 255).to(torch.uint8).flatten(1).numpy()
        assert len(images) == SPLITS[name][0]
        for image in images:
            key = image.tobytes()
            assert key not in seen, (name, seen[key])
            seen[key] = name
    assert SPLITS["test"][0] >= 5000
