"""Penalties against plain loops, their gradients, and that any of them goes with any estimator."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import qcompiler
from qcompiler import errors
from qcompiler.training.freezing import Freezing
from qcompiler.training.methods import METHODS
from qcompiler.training.regularizers import (
    BinRegularization,
    Dampening,
    L2ToGrid,
    Latent,
    Reduction,
    Regularizer,
    Weighted,
)
from qcompiler.training.schedules import Constant, Cosine
from tests.training.networks import INPUTS, LABELS, small

SHAPE = (4, 3, 2, 2)
QMIN, QMAX = -4, 3
PER_CHANNEL = [0.1, 0.2, 0.4, 0.05]
ALL: tuple[Regularizer, ...] = (Dampening(), L2ToGrid(), BinRegularization())


def latent(seed: int = 0, *, per_channel: bool = False, frozen: bool = False) -> Latent:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(SHAPE, generator=generator) * 0.3).requires_grad_()
    scale = torch.tensor(PER_CHANNEL).reshape(-1, 1, 1, 1) if per_channel else torch.tensor(0.1)
    codes = (weight.detach() / scale).round().clamp(QMIN, QMAX)
    mask = torch.rand(SHAPE, generator=generator) < 0.3 if frozen else None
    return Latent(weight, scale.requires_grad_(), codes, QMIN, QMAX, 0, 3, mask)


def penalty(regularizer: Regularizer, item: Latent) -> tuple[float, Tensor]:
    """Value and gradient of the weight; the scale must have none."""
    value = regularizer(item)
    assert value.shape == ()
    (gradient,) = torch.autograd.grad(value, [item.weight], retain_graph=True)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(value, [item.scale])
    return float(value.detach()), gradient


def places(item: Latent) -> list[tuple[tuple[int, ...], float, float, float]]:
    """Index, weight, scale and code of every weight that is not frozen, as plain numbers."""
    scale = item.scale.detach().expand(SHAPE)
    return [
        (index, item.weight[index].item(), scale[index].item(), item.codes[index].item())
        for index in itertools.product(*map(range, SHAPE))
        if item.frozen is None or not item.frozen[index]
    ]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 48), ("kernel_mean", 12)])
def test_squares_are_those_of_a_loop(
    per_channel: bool, frozen: bool, clips: bool, reduction: Reduction, divisor: int
) -> None:
    item = latent(per_channel=per_channel, frozen=frozen)
    total, expected = 0.0, torch.zeros(SHAPE)
    for index, w, s, k in places(item):
        inside = min(max(w, s * QMIN), s * QMAX) if clips else w
        total += (s * k - inside) ** 2 / divisor
        expected[index] = 2 * (inside - s * k) / divisor if inside == pytest.approx(w, abs=1e-9) else 0.0
    value, gradient = penalty(Dampening(reduction) if clips else L2ToGrid(reduction), item)
    assert value == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_bins_are_those_of_a_loop(per_channel: bool, frozen: bool) -> None:
    item = latent(per_channel=per_channel, frozen=frozen)
    bins: dict[tuple[int, float], list[float]] = {}
    for index, w, s, k in places(item):
        channel = index[0] if per_channel else 0
        bins.setdefault((channel, k), []).append(min(max(w, s * QMIN), s * QMAX) - s * k)
    total = 0.0
    for values in bins.values():
        total += statistics.fmean(values) ** 2
        if len(values) > 2:
            total += statistics.pvariance(values)
    value, gradient = penalty(BinRegularization(), item)
    assert value == pytest.approx(total, rel=1e-4)
    for index, w, s, k in places(item):
        values = bins[index[0] if per_channel else 0, k]
        away = min(max(w, s * QMIN), s * QMAX) - s * k
        if not s * QMIN < w < s * QMAX:
            assert gradient[index] == 0
        elif len(values) > 2:
            assert gradient[index].item() == pytest.approx(2 * away / len(values), abs=1e-6)
    if item.frozen is not None:
        assert not gradient[item.frozen].any()


@given(seed=st.integers(0, 1000), per_channel=st.booleans())
def test_a_penalty_is_never_negative_and_0_on_the_grid(seed: int, per_channel: bool) -> None:
    item = latent(seed, per_channel=per_channel)
    on_grid = Latent(item.codes * item.scale.detach(), item.scale, item.codes, QMIN, QMAX, 0, 3)
    for regularizer in ALL:
        assert float(regularizer(item).detach()) > 0.0
        assert float(regularizer(on_grid)) == pytest.approx(0.0, abs=1e-12)


@given(seed=st.integers(0, 1000))
def test_every_pull_goes_towards_the_grid(seed: int) -> None:
    item = latent(seed)
    towards = item.weight.detach() - item.codes * item.scale.detach()
    for regularizer in ALL:
        _, gradient = penalty(regularizer, item)
        small_bins = isinstance(regularizer, BinRegularization)  # two weights of a bin are pulled by their mean alone
        if not small_bins:
            assert bool((gradient * towards >= 0).all())


def test_strengths_follow_their_schedule() -> None:
    weighted = (Weighted(Dampening(), Cosine(0.0, 0.5)), Weighted(L2ToGrid(), Constant(2.0, begin=0.5)))
    module = qcompiler.prepare_qat(
        small(), "lsq_paper", calibration_data=[INPUTS], regularizers=weighted, total_steps=8
    )
    parts = [[item.regularizer(module.latent(w)) for w in module.weights.values()] for item in weighted]
    sums = [float(torch.stack(values).sum().detach()) for values in parts]
    for step in range(9):
        module.steps.fill_(step)
        progress = max(0.0, (step - 2) / 6)
        expected = 0.5 * (1 - math.cos(math.pi * progress)) / 2 * sums[0] + (2.0 * sums[1] if step >= 4 else 0.0)
        assert float(module.regularization().detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("regularizer", "method"),
    [
        pytest.param(
            regularizer,
            method,
            id=f"{type(regularizer).__name__}-{method}",
            # Every estimator with one regularizer, every regularizer with a third of them.
            marks=[] if place % len(ALL) == number else [pytest.mark.slow],
        )
        for number, regularizer in enumerate(ALL)
        for place, method in enumerate(METHODS)
    ],
)
def test_any_regularizer_goes_with_any_estimator(regularizer: Regularizer, method: str) -> None:
    options: dict[str, Any] = {"freezing": Freezing(0.5)} if isinstance(regularizer, Dampening) else {}
    target = qcompiler.load_target("lsq_paper").override(weight_bits=3, activation_bits=4)
    module = qcompiler.prepare_qat(
        small(),
        target,
        calibration_data=[INPUTS],
        method=method,
        regularizers=[Weighted(regularizer, 100.0)],
        **options,
    )
    optimizer = torch.optim.SGD(
        map(dict, module.parameter_groups(1e-3, scale_lr=0.0))
    )  # the grid stays, and weights come to it
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        extra = module.regularization()
        logits = module(INPUTS)
        assert isinstance(logits, Tensor)
        (torch.nn.functional.cross_entropy(logits, LABELS) + extra).backward()
        optimizer.step()
        module.step()
        losses.append(float(extra.detach()))
    assert losses[-1] < losses[0]


def test_an_unknown_reduction_is_refused() -> None:
    for kind in (Dampening, L2ToGrid):
        with pytest.raises(errors.InputError, match="kernel_mean"):
            kind("median")  # type: ignore[arg-type]
