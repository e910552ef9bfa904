"""Expected noise of widths, corrected by measurements of the groups that cause most of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from qcompiler.analysis.assignment import Widths
from qcompiler.analysis.measured_noise import Entry, corrected, measured_alone
from qcompiler.analysis.parts import groups_of
from qcompiler.ir.interpret import interpret
from qcompiler.session.options import Options
from qcompiler.session.session import Session
from qcompiler.session.source import load_model
from qcompiler.targets import load_target
from tests.analysis.illnesses import batches, trained

NOISE = ({4: 1.0, 8: 0.01}, {4: 1.0, 8: 0.01}, {4: 0.001, 8: 1e-5})
KINDS = ["weight"] * 3


def narrowest(noise: Sequence[object]) -> list[Widths]:
    return [(4,) * len(noise)]


class Measured:
    """Noise of each group alone that is four times the expected one, but for the first group with ten times."""

    def __init__(self) -> None:
        self.calls: list[list[Entry]] = []

    def __call__(self, entries: Sequence[Entry]) -> list[float]:
        self.calls.append(list(entries))
        return [NOISE[group][width] * (4.0 if group else 10.0) for group, width in entries]


def test_groups_that_cause_much_noise_are_measured_and_the_others_scaled() -> None:
    measured = Measured()
    found = corrected(NOISE, KINDS, narrowest, measured, limit=10)
    assert measured.calls == [[(0, 4), (1, 4)]]  # the third one causes 0.05 % of the noise
    assert found[0] == {4: 10.0, 8: 0.01}
    assert found[1] == {4: 4.0, 8: 0.01}
    assert found[2] == {4: pytest.approx(0.007), 8: 1e-5}  # the median of 4 and 10; nothing is known about 8 bits


def test_kinds_are_scaled_apart() -> None:
    found = corrected(NOISE, ["weight", "weight", "activation"], narrowest, Measured(), limit=10)
    assert found[2] == NOISE[2]


def test_the_limit_takes_the_largest_shares_first() -> None:
    measured = Measured()
    noise = (NOISE[2], {4: 0.5, 8: 0.0}, {4: 2.0, 8: 0.0})
    corrected(noise, KINDS, narrowest, measured, limit=1)
    assert measured.calls == [[(2, 4)]]


def test_other_assignments_lead_to_other_measurements() -> None:
    """A group that turns out to be noisy gets more bits, so that another one has to be measured."""
    measured = Measured()

    def best(noise: Sequence[dict[int, float]]) -> list[Widths]:
        worst = max(range(3), key=lambda group: noise[group][4])
        return [tuple(8 if group == worst else 4 for group in range(3))]

    corrected(NOISE, ["weight", "activation", "weight"], best, measured, limit=10)  # type: ignore[arg-type]
    assert measured.calls == [[(1, 4)], [(0, 4)]]


def test_a_group_that_loses_nothing_on_the_samples_keeps_an_expected_noise() -> None:
    found = corrected(NOISE, KINDS, narrowest, lambda entries: [0.0] * len(entries), limit=10)
    assert found == NOISE


def test_measured_noise_is_that_of_the_outputs_with_one_group_quantized() -> None:
    data = batches()
    options = Options(calibration_data=data)
    target = load_target("int8_dsp")
    session = Session(load_model(trained()), target, options, options.deployment_passes(target))
    graph = session.quantized.module.main
    groups = groups_of(graph)
    names = [[node.name for node in group.quantizers] for group in groups]
    images = data[0][:8]
    with torch.no_grad():
        wanted = trained()(images)
    weight = next(index for index, group in enumerate(groups) if group.is_weight)
    entry = (weight, 8)
    (found,) = measured_alone([entry], names, {entry: session}, [images], [wanted])
    # By hand: the module with this one weight rounded to its grid.
    quantizer = groups[weight].quantizers[0]
    scale = session.quantized.module.tensors[quantizer.inputs[1].producer.text("ref")]  # type: ignore[union-attr]
    name = quantizer.inputs[0].producer.text("ref")  # type: ignore[union-attr]
    rounded = session.quantized.module.tensors[name]
    rounded = (rounded / _like(scale, rounded)).round().clamp(-128, 127) * _like(scale, rounded)
    canonical = session.canonical.module
    with torch.no_grad():
        (changed,), _ = interpret(canonical.main, [images], {**canonical.tensors, name: rounded})
    noise = float((wanted - changed).double().square().sum() / wanted.double().square().sum())
    assert found == pytest.approx(noise, rel=1e-3)


def _like(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1)) if scale.dim() else scale
