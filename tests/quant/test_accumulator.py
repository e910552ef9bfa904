"""Accumulator bounds against every input of small layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import InputError
from qcompiler.quant.accumulator import accumulator_bounds, fits, folded_bias, partial_sum_bound, partial_sum_bounds


@given(weights=st.lists(st.integers(-9, 9), min_size=3, max_size=3), low=st.integers(-4, 2), size=st.integers(0, 4))
@settings(deadline=None, max_examples=60)
def test_bounds_are_reached_and_never_passed(weights: list[int], low: int, size: int) -> None:
    inputs = list(itertools.product(range(low, low + size + 1), repeat=3))
    sums = [5 + sum(w * x for w, x in zip(weights, row, strict=True)) for row in inputs]
    codes = torch.tensor([weights, [0, 0, 0]])
    minimum, maximum = accumulator_bounds(codes, torch.tensor([5, -1]), low, low + size)
    assert (minimum.tolist(), maximum.tolist()) == ([min(sums), -1], [max(sums), -1])
    partial = [
        abs(sum(weights[i] * row[i] for i in chosen))
        for row in inputs
        for length in range(4)
        for chosen in itertools.combinations(range(3), length)
    ]
    assert partial_sum_bound(codes, low, low + size)[0] >= max(partial)


def test_width_is_decided_exactly() -> None:
    weights = torch.full((1, 64, 4, 1), 127)
    minimum, maximum = accumulator_bounds(weights, None, -128, 127)
    assert (minimum.item(), maximum.item()) == (-127 * 128 * 256, 127 * 127 * 256)
    assert partial_sum_bound(weights, -128, 127).item() == 127 * 128 * 256
    limits = torch.tensor([-128]), torch.tensor([127])
    assert fits(*limits, 8) and not fits(limits[0] - 1, limits[1], 8) and not fits(limits[0], limits[1] + 1, 8)
    with pytest.raises(InputError):
        accumulator_bounds(weights, None, 1, 0)


@given(
    weights=st.lists(st.integers(-9, 9), min_size=1, max_size=4),
    bias=st.integers(-40, 40),
    low=st.integers(-4, 4),
    size=st.integers(0, 4),
)
@settings(deadline=None, max_examples=60)
def test_partial_sums_reach_their_bounds(weights: list[int], bias: int, low: int, size: int) -> None:
    """Any of the products, with or without the bias: also where the inputs cannot be 0."""
    codes = range(low, low + size + 1)
    products = [[0, *(w * x for x in codes)] for w in weights]
    sums = [sum(chosen) + start for chosen in itertools.product(*products) for start in (0, bias)]
    minimum, maximum = partial_sum_bounds(torch.tensor([weights]), torch.tensor([bias]), low, low + size)
    assert (minimum.item(), maximum.item()) == (min(sums), max(sums))


def test_the_bias_of_raw_codes() -> None:
    weights, bias = torch.tensor([[3, -5, 7], [1, 1, 1]]), torch.tensor([10, -1])
    folded = folded_bias(weights, bias, -128)
    x = torch.tensor([-128, 0, 127])
    assert torch.equal(weights @ x + folded, weights @ (x + 128) + bias)
    assert torch.equal(folded_bias(weights, bias, 0), bias)
