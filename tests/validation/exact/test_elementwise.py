"""Sums and products of two codes, and clamps of what waits for its grid."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from qcompiler.errors import GraphError
from qcompiler.validation.exact import Pending
from tests.support.exact import ARITHMETIC, check_rounds, codes, evaluate, grid, real_result

A, B = codes((3, 40), grid(0.02, 7), 1), codes((3, 40), grid(0.03, -4), 2)


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_arithmetic_of_two_grids_rounds_to_a_third(op: str) -> None:
    check_rounds(evaluate(op, A, B), real_result(op, A, B))


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_in_float32_a_tie_may_fall_either_way(op: str) -> None:
    floats = dataclasses.replace(ARITHMETIC, elementwise="f32")
    check_rounds(evaluate(op, A, B, arithmetic=floats), real_result(op, A, B))


def test_real_numbers_are_refused() -> None:
    with pytest.raises(GraphError, match="add reads real numbers"):
        evaluate("add", A, torch.ones(3, 40))


def waits(low: float = -math.inf, high: float = math.inf) -> Pending:
    return Pending(lambda params, qmin, qmax: torch.zeros(2, 3, dtype=torch.int64), low, high)


@pytest.mark.parametrize(
    ("before", "limits", "after"),
    [
        ((-math.inf, math.inf), (0.0, 6.0), (0.0, 6.0)),
        ((0.0, 6.0), (-1.0, 4.0), (0.0, 4.0)),
        ((0.0, 1.0), (2.0, 3.0), (2.0, 2.0)),
        ((2.0, 3.0), (0.0, 1.0), (1.0, 1.0)),
    ],
)
def test_a_clamp_of_a_clamp_clamps_its_limits(
    before: tuple[float, float], limits: tuple[float, float], after: tuple[float, float]
) -> None:
    found = evaluate("clamp", waits(*before), shapes=[(2, 3)], min=limits[0], max=limits[1])
    assert isinstance(found, Pending)
    assert (found.low, found.high) == after


def test_relu_of_codes_waits_for_another_grid() -> None:
    found = evaluate("relu", A)
    assert isinstance(found, Pending)
    assert (found.low, found.high) == (0.0, math.inf)
    check_rounds(found, A.real().to(torch.float64))  # the quantizer applies the limits


def test_clamps_per_channel_add_up() -> None:
    low, high = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0])
    first = evaluate("clamp_channels", waits(-0.5, 2.5), low, high, shapes=[(2, 3), (3,), (3,)], axis=1)
    assert isinstance(first, Pending)
    assert first.channels is not None
    assert [first.channels[0].tolist(), first.channels[1].tolist()] == [[-0.5, 0.0, 1.0], [1.0, 2.0, 2.5]]
    second = evaluate("clamp_channels", first, -high, torch.zeros(3), shapes=[(2, 3), (3,), (3,)], axis=1)
    assert isinstance(second, Pending)
    assert second.channels is not None
    assert [second.channels[0].tolist(), second.channels[1].tolist()] == [[-0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    with pytest.raises(GraphError, match="channels are clamped along two axes"):
        evaluate("clamp_channels", first, torch.zeros(2), torch.ones(2), shapes=[(2, 3, 2), (2,), (2,)], axis=2)
