"""The expected noise of groups against measured noise, and factors that lower it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.passes.base import Pass
from qcompiler.session.pipeline import default_pipeline

TARGETS = ["int8_dsp", "int8_dsp_per_channel"]


class Chain(nn.Module):
    """Convolution with batch norm, depthwise convolution, convolution.

    Args:
        cap: Whether activations end at 6.
    """

    def __init__(self, *, cap: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, momentum=1.0)
        self.depthwise, self.last = nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 8, 1)
        self.act = nn.ReLU6() if cap else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 16, 16] to [N, 8, 12, 12]."""
        y = self.act(self.depthwise(self.act(self.norm(self.first(x)))))
        result: Tensor = self.last(y)
        return result

    @torch.no_grad()
    def with_statistics(self) -> Chain:
        """Itself in eval mode, after its batch norm has seen data."""
        self.train()(torch.randn(64, 3, 16, 16))
        return self.eval()


@torch.no_grad()
def small_gamma(value: float) -> Chain:
    """One channel whose batch norm gives almost a constant: its weight is tiny, its values are not."""
    model = Chain()
    model.norm.weight[3], model.norm.bias[3] = value, 0.5
    return model


@torch.no_grad()
def small_weights() -> Chain:
    """One channel of tiny weights and a large bias before the batch norm, as of a channel that has died."""
    model = Chain()
    model.first.weight[5] *= 1e-9
    model.norm.bias[5] = 5.0
    return model


@torch.no_grad()
def uneven(*, cap: bool = False) -> Chain:
    """Channels of ranges over three decades, which a scale per tensor cannot hold."""
    model = Chain(cap=cap)
    factors = torch.logspace(-1.5, 1.5, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    model.norm.weight.mul_(factors)
    model.depthwise.weight.div_(factors.reshape(-1, 1, 1, 1))
    return model


def decibels(model: Chain, target: str, passes: Sequence[Pass] | None = None, **options: object) -> float:
    """Signal-to-noise ratio of the integer program on other data than it was calibrated with."""
    generator = torch.Generator().manual_seed(1)
    calibration, unseen = (torch.randn(64, 3, 16, 16, generator=generator) for _ in range(2))
    model = model.with_statistics()
    compiled = qcompiler.compile(
        model,
        target,
        calibration_data=[calibration],
        verify="off",
        passes=passes,
        **options,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        wanted, found = model(unseen).double(), compiled.run(unseen)
    assert isinstance(found, Tensor)
    return 10 * math.log10(float(wanted.square().sum() / (wanted - found).square().sum()))


def without_equalization(target: str) -> list[Pass]:
    """The default pipeline without it."""
    per_channel = qcompiler.load_target(target).per_channel
    return [item for item in default_pipeline(per_channel=per_channel) if item.name != "cross-layer-equalization"]


MODELS: dict[str, Callable[[], Chain]] = {
    **{f"gamma {value:g}": lambda value=value: small_gamma(value) for value in (1e-6, 1e-4, 1e-3, 1e-2)},  # type: ignore[misc]
    "tiny weights": small_weights,
    "plain": Chain,
    "plain, capped": lambda: Chain(cap=True),
    "uneven": uneven,
    "uneven, capped": lambda: uneven(cap=True),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_equalization_costs_nothing(name: str, target: str) -> None:
    plain = decibels(MODELS[name](), target, without_equalization(target))
    assert decibels(MODELS[name](), target) >= plain - 0.5


def test_equalization_saves_what_one_scale_cannot_hold() -> None:
    plain = decibels(uneven(), "int8_dsp", without_equalization("int8_dsp"))
    assert decibels(uneven(), "int8_dsp") > plain + 10.0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["gamma 0.0001", "uneven"])
def test_without_data_equalization_costs_nothing_either(name: str, target: str) -> None:
    def measured(passes: Sequence[Pass] | None) -> float:
        model = MODELS[name]().with_statistics()
        x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        compiled = qcompiler.compile(model, target, example_inputs=x[:2], verify="off", passes=passes)
        with torch.no_grad():
            wanted, found = model(x).double(), compiled.run(x)
        assert isinstance(found, Tensor)
        return 10 * math.log10(float(wanted.square().sum() / (wanted - found).square().sum()))

    assert measured(None) >= measured(without_equalization(target)) - 0.5


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["plain", "uneven"])
def test_expected_noise_is_the_measured_noise(name: str, target: str) -> None:
    """The record of the pass says what the layers and activations of its groups cost: most of all that there is."""
    model = MODELS[name]().with_statistics()
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    compiled = qcompiler.compile(model, target, calibration_data=[x], verify="off")
    record = next(item for item in compiled.records if str(item.pass_name) == "cross-layer-equalization")
    expected = record.metrics["expected_db_after"]
    assert isinstance(expected, float)
    assert abs(expected - decibels(MODELS[name](), target)) < 3.0


def test_two_compiles_find_the_same_factors() -> None:
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = [
        qcompiler.compile(uneven().with_statistics(), calibration_data=[x], verify="off").quantized.tensors
        for _ in range(2)
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
