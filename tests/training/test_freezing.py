"""Codes that are frozen stay, whatever the weight and the scale do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import qcompiler
from qcompiler.training.freezing import Freezing, Tracking, freeze
from qcompiler.training.oscillations import Oscillations
from qcompiler.training.regularizers import Dampening, Weighted
from qcompiler.training.schedules import Constant, Cosine
from tests.training.networks import INPUTS, LABELS, small

FAST = Tracking(momentum=0.2)


def prepare(**options: Any) -> qcompiler.QATModule:
    target = qcompiler.load_target("int8_dsp").override(weight_bits=3, per_channel=True)
    return qcompiler.prepare_qat(small(), target, calibration_data=[INPUTS], batch_norm="keep", **options)


def learn(module: qcompiler.QATModule, steps: int, lr: float) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = module(INPUTS)
        assert isinstance(logits, Tensor)
        (functional.cross_entropy(logits, LABELS) + module.regularization()).backward()
        optimizer.step()
        module.step()


def frozen_state(module: qcompiler.QATModule, layer: str = "point.0") -> Oscillations:
    state = module.oscillations()[layer]
    state.frequency.fill_(1.0)
    state.average.copy_(state.previous + 0.4)
    freeze(state, 0.5)
    return state


def test_a_frozen_code_is_an_integer_that_no_scale_moves() -> None:
    module = prepare(freezing=Freezing(Constant(0.5), FAST))
    state = frozen_state(module)
    codes = state.previous.clone()
    assert bool(state.frozen.all())
    assert torch.equal(state.frozen_codes, codes), "the rounded average"
    weight = module.weights["point.0"]
    quantizer = module.quantizer("point.0")
    for factor in (0.5, 3.0):
        with torch.no_grad():
            quantizer.scale.mul_(factor)
            module.get_parameter("point.0.weight").add_(0.3)
        assert torch.equal(module.latent(weight).codes, codes)
        assert torch.equal(module.latent(weight).scale.detach().flatten(), quantizer.scale.detach())
    before = codes.clone()
    learn(module, 5, lr=0.05)
    assert torch.equal(module.latent(weight).codes, before)
    module.eval()
    shipped = qcompiler.compile(module)
    found = module(INPUTS)
    assert isinstance(found, Tensor)
    assert torch.equal(found, shipped.run(INPUTS))  # type: ignore[arg-type]


def test_a_frozen_weight_goes_on_receiving_gradients_without_effect_and_its_scale_learns() -> None:
    module = prepare(freezing=Freezing(Constant(0.5), FAST))
    frozen_state(module)
    loss = functional.cross_entropy(module(INPUTS), LABELS)
    loss.backward()
    scale = module.quantizer("point.0").scale
    assert scale.grad is not None and bool((scale.grad != 0).any())
    changed = module.get_parameter("point.0.weight")
    with torch.no_grad():
        changed.add_(1.0)
        again = functional.cross_entropy(module(INPUTS), LABELS)
    assert again.item() == pytest.approx(loss.item())


def test_nothing_is_frozen_before_the_schedule_begins_and_frozen_codes_never_thaw() -> None:
    module = prepare(freezing=Freezing(Cosine(0.3, 0.01, begin=0.5, before=0.0), FAST), total_steps=16)
    shares = []
    for _ in range(16):
        for state in module.oscillations().values():
            state.direction.fill_(1)  # half of what changes has an opposite direction
        learn(module, 1, lr=0.3)
        shares.append(sum(int(state.frozen.sum()) for state in module.oscillations().values()))
    assert shares[:8] == [0] * 8
    assert shares[8:] == sorted(shares[8:])
    assert shares[-1] > 0


def test_penalties_leave_frozen_weights_out() -> None:
    module = prepare(freezing=Freezing(Constant(0.5), FAST), regularizers=[Weighted(Dampening("sum"), 1.0)])
    layers = list(module.oscillations())
    before = float(module.regularization().detach())
    for layer in layers:
        frozen_state(module, layer)
    others = [module.latent(item) for layer, item in module.weights.items() if layer not in layers]
    expected = sum(float(Dampening("sum")(item).detach()) for item in others)
    assert float(module.regularization().detach()) == pytest.approx(expected)
    assert expected < before


def test_tracking_alone_never_changes_what_is_computed() -> None:
    module, plain = prepare(tracking=FAST), prepare()
    for state in module.oscillations().values():
        state.frozen.fill_(True)  # as if a checkpoint of a run with freezing were looked at
    for item in (module, plain):
        learn(item, 3, lr=0.05)
    assert torch.equal(module(INPUTS), plain(INPUTS))
