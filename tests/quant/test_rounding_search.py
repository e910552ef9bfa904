"""The search for roundings, against all roundings there are and against its own parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.quant import rounding_search
from qcompiler.quant.rounding_search import Moments, round_to_data, rounding_error


def problem(seed: int, rows: int, count: int, groups: int = 1, noise: float = 0.05) -> tuple[Tensor, ...]:
    """Weights, steps, and the moments of correlated inputs in two models: G and c."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups, count, count, generator=generator, dtype=torch.float64) / count**0.5
    real = (torch.randn(groups, 40 + 4 * count, count, generator=generator, dtype=torch.float64) @ mixing).relu()
    quantized = real + noise * torch.randn(real.shape, generator=generator, dtype=torch.float64)
    real, quantized = (x - x.mean(1, keepdim=True) for x in (real, quantized))
    weight = torch.randn(groups, rows, count, generator=generator, dtype=torch.float64)
    scale = weight.abs().amax(2, keepdim=True) / 5
    drift = weight @ ((quantized - real).transpose(1, 2) @ quantized / real.shape[1])
    gram = quantized.transpose(1, 2) @ quantized / real.shape[1]
    return weight, scale, gram, drift, real, quantized


def solve(weight: Tensor, scale: Tensor, limit: int, gram: Tensor, drift: Tensor) -> Tensor:
    moments = Moments.of(gram)
    return round_to_data(weight.float(), scale.float(), -limit, limit, moments, drift.float()).double()


def below(weight: Tensor, scale: Tensor) -> Tensor:
    """The lower of the two codes: in float32, where a quotient may be an integer that is none in float64."""
    return torch.floor(weight.float() / scale.float()).double()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_the_quadratic_form_is_the_error_on_data(seed: int) -> None:
    weight, scale, gram, drift, real, quantized = problem(seed, 3, 12, 2)
    codes = torch.floor(weight / scale + torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)))
    lost = quantized @ (codes * scale).transpose(1, 2) - real @ weight.transpose(1, 2)
    without = (quantized - real) @ weight.transpose(1, 2)
    expected = lost.square().mean(1) - without.square().mean(1)
    torch.testing.assert_close(rounding_error(codes, weight, scale, gram, drift), expected, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 8), groups=st.integers(1, 3))
@settings(max_examples=30)
def test_short_rows_get_the_best_of_all_roundings(seed: int, count: int, groups: int) -> None:
    weight, scale, gram, drift, *_ = problem(seed, 3, count, groups)
    found = solve(weight, scale, 7, gram, drift)
    errors = rounding_error(found, weight, scale, gram, drift)
    low = below(weight, scale)
    for choice in range(2**count):
        bits = torch.tensor([choice >> k & 1 for k in range(count)])
        other = rounding_error((low + bits).clamp(-7, 7), weight, scale, gram, drift)
        # The search is in float32: a choice as good but for that may win.
        assert bool((errors <= other + 1e-5 * other.abs() + 1e-6).all())


@given(
    seed=st.integers(0, 10**6),
    count=st.sampled_from([17, 70, 150]),
    bits=st.integers(2, 8),
    groups=st.integers(1, 2),
)
@settings(max_examples=20)
def test_long_rows_are_rounded_up_or_down_and_never_worse_than_to_nearest(
    seed: int, count: int, bits: int, groups: int
) -> None:
    weight, scale, gram, drift, *_ = problem(seed, 4, count, groups)
    limit = 2 ** (bits - 1) - 1
    scale = scale * 5 / limit * 0.9  # some weights are clipped
    found = solve(weight, scale, limit, gram, drift)
    low = below(weight, scale)
    assert bool(((found == low.clamp(-limit, limit)) | (found == (low + 1).clamp(-limit, limit))).all())
    nearest = torch.floor(weight / scale + 0.5).clamp(-limit, limit)
    ours, theirs = (rounding_error(codes, weight, scale, gram, drift) for codes in (found, nearest))
    assert bool((ours <= theirs + 1e-5 * theirs.abs() + 1e-7).all())
    assert not torch.equal(found, nearest) or bits > 6


