"""Adaptive rounding of short rows against all roundings there are, in plain loops over Python floats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.quant.rounding_search import Moments, round_to_data


def correlated(seed: int, rows: int, count: int, factors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, the moments of inputs that follow a few common factors, and those of what other layers did to them."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(factors, count, generator=generator, dtype=torch.float64)
    x = torch.randn(300, factors, generator=generator, dtype=torch.float64) @ mixing
    x += 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, rows, count, generator=generator)
    lost = 0.05 * torch.randn(300, rows, generator=generator, dtype=torch.float64)
    return weight, (x.T @ x / len(x))[None], (lost.T @ x / len(x))[None].to(torch.float32)


def error(difference: list[float], gram: list[list[float]], drift: list[float]) -> float:
    total = 0.0
    for i, d in enumerate(difference):
        total += 2.0 * d * drift[i]
        for j, e in enumerate(difference):
            total += d * gram[i][j] * e
    return total


def least_error(low: list[float], step: list[float], gram: list[list[float]], drift: list[float]) -> float:
    """The best of all roundings: one weight changes from each to the next (Gray code).

    Args:
        low: Difference to the real weight with the lower code.
        step: Increase of the value by the upper code.
        gram: Second moments.
        drift: As `round_to_data` has it.
    """
    count = len(low)
    difference = list(low)
    half_slope = [drift[i] + sum(gram[i][j] * difference[j] for j in range(count)) for i in range(count)]
    now = least = error(difference, gram, drift)
    up = [False] * count
    for number in range(1, 1 << count):
        k = (number & -number).bit_length() - 1
        change = -step[k] if up[k] else step[k]
        now += change * (2.0 * half_slope[k] + change * gram[k][k])
        for i in range(count):
            half_slope[i] += change * gram[i][k]
        up[k] = not up[k]
        least = min(least, now)
    return least


@pytest.mark.parametrize("blocks", [False, True], ids=["a step per row", "a step per weight"])
@pytest.mark.parametrize("count", [2, 9, 11, 12, 13, 14, 15, 16])
def test_up_to_sixteen_weights_get_the_best_of_all_roundings(count: int, blocks: bool) -> None:
    rows, limit = 2, 7
    weight, gram, drift = correlated(count, rows, count, 4)
    scale = weight.abs().amax(2, keepdim=True) / limit * 0.8  # some weights are clipped
    if blocks:
        scale = scale * (1.0 + torch.arange(count) // 3)
    found = round_to_data(weight, scale, -limit, limit, Moments.of(gram), drift)
    wide = scale.expand_as(weight)
    for row in range(rows):
        below = torch.floor(weight[0, row] / wide[0, row])
        low = below.clamp(-limit, limit)
        step = (below + 1).clamp(-limit, limit) - low
        assert bool(((found[0, row] - low == 0) | (found[0, row] - low == step)).all())
        sizes = wide[0, row].double()
        lists = gram[0].tolist(), drift[0, row].double().tolist()
        ours = error((found[0, row] * sizes - weight[0, row].double()).tolist(), *lists)
        lowest = (low * wide[0, row] - weight[0, row]).tolist()
        best = least_error(lowest, (step * wide[0, row]).tolist(), *lists)
        # Products of codes and steps are rounded to float32: 6e-8 of a weight, against steps of a tenth of it.
        assert ours <= best + 1e-5 * abs(best) + 1e-6
