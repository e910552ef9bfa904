"""Closed forms against samples, and ranges without data against those with it."""

from __future__ import annotations

import math

import pytest
import torch

from qcompiler.calibration import gaussian
from qcompiler.calibration.data_free import Stop, describe
from qcompiler.calibration.distribution import Distribution
from qcompiler.calibration.gaussian import Gaussian
from qcompiler.errors import InputError
from qcompiler.ir.graph import Graph
from qcompiler.ir.text import parse_module

MEANS = torch.tensor([0.0, 1.5, -2.0, 6.5])
STDS = torch.tensor([1.0, 0.5, 2.0, 1.0])
SAMPLES = 400_000
ERROR = 6 / SAMPLES**0.5
"""Six standard errors of a mean of unit variance."""


def sampled(channels: Gaussian, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(SAMPLES, channels.mean.numel(), generator=generator, dtype=torch.float64)
    return channels.mean + channels.std * noise


def agrees(found: Gaussian, samples: torch.Tensor) -> None:
    scale = float(samples.std(0).max())
    torch.testing.assert_close(found.mean, samples.mean(0), rtol=0, atol=ERROR * scale)
    torch.testing.assert_close(found.std, samples.std(0), rtol=0, atol=2 * ERROR * scale)


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, 2.0)])
def test_clipped_moments(low: float, high: float) -> None:
    x = Gaussian(MEANS, STDS)
    agrees(gaussian.clamp(x, low, high), sampled(x).clamp(low, high))


def test_moments_clipped_to_limits_per_channel() -> None:
    x = Gaussian(MEANS, STDS)
    low = torch.linspace(-2.0, 0.5, MEANS.numel(), dtype=torch.float64)
    high = low + torch.linspace(0.0, 3.0, MEANS.numel(), dtype=torch.float64)
    high[-1] = torch.inf
    agrees(gaussian.clamp(x, low, high), sampled(x).clamp(low, high))
    with pytest.raises(InputError, match=r"shapes \[3\] and \[\] for"):
        gaussian.clamp(x, torch.zeros(3), 1.0)
    with pytest.raises(InputError, match="low <= high"):
        gaussian.clamp(x, high, low)


def test_sums_and_layers() -> None:
    x, y = Gaussian(MEANS, STDS), Gaussian(MEANS.flip(0), STDS)
    agrees(gaussian.add(x, y), sampled(x) + sampled(y, 1))
    agrees(gaussian.scale(x, -2.0), sampled(x) * -2.0)
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    agrees(gaussian.linear(x, weight, torch.ones(3)), sampled(x) @ weight.double().T + 1.0)
    grouped = gaussian.linear(x, weight[:2, :2], None, groups=2)
    parts = sampled(x)
    agrees(grouped, torch.stack([parts[:, :2] @ weight[0, :2].double(), parts[:, 2:] @ weight[1, :2].double()], 1))


def test_a_constant_channel_stays_one() -> None:
    found = gaussian.clamp(Gaussian(torch.tensor([2.0, -3.0]), torch.zeros(2)), 0.0, math.inf)
    assert found.mean.tolist() == [2.0, 0.0]
    assert found.std.tolist() == [0.0, 0.0]


def test_a_range_covers_six_deviations() -> None:
    low, high = Gaussian(MEANS, STDS).range(6.0)
    assert (float(low), float(high)) == (-14.0, 12.5)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0], [1.0, 2.0], "one mean and one standard deviation per channel"),
        ([float("nan")], [1.0], "finite"),
        ([0.0], [-1.0], "at least 0"),
    ],
)
def test_what_is_no_distribution_is_refused(mean: list[float], std: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gaussian(torch.tensor(mean), torch.tensor(std))


def ranges(graph: Graph) -> dict[str, tuple[float, float]]:
    known = describe(graph, (-3.0, 3.0), 6.0)
    return {value.name: item.range for value, item in known.items() if isinstance(item, Distribution)}


def test_ranges_follow_from_statistics_through_activations_and_sums() -> None:
    text = """graph @main stage=canonical {
  input %x : f32[2, 2, 4, 4]
  %w = parameter() {ref = "w", dtype = "f32", shape = (2, 2, 1, 1)} : f32[2, 2, 1, 1]
  %c = conv2d(%x, %w) {statistics = "s"} : f32[2, 2, 4, 4]
  %r = clamp(%c) {min = 0.0, max = 6.0} : f32[2, 2, 4, 4]
  %a = add(%c, %x) : f32[2, 2, 4, 4]
  %k = concat(%r, %x) {axis = 1} : f32[2, 4, 4, 4]
  %t = tanh(%k) : f32[2, 4, 4, 4]
  return %t
}
"""
    tensors = {"w": torch.ones(2, 2, 1, 1), "s": torch.tensor([[0.0, 1.0], [1.0, 0.5]])}
    graph = parse_module(text, tensors).main
    found = ranges(graph)
    assert found["x"] == (-3.0, 3.0)
    assert found["c"] == (-6.0, 6.0)  # one channel N(0, 1), one N(1, 0.25)
    assert found["r"] == (0.0, 6.0)
    assert found["k"][0] == -3.0
    assert found["a"] == pytest.approx((-6 * 2**0.5, 6 * 2**0.5), abs=1e-12)
    assert found["t"] == pytest.approx((math.tanh(-3.0), math.tanh(6.0)), abs=1e-12)


def test_a_cap_counts_only_as_far_as_its_channel_reaches() -> None:
    text = """graph @main stage=canonical {
  input %x : f32[2, 2, 4, 4]
  %w = parameter() {ref = "w", dtype = "f32", shape = (2, 2, 1, 1)} : f32[2, 2, 1, 1]
  %low = constant() {ref = "low", dtype = "f32", shape = (2,)} : f32[2]
  %high = constant() {ref = "high", dtype = "f32", shape = (2,)} : f32[2]
  %c = conv2d(%x, %w) {statistics = "s"} : f32[2, 2, 4, 4]
  %k = clamp_channels(%c, %low, %high) {axis = 1} : f32[2, 2, 4, 4]
  %p = max_pool2d(%k) {kernel = (2, 2), stride = (2, 2)} : f32[2, 2, 2, 2]
  %r = relu(%c) : f32[2, 2, 4, 4]
  %rk = clamp_channels(%r, %low, %high) {axis = 1} : f32[2, 2, 4, 4]
  %t = clamp_channels(%x, %low, %high) {axis = 1} : f32[2, 2, 4, 4]
  return %p, %rk, %t
}
"""
    tensors = {
        "w": torch.ones(2, 2, 1, 1),
        "s": torch.tensor([[0.0, 1.0], [1.0, 10.0]]),
        "low": torch.tensor([-1.0, -2.0]),
        "high": torch.tensor([50.0, 3.0]),
    }
    graph = parse_module(text, tensors).main
    found = ranges(graph)
    assert found["c"] == (-59.0, 61.0)
    assert found["k"] == (-2.0, 6.0), "the channel with the cap of 50 reaches 6"
    assert found["p"] == found["k"]
    assert found["rk"] == (0.0, 6.0), "the range ends at 6 after a relu, too"
    assert found["t"] == (-2.0, 3.0)
    (k,) = [item for value, item in describe(graph, (-3.0, 3.0)).items() if value.name == "k"]
    assert not isinstance(k, Stop)
    expected = gaussian.clamp(Gaussian(*tensors["s"]), tensors["low"], tensors["high"]).mean
    assert torch.equal(k.channels(1, 2).mean, expected)
    assert abs(float(expected[1])) < 3