@given(seed=st.integers(0, 10**6), count=st.sampled_from([17, 30, 70]), groups=st.integers(1, 2))
@settings(max_examples=12)
def test_neither_a_flip_nor_a_pair_of_flips_helps_long_rows(seed: int, count: int, groups: int) -> None:
    weight, scale, gram, drift, *_ = problem(seed, 4, count, groups)
    scale = scale * (1 + torch.arange(count) % 3)  # as with blocks: a step per weight
    found = solve(weight, scale, 7, gram, drift)
    low = below(weight, scale)
    change = (low.clamp(-7, 7) + (low + 1).clamp(-7, 7) - 2 * found) * scale
    slope = (found * scale - weight) @ gram + drift
    alone = change * (2 * slope + change * gram.diagonal(dim1=1, dim2=2).unsqueeze(1))
    pairs = alone.unsqueeze(3) + alone.unsqueeze(2)
    pairs = pairs + 2 * change.unsqueeze(3) * change.unsqueeze(2) * gram.unsqueeze(1)
    square = change.square() * gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
    # Less than `NOTICEABLE` of the squares of the flips is left to float32, in which the search is.
    slack = 5 * rounding_search.NOTICEABLE * (square.unsqueeze(3) + square.unsqueeze(2))
    off = ~torch.eye(count, dtype=torch.bool)
    assert bool((alone >= -slack.diagonal(dim1=2, dim2=3)).all())
    assert bool((pairs >= -slack)[:, :, off].all())


def test_pairs_of_flips_never_end_above_single_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, all_partners in ((17, 512), (40, 512), (90, 512), (90, 30)):
        monkeypatch.setattr(rounding_search, "ALL_PARTNERS", all_partners)  # in the last case, some partners only
        weight, scale, gram, drift, *_ = problem(count, 24, count)
        pairs = rounding_error(solve(weight, scale, 7, gram, drift), weight, scale, gram, drift)
        with monkeypatch.context() as patch:
            patch.setattr(rounding_search._Problem, "paired", lambda self, codes: codes)
            singles = rounding_error(solve(weight, scale, 7, gram, drift), weight, scale, gram, drift)
        assert bool((pairs <= singles + 1e-5 * singles.abs() + 1e-7).all())
        assert bool((pairs < singles - 1e-6).any()), "some rows gain"


def test_pairs_of_flips_come_nearer_to_the_best_of_all_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that follow three factors: the least error is a small part of that of any rounding nearby."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=generator, dtype=torch.float64) @ torch.randn(3, 14, generator=generator).double()
    x = x + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight, scale, *_ = problem(0, 64, 14)
    gram, drift = (x.T @ x / len(x))[None], torch.zeros_like(weight)
    best = rounding_error(solve(weight, scale, 7, gram, drift), weight, scale, gram, drift)
    monkeypatch.setattr(rounding_search, "ENUMERATED", 1)
    pairs = rounding_error(solve(weight, scale, 7, gram, drift), weight, scale, gram, drift)
    monkeypatch.setattr(rounding_search._Problem, "paired", lambda self, codes: codes)
    singles = rounding_error(solve(weight, scale, 7, gram, drift), weight, scale, gram, drift)
    means = [float((found / best).mean()) for found in (pairs, singles)]
    assert 1.0 <= means[0] < 0.8 * means[1], "3.0 against 4.7 times the least error in ten such draws"


def test_groups_are_solved_as_if_alone() -> None:
    weight, scale, gram, drift, *_ = problem(3, 4, 9, 3)
    together = solve(weight, scale, 7, gram, drift)
    ones = [slice(index, index + 1) for index in range(3)]
    alone = [solve(weight[one], scale[one], 7, gram[one], drift[one]) for one in ones]
    assert torch.equal(together, torch.cat(alone))


def test_inputs_that_are_not_correlated_round_to_nearest() -> None:
    """White paper, 3.4: with orthonormal inputs the error is that of the weights themselves."""
    weight, scale, *_ = problem(0, 6, 40)
    found = solve(weight, scale, 7, torch.eye(40, dtype=torch.float64)[None], torch.zeros_like(weight))
    assert torch.equal(found, torch.floor(weight / scale + 0.5).clamp(-7, 7))


def test_inputs_that_never_change_are_no_obstacle() -> None:
    """Without their mean only rounding is left of them: a matrix that has no Cholesky factor."""
    weight, scale, *_ = problem(0, 6, 40)
    noise = torch.randn(1, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for gram in (
        1e-9 * (noise + noise.transpose(1, 2)),
        torch.zeros_like(noise),
        -1e-12 * torch.eye(40).double()[None],
    ):
        found = solve(weight, scale, 7, gram, torch.zeros_like(weight))
        low = below(weight, scale)
        assert bool(((found == low.clamp(-7, 7)) | (found == (low + 1).clamp(-7, 7))).all())
