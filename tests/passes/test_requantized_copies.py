"""Copies of operands for a concat: where they are placed, what they gain, and that every form has them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.ir.events import Record
from qcompiler.passes import PassContext
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.partition import Partition
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.session.pipeline import default_pipeline, print_pipeline
from qcompiler.targets import load_target
from qcompiler.validation.metrics import sqnr_db
from tests.support.golden import leaf, module, refusals, run, shown

GEOMETRY = "{stride = (1, 1), padding = (0, 0, 0, 0), dilation = (1, 1)} "


def conv(name: str, source: str = "%x", inputs: int = 4) -> list[str]:
    weight = leaf(f"{name}.weight", "f32", 4, inputs, 1, 1)
    return [weight, f"%{name} = conv2d({source}, %{name}.weight) {GEOMETRY}: f32[N, 4, 6, 6]"]


FACTOR = leaf("k", "f32", 1, 1, 1, 1)
FORKED = [
    *conv("y"),
    *conv("big"),
    FACTOR,
    "%wide = mul(%big, %k) : f32[N, 4, 6, 6]",
    "%c = concat(%wide, %y) {axis = 1} : f32[N, 8, 6, 6]",
    *conv("z", "%y"),
    "%z, %c",
]


def unified(*text: str, copies: str = "noise", factor: float = 100.0, data: bool = True) -> tuple[Any, Record]:
    subject = module("canonical", *text, tensors={"k": torch.full((1, 1, 1, 1), factor)})
    generator = torch.Generator().manual_seed(0)
    batches = [[torch.randn(4, 4, 6, 6, generator=generator)] for _ in range(3)]
    context = PassContext(load_target("int8_dsp"), calibration_data=batches if data else None)
    run(Partition(), subject, context)
    run(InsertQuantizers(), subject, context)
    return subject, run(UnifyScales(copies), subject, context)  # type: ignore[arg-type]


@pytest.mark.parametrize("copies", ["noise", "ranges"])
@pytest.mark.parametrize("data", [True, False])
def test_a_narrow_operand_with_other_readers_keeps_its_grid(copies: str, *, data: bool) -> None:
    subject, record = unified(*FORKED, copies=copies, data=data)
    text = [line for line in shown(subject) if "fake_quantize" in line or "concat" in line or "conv2d(%y" in line]
    assert text == [
        "%x.q = fake_quantize(%x, %x.scale, %x.zero_point)",
        "%y.weight.q = fake_quantize(%y.weight, %y.weight.scale, %y.weight.zero_point)",
        "%y.q = fake_quantize(%y, %y.scale, %y.zero_point)",
        "%big.weight.q = fake_quantize(%big.weight, %big.weight.scale, %big.weight.zero_point)",
        "%big.q = fake_quantize(%big, %big.scale, %big.zero_point)",
        "%k.q = fake_quantize(%k, %k.scale, %k.zero_point)",
        "%wide.q = fake_quantize(%wide, %wide.scale, %wide.zero_point)",
        "%c.input1.q = fake_quantize(%y.q, %wide.scale, %wide.zero_point)",
        "%c = concat(%wide.q, %c.input1.q)",
        "%z.weight.q = fake_quantize(%z.weight, %z.weight.scale, %z.weight.zero_point)",
        "%z = conv2d(%y.q, %z.weight.q)",
        "%z.q = fake_quantize(%z, %z.scale, %z.zero_point)",
    ]
    (event,) = (event for event in record.events if event.code == "copy-lowers-noise")
    assert event.node == "c.input1.q"
    assert event.data["operand"] == "y.q"
    assert 50 < event.data["shared"] / event.data["own"] < 200  # type: ignore[operator]
    assert record.metrics["copies"] == 1
    assert float(record.metrics["expected_db_after"]) > float(record.metrics["expected_db_before"]) + 3


def test_fixed_places_no_copy() -> None:
    subject, _ = unified(*FORKED, copies="fixed")
    assert "%c = concat(%wide.q, %y.q)" in shown(subject)


def test_like_ranges_share_and_no_sensitivity_is_measured() -> None:
    subject, record = unified(*FORKED, factor=1.0)
    assert "%c = concat(%wide.q, %y.q)" in shown(subject)
    assert not refusals(record)
    assert "expected_db_before" not in record.metrics


def test_a_gain_that_is_not_worth_a_copy_is_recorded() -> None:
    subject, record = unified(*FORKED, factor=1.3)
    assert "%c = concat(%wide.q, %y.q)" in shown(subject)
    assert refusals(record) in (
        ["a copy would lower the expected noise of the whole model by less than 5 %"],
        ["all copies together would lower the expected noise by less than 0.5 dB"],
    )


def test_without_other_readers_nothing_is_observed() -> None:
    text = [line for line in FORKED if not line.startswith("%z")]
    subject, record = unified(*[line for line in text if "z.weight" not in line], "%c")
    assert "%c = concat(%wide.q, %y.q)" in shown(subject)
    assert "copies" not in record.metrics


def test_an_average_before_the_concat_does_not_tie_its_input() -> None:
    text = [
        *conv("y"),
        "%p = avg_pool2d(%y) {kernel = (3, 3), stride = (1, 1), padding = (1, 1)} : f32[N, 4, 6, 6]",
        *conv("big"),
        FACTOR,
        "%wide = mul(%big, %k) : f32[N, 4, 6, 6]",
        "%c = concat(%p, %wide) {axis = 1} : f32[N, 8, 6, 6]",
        *conv("z", "%y"),
        "%z, %c",
    ]
    subject, _ = unified(*text)
    assert "%c = concat(%c.input0.q, %wide.q)" in shown(subject)


class Forked(nn.Module):
    """Two readers of `y`: a layer, and a concat with a wide operand."""

    def __init__(self, factor: float = 100.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(3, 8, 3, padding=1)
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional.relu(self.conv(x))
        return self.conv2(y), torch.cat([self.conv3(x) * self.factor, y], 1)


def images(seed: int, count: int = 8) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


DATA = [images(seed) for seed in range(4)]


def ratios(compiled: qcompiler.Compiled, model: nn.Module) -> list[float]:
    x = images(99, 16)
    with torch.no_grad():
        return [sqnr_db(a, b) for a, b in zip(model(x), compiled.run(x), strict=True)]  # type: ignore[call-overload]


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_the_other_reader_keeps_its_accuracy(effort: Any) -> None:
    """3.8 dB with one grid for both, 38 dB without the concat."""
    model = Forked().eval()
    found = qcompiler.compile(model, "int8_dsp", calibration_data=DATA, effort=effort)
    first, second = ratios(found, model)
    assert first > 33.0
    assert second > 30.0
    assert "reads a copy of relu.q" in found.explain("concat")


@pytest.mark.parametrize("target", qcompiler.targets())
def test_every_target_has_the_copy_and_gives_it_again(target: str, tmp_path: Path) -> None:
    hardware = load_target(target)
    if hardware.simulation is not None:
        pytest.skip("a simulation target quantizes the operands of layers only")
    model = Forked(100.0 if hardware.activation_bits < 16 else 1e5).eval()
    found = qcompiler.compile(model, hardware, calibration_data=DATA, effort="fast")
    names = [item.output for item in found.artifact.program.program.instructions]
    assert "concat.input1.q" in names
    if hardware.weight_spec("conv2d", 0).block is not None:
        return  # encodings have no factors of blocks
    path = tmp_path / "encodings.json"
    given = json.loads(found.encodings())
    given["param_encodings"] = [item for item in given["param_encodings"] if "bias" not in item["name"]]
    path.write_text(json.dumps(given))  # without biases, which may have 64 bits
    again = qcompiler.compile(model, hardware, example_inputs=DATA[0], encodings=path)
    assert [item.output for item in again.artifact.program.program.instructions] == names
    assert again.encodings() == found.encodings()
    x = images(98)
    for one, other in zip(found.run(x), again.run(x), strict=True):  # type: ignore[call-overload]
        assert torch.equal(one, other)


def test_a_copy_learns_with_its_join() -> None:
    from qcompiler import prepare_qat

    trained = prepare_qat(Forked().eval(), "int8_dsp", example_inputs=DATA[0], calibration_data=DATA)
    trained.train()
    sum(output.square().mean() for output in trained(DATA[0])).backward()
    found = qcompiler.compile(trained.eval())
    assert "concat.input1.q" in [item.output for item in found.artifact.program.program.instructions]


class Detector(nn.Module):
    """Boxes up to some hundreds and scores up to 1 in one output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.box, self.score = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = functional.relu(self.first(x))
        joined = torch.cat([functional.relu(self.box(f)) * 640, torch.sigmoid(self.score(f))], 1)
        return joined.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_parts_keep_their_grids_where_the_target_may_join_them_in_float(effort: Any, tmp_path: Path) -> None:
    target = load_target("int8_dsp").override(fallback="float")
    model = Detector().eval()
    x = images(99)
    found = qcompiler.compile(model, target, calibration_data=DATA, effort=effort)
    with torch.no_grad():
        wanted = model(x)
    result: Any = found.run(x)
    assert sqnr_db(wanted[..., 4:], result[..., 4:]) > 35
    assert sqnr_db(wanted[..., :4], result[..., :4]) > 30
    assert "its parts keep their own grids, because a common one leaves sigmoid.q" in found.explain("concat")
    path = tmp_path / "encodings.json"
    path.write_text(found.encodings())
    again: Any = qcompiler.compile(model, target, example_inputs=DATA[0], encodings=path)
    assert again.encodings() == found.encodings()
    assert torch.equal(again.run(x), result)
    codes: Any = qcompiler.compile(model, target, calibration_data=DATA, effort=effort, io="int8")
    assert "C" not in [name for name, form in codes.artifact.forms.items() if form.reason], "no island for codes"


