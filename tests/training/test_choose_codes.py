"""Codes of oscillating weights that are chosen after training."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.errors import CalibrationError, InputError
from qcompiler.training.choose_codes import (
    BinaryOptimization,
    choose,
    optimize_codes,
    sample_codes,
    two_codes,
)
from qcompiler.training.freezing import Tracking
from tests.training.networks import INPUTS, LABELS, small

LAYER = "point.0"
ODDS = (0.0, 0.25, 0.75, 1.0)


def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = module(batch[0])
    assert isinstance(logits, Tensor)
    return functional.cross_entropy(logits, batch[1])


def oscillating_module(target: str = "lsq_paper", **options: Any) -> qcompiler.QATModule:
    """As if four weights of `LAYER` had oscillated: between codes k - 1 and k, and on k for a share of the time."""
    hardware = qcompiler.load_target(target).override(weight_bits=3, activation_bits=4)
    if target != "lsq_paper":
        hardware = hardware.override(per_channel=True)
    module = qcompiler.prepare_qat(
        small(), hardware, calibration_data=[INPUTS], tracking=Tracking(largest_bits=3), **options
    )
    state = module.oscillations()[LAYER]
    state.previous.fill_(1.0)
    for place, odds in enumerate(ODDS):
        state.frequency[place, 0] = 0.1
        state.direction[place, 0] = 1
        state.average[place, 0] = odds  # 0 is the lower code
    state.direction[4] = -1
    state.frequency[4, 0] = 0.1
    state.average[4, 0] = 1.5
    return module


def codes(module: qcompiler.QATModule, layer: str = LAYER) -> Tensor:
    weight = module.weights[layer]
    return module.latent(weight).codes.flatten(1)


def test_two_codes_are_the_last_one_and_where_it_came_from() -> None:
    found = two_codes(oscillating_module())
    assert list(found) == [LAYER]
    item = found[LAYER]
    assert item.mask.flatten(1)[:, 0].tolist() == [True] * 5 + [False] * 3
    assert not item.mask.flatten(1)[:, 1:].any()
    assert item.lower.tolist() == [0, 0, 0, 0, 1]  # the fifth one fell from 2 to 1
    assert item.share.tolist() == [*ODDS, 0.5]


@pytest.mark.parametrize(
    ("target", "style"), [("lsq_paper", "keep"), ("int8_dsp", "fold"), ("int8_dsp", "keep"), ("int8_dsp", "double")]
)
def test_chosen_codes_are_what_the_quantizer_gives_and_others_stay(target: str, style: Any) -> None:
    module = oscillating_module(target, batch_norm=style)
    before = codes(module)
    found = two_codes(module)
    for up in ([True] * 5, [False] * 5, [True, False, True, False, True]):
        moved = choose(module, {LAYER: (found[LAYER], torch.tensor(up))})
        now = codes(module)
        assert now[:5, 0].tolist() == [low + rises for low, rises in zip([0, 0, 0, 0, 1], up, strict=True)]
        assert torch.equal(now[:, 1:], before[:, 1:])
        assert torch.equal(now[5:], before[5:])
        assert choose(module, {LAYER: (found[LAYER], torch.tensor(up))}) == 0
        assert 0 <= moved <= 5


def test_samples_go_up_with_the_share_of_the_time() -> None:
    module = oscillating_module()
    count = 200
    ups = torch.zeros(5)
    for seed in range(count):
        sample_codes(module, seed=seed)
        ups += codes(module)[:5, 0] - torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    share = (ups / count).tolist()
    assert (share[0], share[3]) == (0.0, 1.0)
    # Four standard deviations.
    for found, expected in zip(share, [*ODDS, 0.5], strict=True):
        assert abs(found - expected) <= 4 * (expected * (1 - expected) / count) ** 0.5
    sample_codes(module, seed=3)
    first = codes(module)
    sample_codes(module, seed=4)
    sample_codes(module, seed=3)
    assert torch.equal(codes(module), first)


def test_ranges_that_follow_the_weights_are_refused() -> None:
    module = oscillating_module(method="recomputed")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    latent = module.get_parameter("point.0.weight")
    place = int(latent.detach().abs().flatten(1)[:, 0].argmax())
    state = module.oscillations()[LAYER]
    state.frequency.zero_()
    state.frequency[place, 0] = 0.1
    state.previous[place, 0] = 3.0
    state.direction[place, 0] = 1
    with torch.no_grad():
        latent[place, 0] = latent.abs().max() * 2  # the weight that its range follows
    kept = latent.detach().clone()
    with pytest.raises(InputError, match="follows its values"):
        choose(module, {LAYER: (two_codes(module)[LAYER], torch.tensor([False]))})
    assert torch.equal(latent.detach(), kept)
    assert before.keys() == module.state_dict().keys()


def test_optimization_finds_the_best_of_all_choices_and_leaves_the_rest_alone() -> None:
    module = oscillating_module()
    found = two_codes(module)[LAYER]
    batch = (INPUTS, LABELS)

    def loss_with(up: tuple[bool, ...]) -> float:
        choose(module, {LAYER: (found, torch.tensor(up))})
        for item in module.modules():
            item.training = type(item).__name__ == "BatchNorm"
        with torch.no_grad():
            return float(loss_of(module, batch))

    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    losses = {up: loss_with(up) for up in itertools.product((False, True), repeat=5)}
    module.load_state_dict(start)
    module.train()
    how = BinaryOptimization(steps=150, lr=0.1, strength=0.01)
    moved = optimize_codes(module, [batch], loss_of, how)
    chosen = tuple(bool(code) for code in codes(module)[:5, 0] - torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))
    ranked = sorted(losses, key=losses.__getitem__)
    assert ranked.index(chosen) < 3, "among the best three of 32"
    assert moved <= 5
    assert module.training and module.exact is False
    for name, tensor in module.state_dict().items():
        if name != "point.0.weight":
            assert torch.equal(tensor, start[name]), name
    assert all(parameter.grad is None for parameter in module.parameters())


def test_optimization_needs_data_and_something_to_optimize() -> None:
    module = oscillating_module()
    with pytest.raises(CalibrationError, match="no batch"):
        optimize_codes(module, [], loss_of)
    for state in module.oscillations().values():
        state.frequency.zero_()
    assert optimize_codes(module, [], loss_of) == 0
    assert sample_codes(module, seed=0) == 0


def test_penalty_is_annealed() -> None:
    how = BinaryOptimization(steps=100, strength=2.0)
    h = torch.tensor([0.0, 0.25, 1.0])
    assert how.penalty(h, 19) is None
    first, last = how.penalty(h, 20), how.penalty(h, 100)
    assert first is not None and last is not None
    assert float(first) == pytest.approx(2.0 * (1 - 0.5**20))
    assert float(last) == pytest.approx(2.0 * (1 - 0.5**2))
    with pytest.raises(InputError, match="steps"):
        BinaryOptimization(steps=0)
    with pytest.raises(InputError, match="begin"):
        BinaryOptimization(begin=1.0)
