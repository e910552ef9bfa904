"""The estimate, by hand arithmetic; and what it says where a descriptor does not have the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler import cli
from qcompiler.program.roofline import Estimate, estimate

HEAD = """
schema = "qcompiler.hw/1"
extends = "int8_dsp"
[target]
name = "chip"
[layout]
activations = "NCHW"
weights = "OIHW"
"""
SPEEDS = (
    '[compute]\nclock_hz = 1e6\nmacs_per_cycle = { "8x8" = 16 }\nelementwise_per_cycle = 4\npicojoules_per_mac = 0.5\n'
)
SRAM = '[[memory]]\nname = "sram"\nbytes = 8192\nholds = ["activations"]\nbytes_per_cycle = 8.0\npicojoules_per_byte = 1.0\n'
FLASH = (
    '[[memory]]\nname = "flash"\nbytes = 65536\nholds = ["constants"]\nbytes_per_cycle = 0.5\nlatency_cycles = 10\n'
    "burst_bytes = 32\npicojoules_per_byte = 20.0\n"
)


def chip(folder: Path, text: str) -> qcompiler.Target:
    path = folder / "chip.toml"
    path.write_text(HEAD + text, encoding="utf-8")
    return qcompiler.load_target(path)


class Net(nn.Module):
    """3 x 8 x 8 pixels, 3 x 3 products, a table, a reshape, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.silu(self.conv(x)).flatten(1))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> qcompiler.Compiled:
    target = chip(tmp_path_factory.mktemp("chip"), SPEEDS + SRAM + FLASH)
    torch.manual_seed(0)
    return qcompiler.compile(
        Net().eval(), target, calibration_data=[torch.randn(4, 3, 8, 8)], effort="fast", verify="off"
    )


def test_by_hand(compiled: qcompiler.Compiled) -> None:
    found = compiled.artifact.estimate
    by_op = {layer.op: layer for layer in found.layers}
    assert list(by_op) == ["int_conv2d", "lookup", "reshape", "int_linear"]
    conv = by_op["int_conv2d"]
    # 8 filters of 3 x 3 x 3 at 8 x 8 pixels; 3 * 64 codes in, 8 * 64 out; weight, bias, multiplier and exponent.
    assert conv.macs == 8 * 27 * 64 == 13_824
    assert conv.bytes == {"activations": 192 + 512, "constants": 216 + 8 * 4 + 4 + 1}
    assert conv.compute_cycles == 13_824 // 16 == 864
    # sram: 704 / 8. flash: bursts of 32 bytes: 224 + 32 + 32 + 32 = 320 at half a byte, and four times 10 cycles.
    assert conv.memory_cycles == {"sram": 88, "flash": 640 + 40}
    assert (conv.cycles, conv.bound) == (864, "compute")
    assert conv.intensity == 13_824 / (704 + 253)
    table = by_op["lookup"]
    assert (table.macs, table.elements, table.bytes) == (0, 512, {"activations": 1024, "constants": 256})
    assert (table.compute_cycles, table.memory_cycles) == (128, {"sram": 128, "flash": 512 + 10})
    assert (table.cycles, table.bound, table.intensity) == (522, "flash", None)
    view = by_op["reshape"]
    assert (view.cycles, view.bytes, view.bound) == (0, {"activations": 0, "constants": 0}, "")
    linear = by_op["int_linear"]
    # 5,120 weights in 160 bursts, 40 bytes of biases in two, one each of multiplier and exponent.
    assert linear.macs == 5_120
    assert linear.memory_cycles == {"sram": 66, "flash": 2 * (5_120 + 64 + 32 + 32) + 40}, "522 / 8 = 65.25"
    assert (linear.cycles, linear.bound) == (10_536, "flash")
    assert found.cycles == 864 + 522 + 0 + 10_536 == 11_922
    assert found.seconds == 11_922 / 1e6
    assert found.bound_by == {"compute": 864, "flash": 11_058}
    moved = {"activations": 704 + 1024 + 522, "constants": 253 + 256 + 5_120 + 40 + 5}
    assert found.bytes == moved
    assert found.picojoules == pytest.approx(0.5 * 18_944 + moved["activations"] + 20 * moved["constants"])
    assert found.reasons == ()
    assert str(found).startswith("estimate for one image: 11922 cycles = 11.92 ms (7 % compute, 93 % flash)")


def test_a_fixed_batch_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    program = torch.export.export(model, (torch.randn(4, 3, 2, 2),))
    compiled = qcompiler.compile(program, "int8_dsp", calibration_data=[torch.randn(4, 3, 2, 2)])
    found = estimate(compiled.artifact.program, compiled.target)
    assert found.images == 4 and found.macs == 4 * 48
    assert str(found).startswith("estimate for a batch of 4 images: 192 multiply-accumulates")


