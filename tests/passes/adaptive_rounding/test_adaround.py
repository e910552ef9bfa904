"""Adaptive rounding: the search against all roundings there are, what it reads of each layer, and what it wins."""

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
from qcompiler.ir.graph import Module
from qcompiler.ir.rewrite import Record
from qcompiler.ir.types import Stage
from qcompiler.ops.layers import leaf_of
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.adaptive_rounding import adaround, moments
from qcompiler.passes.adaptive_rounding.adaround import AdaRound
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.common.patches import patches, positions, rows_of, weight_of
from qcompiler.quant import rounding_search
from qcompiler.quant.rounding_search import Moments, round_to_data, rounding_error
from qcompiler.targets import load_target
from tests.support.declared import check_declared
from tests.support.equalized import FRONT, QUANTIZED, Net, depthwise, measured
from tests.support.running import outputs_of


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
    """What is left of them without their mean is rounding: a matrix that has no Cholesky factor."""
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


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (3, 7)),
    "linear over sequences": (lambda: nn.Linear(7, 5), (3, 4, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 4, 9, 8)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=2, padding=1), (2, 2, 4, 5, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 4, 5)),
    "transposed in groups": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(1, 3), dilation=(2, 1), groups=2), (2, 4, 4, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_rows_are_what_the_layer_gives(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().eval(), torch.randn(shape)
    graph = frontends.capture(nn.Sequential(layer).eval(), x).module.main
    node = next(node for node in graph.nodes if len(node.inputs) == 3)
    weight = leaf_tensor(leaf_of(node.inputs[1]))
    rows = rows_of(node, weight)
    assert torch.equal(weight_of(node, rows), weight)
    read = patches(node, x, torch.arange(positions(node, x)))
    found = (read.double() @ rows.double().transpose(1, 2)).transpose(0, 1).flatten(1)
    found = found + leaf_tensor(node.inputs[2]).double()
    with torch.no_grad():
        expected = layer(x)
    expected = expected.movedim(-1 if node.op == "linear" else 1, -1).reshape(found.shape)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-5)


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
    assert part < 0.5 * whole + 0.5, "more than half of what is gained at once"


def test_what_cannot_be_rounded_is_left_alone_with_its_reason() -> None:
    net = Net(lambda m, x: m.b(torch.relu(m.b(m.a(x)))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 3, padding=1))
    module, records = quantized(net, torch.randn(32, 3, 6, 6), *BY_ERROR, AdaRound())
    reasons = {event.node: event.detail for event in records[-1].events if event.kind == "refusal"}
    assert "another layer uses the same weight" in reasons["b"]
    assert torch.equal(module.tensors["b.weight"], net.b.weight)


@pytest.mark.parametrize(("function", "bias"), [(nn.ReLU(), True), (nn.ReLU6(), False), (nn.SiLU(), True)], ids=str)
def test_the_activation_behind_a_layer_is_looked_at(function: nn.Module, bias: bool) -> None:
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
