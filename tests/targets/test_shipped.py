"""Every shipped target: loads, says what it is not sure of, and compiles networks into equal forms."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from examples.digits.data import load_data
from examples.digits.model import load_digits_net
from qcompiler.backends.integer import Executor
from qcompiler.ir.registry import known_ops
from qcompiler.ops.kinds import integer_kinds
from qcompiler.targets import load_target
from tests.support.running import outputs_of
from tests.targets.golden_network import GOLDEN, INPUT, Network, golden_text

FOLDER = Path(str(qcompiler.__file__)).parent / "targets"
SIMULATED = ("lsq_paper",)
"""No hardware: nothing is compiled for them."""
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem not in SIMULATED)
OWN = ("int8_dsp", "int8_dsp_per_channel", "pow2_mcu", "w4a8_npu", "w4a8_npu_blocks")
"""Targets without a vendor: no fact about them can be unknown."""

TABLE = {
    # activations, weights, requantization, bits of the accumulator and of the bias, of convolutions
    "cmsis_nn": ("s8", "s8 symmetric narrow axis=0", "double", 32, 32),
    "ethos_u55": ("s8", "s8 symmetric narrow axis=0", "double", 32, 32),
    "hexagon_htp": ("u8", "s8 symmetric narrow axis=0", "single", 32, 32),
    "hexagon_htp_a16w4": ("u16", "s4 symmetric narrow axis=0", "tosa16", 64, 32),
    "hexagon_htp_a16w8": ("u16", "s8 symmetric narrow axis=0", "tosa16", 64, 32),
    "int16x8": ("s16 symmetric", "s8 symmetric narrow axis=0", "s64_16", 64, 64),
    "int8_dsp": ("s8", "s8 symmetric narrow", "single", 32, 32),
    "int8_dsp_per_channel": ("s8", "s8 symmetric narrow axis=0", "single", 32, 32),
    "nvdla": ("s8 symmetric", "s8 symmetric narrow axis=0", "nvdla_cvt", 32, 32),
    "openvino": ("u8", "s8 symmetric narrow axis=0", "f32_rne", 32, 32),
    "ort_cpu": ("s8", "s8 symmetric narrow", "f32_rne", 32, 32),
    "pow2_mcu": ("s8 symmetric scale=pow2", "s8 symmetric narrow scale=pow2", "pow2_shift", 32, 32),
    "tensorrt": ("s8 symmetric", "s8 symmetric narrow axis=0", "f32_rne", 32, 32),
    "tflite_int8": ("s8", "s8 symmetric narrow axis=0", "double", 32, 32),
    "tosa_int": ("s8", "s8 symmetric narrow axis=0", "single", 32, 32),
    "w4a8_npu": ("s8", "s4 symmetric narrow axis=0", "single", 32, 32),
    "w4a8_npu_blocks": ("s8", "s4 symmetric narrow axis=0 block=32", "single", 32, 32),
    "xnnpack": ("s8", "s8 symmetric narrow axis=0", "f32_rne", 32, 32),
}


def test_all_are_in_the_table() -> None:
    assert list(TABLE) == SHIPPED
    assert sorted([*SHIPPED, *SIMULATED]) == qcompiler.targets()
    assert all((load_target(name).simulation is None) == (name in SHIPPED) for name in qcompiler.targets())


@pytest.mark.parametrize("name", SHIPPED)
def test_what_it_says(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    spec = target.activation_spec()
    conv = target.arithmetic.at("conv2d", spec.bits)
    found = (
        str(spec).removesuffix(" rounding=rhaz"),
        str(target.weight_spec("conv2d", 0)).removesuffix(" rounding=rhaz"),
        str(conv.requant.mode),
        conv.accumulator_bits,
        conv.bias_bits,
    )
    assert found == TABLE[name]
    identity = target.descriptor.target
    assert identity.description and identity.sources
    assert bool(identity.unknown) == (name not in ("ort_cpu", *OWN))
    assert [text for title, text in target.facts() if title == "unknown"] == list(identity.unknown)
    target.check_ops(integer_kinds(), known_ops())


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_unknown_names_a_key(name: str) -> None:
    """The key that a reader looks for: a table, or a key of it, before the colon."""
    descriptor = load_target(name).descriptor
    for item in descriptor.target.unknown:
        key = item.partition(":")[0]
        node: object = descriptor
        for part in key.split("."):
            node = node[part] if isinstance(node, dict) else getattr(node, part)
        assert re.fullmatch(r"[a-z_0-9.]+: .+", item)


@pytest.mark.parametrize("name", SHIPPED)
def test_golden_text(name: str) -> None:
    expected = (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
    assert golden_text(load_target(name)) == expected, (
        "python -m tests.targets.golden_network writes the file: inspect it first"
    )


def test_the_golden_network_is_exact_in_float32() -> None:
    """So that its ranges, and with them the texts, are those of every machine."""
    with torch.no_grad():
        single, double = Network().eval()(INPUT), Network().double().eval()(INPUT.double())
    assert torch.equal(single[0].double(), double[0])
    assert float(single[1].max()) == 0.5
    assert len(list(GOLDEN.glob("*.txt"))) == len(SHIPPED)


class Mixed(nn.Module):
    """All kinds of operators that targets differ in, on values of both signs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.t, self.c = nn.ConvTranspose2d(12, 8, 2, 2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.a(x - 0.5) * 3.0)
        z = torch.cat([y, functional.silu(self.b(y)) - y], 1)
        z = functional.interpolate(functional.max_pool2d(self.t(functional.pad(z, (1, 0))), 2), scale_factor=2.0)
        z = functional.avg_pool2d(z * torch.sigmoid(z), 3, 2, 1) + torch.tanh(functional.adaptive_avg_pool2d(z, (8, 9)))
        return self.c(z.mean((2, 3)))  # type: ignore[no-any-return]