def test_where_it_is_shown(compiled: qcompiler.Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = compiled.save(tmp_path / "out")
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Nothing was measured" in report and "11922 cycles" in report and "10536" in report
    assert cli.main(["estimate", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "estimate for one image: 11922 cycles" in text and "10536" in text
    assert cli.main(["estimate", str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["is_estimate"] is True
    assert (data["cycles"], data["layers"][0]["bound"]) == (11_922, "compute")
    assert data == json.loads(json.dumps(qcompiler.load(folder).estimate.to_dict()))
    command = ["compile", "examples.digits.model:load_digits_net", "--verify", "off"]
    assert cli.main(command) == 0
    assert "no cycles" in capsys.readouterr().out


def again(compiled: qcompiler.Compiled, folder: Path, text: str) -> Estimate:
    """The same program on another core."""
    return estimate(compiled.artifact.program, chip(folder, text))


MISSING = {
    "nothing": ("", {"the descriptor of chip has no figures: neither [compute] nor [[memory]]"}),
    "no memory": (SPEEDS, {"no memory cycles of activations", "no memory cycles of constants"}),
    "no bandwidth": (SPEEDS + SRAM + FLASH.replace("bytes_per_cycle = 0.5\n", ""), {"memory flash has no bytes_per_cycle"}),
    "too small": (SPEEDS + SRAM.replace("8192", "512") + FLASH, {"activations: they need 704 bytes, and no memory"}),
    "no rate of these widths": (SPEEDS.replace("8x8", "16x8") + SRAM + FLASH, {"8x8-bit layers"}),
    "no rate of other elements": (
        SPEEDS.replace("elementwise_per_cycle = 4\n", "") + SRAM + FLASH,
        {"elementwise_per_cycle is missing"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISSING)
def test_what_is_not_said_is_not_estimated(case: str, compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    text, reasons = MISSING[case]
    found = again(compiled, tmp_path, text)
    assert (found.cycles, found.seconds) == (None, None)
    assert found.macs == 18_944 and found.bytes["activations"] == 2_250, "the program alone gives the same figures"
    for reason in reasons:
        assert any(reason in item for item in found.reasons), found.reasons
    partly = all(layer.compute_cycles is not None for layer in found.layers if layer.macs)
    assert ("no cycles but 1184 to compute 2 layers" in str(found)) == partly
    assert "no cycles" in str(found)
    assert len(found.reasons) <= 2 * len(reasons)


def test_cycles_without_a_clock(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    found = again(compiled, tmp_path, SPEEDS.replace("clock_hz = 1e6\n", "") + SRAM + FLASH)
    assert (found.cycles, found.seconds) == (11_922, None)
    assert found.reasons == ("no time: compute.clock_hz is missing",)


def test_channels_at_a_time_leave_multipliers_idle(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    """Ten outputs of the linear layer count as sixteen, eight filters stay eight."""
    found = again(compiled, tmp_path, "channel_multiple = 8\n" + SPEEDS + SRAM + FLASH)
    assert [layer.compute_cycles for layer in found.layers] == [864, 128, 0, 5_120 * 16 // 10 // 16]


def test_one_memory_for_all_adds_up(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    memory = '[[memory]]\nname = "dram"\nbytes = 65536\nbytes_per_cycle = 1.0\n'
    found = again(
        compiled, tmp_path, SPEEDS + '[[memory]]\nname = "tiny"\nbytes = 16\nbytes_per_cycle = 64.0\n' + memory
    )
    assert [layer.memory_cycles for layer in found.layers] == [
        {"dram": 957}, {"dram": 1_280}, {}, {"dram": 522 + 5_165}
    ]  # fmt: skip
    assert found.bound_by == {"dram": found.cycles}


def test_a_view_in_one_layout_moves_in_another(compiled: qcompiler.Compiled) -> None:
    """Flattening follows N, C, H, W: with channels last every code changes its place."""
    target = qcompiler.load_target("int8_dsp")
    assert target.layout.activations == "NHWC"
    other = qcompiler.compile(Net().eval(), target, calibration_data=[torch.randn(4, 3, 8, 8)], verify="off")
    flatten = next(layer for layer in other.artifact.estimate.layers if layer.op == "reshape")
    assert flatten.bytes == {"activations": 1024, "constants": 0}


def test_islands_and_packed_weights(tmp_path: Path) -> None:
    target = chip(tmp_path, SPEEDS + SRAM + FLASH).override(fallback="float")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Threshold(0.1, 0.0), nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(2, 3, 4, 4)
    found = qcompiler.compile(model, target, calibration_data=[x], verify="off").artifact.estimate
    assert found.cycles is None
    assert any("float islands" in reason for reason in found.reasons)
    assert all(layer.cycles is not None for layer in found.layers if layer.op.startswith("int_"))
    packed = qcompiler.load_target("w4a8_npu")
    model = nn.Sequential(nn.Conv2d(3, 5, 3)).eval()
    layer, *_ = qcompiler.compile(model, packed, calibration_data=[x], verify="off").artifact.estimate.layers
    # 135 codes in 68 bytes; five biases and multipliers of four bytes, and exponents.
    assert layer.bytes["constants"] == 68 + 20 + 20 + 5


def test_a_model_without_a_plan_has_no_estimate(compiled: qcompiler.Compiled) -> None:
    files = compiled.artifact.program
    without = type(files)(files.program.model_copy(update={"memory": None}), files.constants)
    found = estimate(without, compiled.target)
    assert (found.layers, found.cycles) == ((), None)
    assert "no memory plan" in found.reasons[0]
