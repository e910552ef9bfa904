"""Smoothing that the expected noise decides: what it gains, what it leaves alone, and that encodings carry it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler import frontends
from qcompiler.errors import EncodingsError, PassError
from qcompiler.ir.events import Record
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.base import Pass
from qcompiler.passes.smooth_activations import SmoothActivations
from qcompiler.session.pipeline import default_pipeline, parse_pipeline, print_pipeline, structural_passes
from qcompiler.targets import load_target
from tests.support.golden import leaf, module, refusals, run

NAME = "smooth-activations"
TARGETS = ["int8_dsp", "int8_dsp_per_channel"]


class Mixer(nn.Module):
    """Blocks of layer norm, linear, GELU, linear with a residual, and products with a constant at both ends.

    Args:
        spread: Logarithmic deviation of the layer norms' weights and of the constants.
    """

    def __init__(self, spread: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        norms = [nn.LayerNorm(24) for _ in range(3)]
        ups = [nn.Linear(24, 48) for _ in range(2)]
        self.ups, self.norms = nn.ModuleList(ups), nn.ModuleList(norms)
        self.downs = nn.ModuleList(nn.Linear(48, 24) for _ in range(2))
        self.first, self.last = nn.Linear(24, 24), nn.Linear(24, 8)
        self.scale = nn.Parameter((torch.randn(24) * spread).exp())
        with torch.no_grad():
            for norm, reader in zip(norms, (*ups, self.last), strict=True):
                gamma = (torch.randn(24) * spread).exp()
                norm.weight.copy_(gamma)
                reader.weight.div_(gamma)  # as trained networks do: a large channel does not weigh more than others

    def forward(self, x: Tensor) -> Tensor:
        """[N, 6, 24] to [N, 6, 8]."""
        x = self.first(x.sigmoid() * self.scale)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=False):
            x = x + down(functional.gelu(up(norm(x))))
        result: Tensor = self.last(self.norms[2](x))
        return result


def data(seed: int = 1) -> Tensor:
    return torch.randn(32, 6, 24, generator=torch.Generator().manual_seed(seed))


def without_smoothing(target: str) -> list[Pass]:
    per_channel = qcompiler.load_target(target).per_channel
    return [item for item in default_pipeline(per_channel=per_channel) if item.name != NAME]


def with_the_formula(target: str) -> list[Pass]:
    per_channel = qcompiler.load_target(target).per_channel
    return [SmoothActivations() if item.name == NAME else item for item in default_pipeline(per_channel=per_channel)]


def compiled(spread: float, target: str, passes: Sequence[Pass] | None = None) -> qcompiler.Compiled:
    return qcompiler.compile(Mixer(spread).eval(), target, calibration_data=[data()], passes=passes, verify="off")


def decibels(item: qcompiler.Compiled, spread: float) -> float:
    """Signal-to-noise ratio on other inputs than those of calibration."""
    with torch.no_grad():
        wanted = Mixer(spread).eval()(data(2)).double()
    return 10 * math.log10(float(wanted.square().sum() / (wanted - outputs(item)).square().sum()))


def outputs(item: qcompiler.Compiled) -> Tensor:
    """The outputs of the integer program on these inputs."""
    found = item.run(data(2))
    assert isinstance(found, Tensor)
    return found


def record(item: qcompiler.Compiled) -> Record:
    return next(record for record in item.records if str(record.pass_name) == NAME)


@pytest.mark.parametrize("target", TARGETS)
def test_channels_of_unequal_ranges_gain(target: str) -> None:
    """Without smoothing 13.8 and 15.7 dB, with the formula 32.6 and 32.7, by noise 32.3 and 32.2."""
    smoothed = compiled(1.2, target)
    measured = decibels(smoothed, 1.2)
    assert measured > decibels(compiled(1.2, target, without_smoothing(target)), 1.2) + 6.0
    assert measured > decibels(compiled(1.2, target, with_the_formula(target)), 1.2) - 1.0
    figures = record(smoothed).metrics
    assert isinstance(figures["expected_db_after"], float)
    assert isinstance(figures["expected_db_before"], float)
    assert figures["expected_db_after"] > figures["expected_db_before"] + 6.0
    assert {event.node for event in record(smoothed).events if event.kind == "rewrite"} >= {"norms.0", "norms.1"}


def test_equal_channels_stay_as_they_are() -> None:
    smoothed, plain = compiled(0.0, "int8_dsp"), compiled(0.0, "int8_dsp", without_smoothing("int8_dsp"))
    assert torch.equal(outputs(smoothed), outputs(plain))
    assert record(smoothed).metrics["groups"] == 0
    told = {event.code for event in record(smoothed).events}
    assert "channels-smoothed" not in told
    assert told & {"noise-not-lower", "noise-hardly-lower"}


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("target", TARGETS)
def test_smoothing_costs_nothing(target: str, spread: float) -> None:
    plain = decibels(compiled(spread, target, without_smoothing(target)), spread)
    assert decibels(compiled(spread, target), spread) >= plain - 0.5


def test_without_data_the_weights_of_layer_norms_give_the_ranges() -> None:
    def measured(passes: Sequence[Pass] | None) -> float:
        model = Mixer(1.2).eval()
        item = qcompiler.compile(model, "int8_dsp", example_inputs=data()[:2], verify="off", passes=passes)
        return decibels(item, 1.2)

    assert measured(None) >= measured(without_smoothing("int8_dsp")) - 0.5


def test_a_constant_that_would_lose_more_keeps_its_channels() -> None:
    """The formula makes the channels of x equal, and the 8 bits of the constant then hold three decades."""
    nodes = [
        leaf("k", "f32", 8),
        leaf("w", "f32", 2, 8),
        leaf("b", "f32", 2),
        "%m = mul(%x, %k) : f32[N, 8]",
        "%y = linear(%m, %w, %b) : f32[N, 2]",
        "%y",
    ]
    tensors = {"k": torch.ones(8), "w": torch.ones(2, 8), "b": torch.zeros(2)}
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 0, 8)

    def context() -> PassContext:
        return PassContext(load_target("int8_dsp"), calibration_data=[[x]])

    formula, noise = (module("canonical", *nodes, inputs="%x : f32[N, 8]", tensors=dict(tensors)) for _ in range(2))
    run(SmoothActivations(), formula, context())
    done = run(SmoothActivations(factors="noise"), noise, context())
    spread = formula.tensors["k"].max() / formula.tensors["k"].min()
    assert spread > 20.0
    assert torch.equal(noise.tensors["k"], tensors["k"])
    assert "other factors would not lower the expected noise" in refusals(done)


def test_layers_are_left_to_equalization() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 1)
    with torch.no_grad():
        first.weight[::3] *= 40
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    x = torch.randn(4, 3, 5, 5)
    subject = frontends.capture(net, x).module
    passes = [*structural_passes()[0], SmoothActivations(factors="noise")]
    before = dict(subject.tensors)
    done = PassManager(passes).run(subject, PassContext(load_target("int8_dsp"), [[x]], [[x]]))[-1]
    assert done.metrics["groups"] == 0
    assert all(torch.equal(tensor, subject.tensors[key]) for key, tensor in before.items())


def test_encodings_carry_the_factors(tmp_path: Path) -> None:
    found = compiled(1.2, "int8_dsp")
    path = tmp_path / "encodings.json"
    path.write_text(found.encodings())

    def again() -> qcompiler.Compiled:
        model = Mixer(1.2).eval()
        return qcompiler.compile(model, "int8_dsp", encodings=path, example_inputs=data()[:2], verify="off")

    assert torch.equal(outputs(again()), outputs(found))
    written = json.loads(path.read_text())
    factors = json.loads(written["producer"]["factors"])
    assert "norms.0" in factors
    written["producer"]["factors"] = json.dumps({**factors, "norms.0": "1,2"})
    path.write_text(json.dumps(written))
    with pytest.raises(EncodingsError, match=r"2 factors for 'norms\.0'"):
        again()
    written["producer"]["factors"] = json.dumps({**factors, "nowhere": "1,2"})
    path.write_text(json.dumps(written))
    with pytest.raises(EncodingsError, match="2 factors for 'nowhere'"):
        again()


def test_it_needs_a_target_and_is_text() -> None:
    item = SmoothActivations(factors="noise")
    assert parse_pipeline(print_pipeline([item])) == (item,)
    net = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2)).eval()
    subject = frontends.capture(net, torch.randn(2, 6)).module
    with pytest.raises(PassError, match="target"):
        PassManager([*structural_passes()[0], item]).run(subject, PassContext(calibration_data=[[torch.randn(2, 6)]]))
