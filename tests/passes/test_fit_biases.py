"""Weight scales grow until biases fit: per channel where they may, and no further than it takes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.ir.types import Stage
from qcompiler.ops import biases
from qcompiler.passes import PassContext
from qcompiler.passes.fit_biases import SCALE_ENLARGED, SCALES_ENLARGED, FitBiases
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.requant import RequantMode, RequantSpec
from qcompiler.targets import Target, load_target
from tests.support.declared import check_declared
from tests.support.golden import leaf, module, refusals, run

BIASES = [0.5, 3.0e4, -7.0e4]


def layer(spec: str, scales: list[float], weights: torch.Tensor, zero_point: int = -128) -> Module:
    """A linear layer of input scale 1/256 and the biases above."""
    size = () if len(scales) == 1 else (len(scales),)
    return module(
        "quantized",
        leaf("s", "f32"),
        leaf("z", "i32", kind="state"),
        leaf("w", "f32", *weights.shape),
        leaf("ws", "f32", *size),
        leaf("wz", "i32", *size, kind="state"),
        leaf("b", "f32", len(weights)),
        f'%q = fake_quantize(%x, %s, %z) {{spec = spec"s8"}} : f32[N, {weights.shape[1]}]',
        f'%wq = fake_quantize(%w, %ws, %wz) {{spec = spec"{spec}"}} : f32[{weights.shape[0]}, {weights.shape[1]}]',
        f"%bs = scale_product(%s, %ws) : f32{list(size)}",
        f'%bq = fake_quantize_bias(%b, %bs) {{rounding = "rne"}} : f32[{len(weights)}]',
        f"%y = linear(%q, %wq, %bq) : f32[N, {len(weights)}]",
        "%y",
        inputs=f"%x : f32[N, {weights.shape[1]}]",
        tensors={
            "s": torch.tensor(1 / 256),
            "z": torch.tensor(zero_point, dtype=torch.int32),
            "w": weights,
            "ws": torch.tensor(scales if size else scales[0]),
            "wz": torch.zeros(size, dtype=torch.int32),
            "b": torch.tensor(BIASES[: len(weights)]),
        },
    )


def fitted(subject: Module, target: Target) -> tuple[torch.Tensor, Record]:
    record = run(FitBiases(), subject, PassContext(target))
    return subject.tensors["ws"], record


WEIGHTS = torch.tensor([[1.0, -1.0], [2.0**-10, 2.0**-10], [2.0**-8, 0.0]])
SCALES = [1 / 128, 2.0**-17, 2.0**-15]


def steps(bias: float, scale: float) -> float:
    return abs(bias) * 256 / scale


def test_each_channel_gets_what_its_bias_needs() -> None:
    scales, record = fitted(layer("s8 symmetric narrow axis=0", SCALES, WEIGHTS), load_target("int8_dsp_per_channel"))
    assert scales[0] == SCALES[0], "the bias of the first channel, 0.5, fits"
    # 128 steps per weight code, 255 of an input; one part in a million for float32.
    for index, codes in ((1, 2 * 127), (2, 127)):
        room = 2**31 - 1 - codes * 255
        assert steps(BIASES[index], SCALES[index]) > room
        assert room * (1 - 2e-6) < steps(BIASES[index], float(scales[index])) <= room
    (event,) = record.events
    assert event.detail == "enlarged 2 of its weight scales by up to 468.8 so that its bias fits"


def test_the_function_of_the_tensors_is_the_pass() -> None:
    spec, target = "s8 symmetric narrow axis=0", load_target("int8_dsp_per_channel")
    subject = layer(spec, SCALES, WEIGHTS)
    before = dict(subject.tensors)
    found = biases.fitted(subject.main, before, target.arithmetic)
    assert torch.equal(found["ws"], fitted(layer(spec, SCALES, WEIGHTS), target)[0])
    assert before["ws"].tolist() == subject.tensors["ws"].tolist() == pytest.approx(SCALES), "nothing is written"
    assert all(found[name] is tensor for name, tensor in before.items() if name != "ws")
    again = biases.fitted(subject.main, found, target.arithmetic)
    assert again["ws"] is found["ws"]


def test_one_scale_for_all_channels_is_that_of_the_largest_need() -> None:
    scales, _ = fitted(layer("s8 symmetric narrow", [2.0**-17], WEIGHTS / 1024), load_target("int8_dsp"))
    assert scales.dim() == 0
    room = 2**31 - 1  # the largest bias belongs to weights of code 0
    assert room * (1 - 2e-6) < steps(7.0e4, float(scales)) <= room
    again, record = fitted(layer("s8 symmetric narrow", [float(scales)], WEIGHTS / 1024), load_target("int8_dsp"))
    assert again == scales and not record.events


def test_powers_of_two_stay_powers_of_two() -> None:
    target = load_target("int8_dsp").override(power_of_two=True)
    scales, _ = fitted(layer("s8 symmetric narrow axis=0 scale=pow2", SCALES, WEIGHTS), target)
    assert scales.tolist() == [SCALES[0], 2.0**-8, 2.0**-6]


def test_the_zero_point_in_a_bias_takes_room_too() -> None:
    @dataclasses.dataclass(frozen=True)
    class Folding(Target):
        @property
        def arithmetic(self) -> Arithmetic:
            wide = dataclasses.replace(super().arithmetic, accumulator_bits=40, zero_point_folding="compiler")
            return dataclasses.replace(wide, requant=RequantSpec(RequantMode.SINGLE))

    target = Folding(load_target("int8_dsp_per_channel").descriptor)
    spec = "s8 symmetric narrow axis=0"
    folded, _ = fitted(layer(spec, SCALES, WEIGHTS), target)
    assert steps(BIASES[1], float(folded[1])) <= 2**31 - 1 - 2 * 127 * 128
    centred, _ = fitted(layer(spec, SCALES, WEIGHTS, zero_point=0), target)
    assert steps(BIASES[1], float(centred[1])) <= 2**31 - 1
    assert centred[1] < folded[1]


def test_products_that_fill_the_accumulator_are_left_to_lowering() -> None:
    subject = layer("s8 symmetric narrow", [1 / 127], torch.ones(1, 66400))
    scales, record = fitted(subject, load_target("int8_dsp"))
    assert scales == torch.tensor(1 / 127)
    assert refusals(record) == ["its products use the whole accumulator, so no bias fits"]


@pytest.mark.parametrize("effort", ["fast", "best"])
def test_a_dead_channel_compiles_in_a_network(effort: str) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(first, nn.Sigmoid(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        first.weight[1] *= 1e-9
        first.get_parameter("bias")[1] = 2.0
    x = torch.randn(8, 3, 6, 6)
    compiled = qcompiler.compile(model, "int8_dsp_per_channel", calibration_data=[x], effort=effort)  # type: ignore[arg-type]  # one of them
    assert compiled.verification is not None and compiled.verification.passed
    expected = model(x).detach()
    found = compiled.run(x)
    assert isinstance(found, torch.Tensor)
    assert float((found - expected).norm() / expected.norm()) < 0.05
    codes = {event["code"] for record in compiled.artifact.passes for event in record["events"]}
    assert codes & {SCALE_ENLARGED.code, SCALES_ENLARGED.code}


def test_what_it_needs_and_establishes() -> None:
    check_declared(
        FitBiases(), {Stage.QUANTIZED}, requires={"weight-ranges", "activation-ranges"}, establishes={"biases-fit"}
    )