def mixed() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Mixed().eval(), torch.rand(4, 3, 8, 8)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_mixed_network(name: str) -> None:
    model, x = mixed()
    target = load_target(name)
    compiled = qcompiler.compile(model, target, calibration_data=[x], effort="fast")
    report = compiled.verification
    assert report is not None and report.passed
    for form in ("integer graph", "integer program"):
        assert (report.form(form).status, report.form(form).differing) == ("equal", 0)
        assert report.form(form).tensors > 20
    mode = TABLE[name][2]
    used = {
        item.attributes["mode"] for item in compiled.artifact.program.program.instructions if item.op == "int_conv2d"
    }
    assert used == {mode}
    with torch.no_grad():
        expected = model(x)
    found = compiled.run(x)
    assert isinstance(found, Tensor)
    # 0.02 with 8 bits, 0.1 with 4-bit weights and with powers of two were seen.
    assert float((found - expected).norm() / expected.norm()) < (
        0.3 if name in ("w4a8_npu", "w4a8_npu_blocks", "hexagon_htp_a16w4", "pow2_mcu") else 0.06
    )


DATA = load_data()


QUICK = ("int16x8", "nvdla", "pow2_mcu", "tosa_int")
"""One for each way of requantization that the tests of the example do not take."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in SHIPPED])
def test_the_digits(name: str) -> None:
    target = load_target(name)
    images = DATA.calibration_images[:256]
    effort: Literal["best", "default"] = "best" if target.weight_spec("conv2d", 0).bits < 8 else "default"
    compiled = qcompiler.compile(load_digits_net(), target, calibration_data=[images], effort=effort, verify="off")
    x = DATA.test_images[:200]
    graph = outputs_of(compiled.integer.main, [x])
    program = Executor(compiled.artifact.program).run([x.numpy()])
    assert torch.equal(graph[0], torch.from_numpy(program[0]))
    accuracy = float((graph[0].argmax(1) == DATA.test_labels[:200]).double().mean())
    assert accuracy > (0.9 if name == "pow2_mcu" else 0.95)