def test_parts_of_a_concat_that_a_layer_reads_share_a_grid() -> None:
    text = [*FORKED[:-1], *conv("w", "%c", 8), "%z, %w"]
    subject = module("canonical", *text, tensors={"k": torch.full((1, 1, 1, 1), 100.0)})
    context = PassContext(
        load_target("int8_dsp").override(fallback="float"), calibration_data=[[torch.randn(4, 4, 6, 6)]]
    )
    for item in (Partition(), InsertQuantizers(), UnifyScales("noise")):
        run(item, subject, context)
    assert any(line.startswith("%c = concat") for line in shown(subject))


class Mixed(nn.Module):
    """Random forks, additions and concats of parts whose scales differ."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        pick = torch.randint(100, (16,), generator=self.generator).tolist()
        self.scales = [10.0 ** ((item % 7) / 2 - 1) for item in pick]
        self.pairs = [(a % 3, b % 4) for a, b in itertools.pairwise(pick)]
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(4))
        self.last = nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = [functional.relu(self.layers[0](x))]
        for index, layer in enumerate(list(self.layers)[1:]):
            values.append(layer(values[self.pairs[index][0] % len(values)]) * self.scales[index])
        first = torch.cat([values[self.pairs[4][1]], values[self.pairs[5][1]] * self.scales[5], values[0]], 1)
        return self.last(first), values[1] + values[2]


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_never_lose_by_copies(seed: int) -> None:
    model = Mixed(seed).eval()
    text = print_pipeline(default_pipeline("fast"))
    noises = []
    for copies in ("fixed", "noise"):
        pipeline = text.replace("copies=ranges", f"copies={copies}")
        found = qcompiler.compile(model, "int8_dsp", calibration_data=DATA, pipeline=pipeline, verify="off")
        noises.append(sum(10.0 ** (-ratio / 10.0) for ratio in ratios(found, model)))
    assert noises[1] < noises[0] * 1.2
