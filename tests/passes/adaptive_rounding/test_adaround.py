"""Adaptive rounding: what it wins, what it reads of each layer, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompiler import frontends
from qcompiler.errors import CalibrationError, InputError, PassError
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.adaptive_rounding import adaround, moments
from qcompiler.passes.adaptive_rounding.adaround import AdaRound
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.equalized import FRONT, QUANTIZED, Net, depthwise, measured
from tests.support.running import outputs_of


def quantized(net: nn.Module, x: Tensor, *passes: Pass, **changes: object) -> tuple[Module, list[Record]]:
    module = frontends.capture(net.eval(), x).module
    context = PassContext(load_target("int8_dsp").override(**changes), [[x[:4]]], [[x[:16]], [x[16:]]])
    return module, PassManager([*FRONT, *passes]).run(module, context)


def noise(module: Module, net: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = net(x)
        return float((outputs_of(module.main, [x])[0] - expected).square().mean() / expected.square().mean())


BY_ERROR = [*QUANTIZED[:-1], CalibrateWeights(method="mse")]


@pytest.mark.parametrize("changes", [{"weight_bits": 3}, {"weight_bits": 4, "per_channel": True}])
def test_a_network_comes_nearer_to_the_float_one_on_inputs_that_were_not_seen(changes: dict[str, Any]) -> None:
    net, x = depthwise(), torch.randn(32, 3, 8, 8)
    plain, _ = quantized(net, x, *BY_ERROR, **changes)
    ours, records = quantized(net, x, *BY_ERROR, AdaRound(), **changes)
    unseen = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    assert noise(ours, net, unseen) < 0.75 * noise(plain, net, unseen)
    assert measured(records[-1], "layers") == 5
    assert measured(records[-1], "error_over_nearest") < 0.99


def test_weights_lie_on_their_grids_one_step_at_most_from_where_they_were() -> None:
    net, x = depthwise(), torch.randn(32, 3, 8, 8)
    plain, _ = quantized(net, x, *BY_ERROR, weight_bits=4)
    ours, _ = quantized(net, x, *BY_ERROR, AdaRound(), weight_bits=4)
    for index in range(5):
        scale = plain.tensors[f"c{index}.weight.scale"]
        assert torch.equal(scale, ours.tensors[f"c{index}.weight.scale"])
        steps = ours.tensors[f"c{index}.weight"] / scale
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)  # any rounding will do
        moved = (plain.tensors[f"c{index}.weight"] / scale).clamp(-7, 7) - steps
        assert float(moved.abs().max()) < 1 + 1e-4


def test_two_runs_give_the_same_bits_and_a_sample_of_positions_is_enough() -> None:
    net, x = depthwise(), torch.randn(32, 3, 8, 8)
    few = AdaRound(positions=200)
    first, second = (quantized(net, x, *BY_ERROR, few, weight_bits=3)[0] for _ in range(2))
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor.nan_to_num(), second.tensors[name].nan_to_num())
    plain, _ = quantized(net, x, *BY_ERROR, weight_bits=3)
    assert noise(first, net, x) < noise(plain, net, x)


@pytest.mark.parametrize("name", ["linear", "conv2d", "groups"])
def test_rows_that_are_too_long_for_their_moments_are_rounded_in_blocks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "linear": (lambda: nn.Linear(60, 8), (32, 60)),
        "conv2d": (lambda: nn.Conv2d(6, 8, 3), (32, 6, 7, 7)),
        "groups": (lambda: nn.Conv2d(12, 8, 3, groups=2), (32, 12, 7, 7)),
    }
    make, shape = layers[name]
    torch.manual_seed(0)
    net = Net(lambda m, x: m.a(x), a=make())
    x = torch.einsum("nc...,cd->nd...", torch.randn(shape), torch.randn(shape[1], shape[1]))
    module, records = quantized(net, x, *BY_ERROR, AdaRound(), weight_bits=3)
    monkeypatch.setattr(moments, "LARGEST", 20)
    monkeypatch.setattr(moments, "COLUMNS", 16)
    blocks, block_records = quantized(net, x, *BY_ERROR, AdaRound(), weight_bits=3)
    assert not torch.equal(module.tensors["a.weight"], blocks.tensors["a.weight"])
    whole, part = (measured(item[-1], "error_over_nearest") for item in (records, block_records))
    assert whole < 0.9
    assert part < 0.5 * whole + 0.5, "more than half of the joint gain"


def test_what_cannot_be_rounded_is_left_alone_with_its_reason() -> None:
    net = Net(lambda m, x: m.b(torch.relu(m.b(m.a(x)))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 3, padding=1))
    module, records = quantized(net, torch.randn(32, 3, 6, 6), *BY_ERROR, AdaRound())
    reasons = {event.node: event.detail for event in records[-1].events if event.kind == "refusal"}
    assert "another layer uses the same weight" in reasons["b"]
    assert torch.equal(module.tensors["b.weight"], net.b.weight)


@pytest.mark.parametrize(("function", "bias"), [(nn.ReLU(), True), (nn.ReLU6(), False), (nn.SiLU(), True)], ids=str)
def test_the_activation_after_a_layer_is_looked_at(function: nn.Module, bias: bool) -> None:
    """Most where it is closed most of the time; all on data that was not seen."""
    noises: dict[str, list[float]] = {"with": [], "without": [], "plain": []}
    for seed in range(6):
        torch.manual_seed(seed)
        mixing = torch.randn(12, 12) / 3
        layer = nn.Conv2d(12, 16, 3, bias=bias)
        if layer.bias is not None:
            layer.bias.data -= 1.0  # most are closed
        net = Net(lambda m, x: m.f(m.a(x)), a=layer, f=function)
        x, unseen = (torch.einsum("nchw,cd->ndhw", torch.randn(64, 12, 8, 8), mixing) for _ in range(2))
        for name, found in noises.items():
            with pytest.MonkeyPatch.context() as patch:
                if name == "without":
                    patch.setattr(adaround, "activation_after", lambda node: None)
                passes = BY_ERROR if name == "plain" else (*BY_ERROR, AdaRound())
                found.append(noise(quantized(net, x, *passes, weight_bits=3)[0], net, unseen))
    total = {name: sum(found) for name, found in noises.items()}
    # The ReLU: 0.972 over twelve draws, whose standard deviation is 0.033, so that one alone says nothing. Where little
    # is cut off there is little to gain, and a little of what was gained on seen data is lost again.
    assert total["with"] < (0.99 if isinstance(function, nn.ReLU) else 1.02) * total["without"]
    assert all(ours < plain for ours, plain in zip(noises["without"], noises["plain"], strict=True))


@given(seed=st.integers(0, 10**6), samples=st.integers(20, 200))
@settings(max_examples=10)
def test_moments_of_few_samples_come_nearer_to_those_of_all(seed: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(40, 40, generator=generator, dtype=torch.float64) / 40**0.5
    exact = mixing.T @ mixing
    x = torch.randn(samples, 40, generator=generator, dtype=torch.float64) @ mixing
    gram = (x.T @ x / samples)[None]
    quartic = x.square().sum(1).square().mean()[None]
    found = moments.shrunk(gram, quartic, samples)[0]
    torch.testing.assert_close(found.diagonal(), gram[0].diagonal(), rtol=1e-12, atol=0)
    assert float((found - exact).norm()) < float((gram[0] - exact).norm())


def test_a_layer_without_bias_keeps_its_means_in_mind() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.b(torch.relu(m.a(x) + 2)), a=nn.Conv2d(3, 8, 3, bias=False), b=nn.Conv2d(8, 4, 3, bias=False)
    )
    x = torch.randn(32, 3, 8, 8)
    plain, _ = quantized(net, x, *BY_ERROR, weight_bits=3)
    ours, _ = quantized(net, x, *BY_ERROR, AdaRound(), weight_bits=3)
    assert noise(ours, net, x) < 0.7 * noise(plain, net, x)


def test_options_and_missing_data_are_refused() -> None:
    with pytest.raises(InputError, match="positions=0"):
        AdaRound(positions=0)
    with pytest.raises(InputError, match="method='gramm'"):
        AdaRound(method="gramm")
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match=f"learning_rate={rate}"):
            AdaRound(learning_rate=rate)
    for weight in (-0.1, float("nan")):
        with pytest.raises(InputError, match=f"regularization={weight}"):
            AdaRound(regularization=weight)
    net, x = depthwise(), torch.randn(4, 3, 8, 8)
    module = frontends.capture(net.eval(), x).module
    target = load_target("int8_dsp")
    with pytest.raises(PassError, match="adaptive rounding needs calibration_data"):
        PassManager([*FRONT, *QUANTIZED, AdaRound()]).run(module, PassContext(target, [[x]]))
    module = frontends.capture(net.eval(), x).module
    with pytest.raises(CalibrationError, match="empty"):
        PassManager([*FRONT, *QUANTIZED, AdaRound()]).run(module, PassContext(target, [[x]], []))


def test_what_it_needs_and_establishes() -> None:
    check_declared(AdaRound(), {Stage.QUANTIZED}, requires={"weight-ranges"})
