"""Ranges of many tensors in one go are those of one search each, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qcompiler.calibration.joint_ranges import joint_ranges
from qcompiler.calibration.observers import Observer, make_observer
from qcompiler.errors import CalibrationError
from qcompiler.quant.spec import QuantSpec

KINDS: tuple[Callable[[torch.Generator], Tensor], ...] = (
    lambda g: torch.randn(3, 50, generator=g),
    lambda g: torch.randn(7, 11, generator=g).relu() * 20.0,
    lambda g: -torch.rand(5, generator=g),
    lambda g: torch.randint(-4, 9, (40,), generator=g).float(),
    lambda g: torch.zeros(6),
    lambda g: torch.full((4,), 1e-9),
    lambda g: torch.cat([torch.randn(200, generator=g) * 0.1, torch.tensor([9.0])]),
)


def observers(spec: str, method: str, count: int = 49) -> dict[int, Observer]:
    """As many observers, of values of all kinds in turns."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for index in range(count):
        values = KINDS[index % len(KINDS)](generator)
        made[index] = make_observer(method, QuantSpec.parse(spec), f"t{index}", options={"bins": 64})
        made[index].update(values, index=0)
    return made


@pytest.mark.parametrize("method", ["mse", "sqnr"])
@pytest.mark.parametrize("spec", ["u8", "s8 symmetric", "u4", "s12", "s8 symmetric scale=pow2"])
def test_that_they_are_those_of_single_searches(spec: str, method: str) -> None:
    made = observers(spec, method)
    found = joint_ranges(made)
    assert found.keys() == made.keys()
    for key, observer in made.items():
        assert [float(end) for end in found[key]] == [float(end) for end in observer.range()], key


def test_that_others_are_left_to_their_own_search() -> None:
    spec = QuantSpec.parse("u8 symmetric")
    negative, positive, empty = (make_observer("sqnr", spec, name) for name in ("negative", "positive", "empty"))
    negative.update(-torch.ones(3), index=0)
    positive.update(torch.ones(3), index=0)
    assert joint_ranges({0: negative, 1: positive, 2: empty}) == {}
    with pytest.raises(CalibrationError, match="negative"):
        negative.range()
    least = make_observer("min_max", QuantSpec.parse("u8"), "least")
    least.update(torch.ones(3), index=0)
    assert joint_ranges({0: least}) == {}
    assert joint_ranges({}) == {}
