"""Whole networks in C against the executor: every tensor, in every layout, for any number of images."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from qcompiler.backends.integer import Executor, c, emit
from qcompiler.errors import InputError, ToolchainError
from qcompiler.program.files import ProgramFiles
from tests.backends.integer.c.builds import SANITIZED, codes_of, differing, random_codes
from tests.backends.integer.c.plans import separate
from tests.backends.integer.test_executor import Mixed
from tests.passes.test_default_pipeline import compiled


class Inverted(nn.Module):
    """A residual of depthwise layers with a gate, 4-bit weights, upsampling, and a normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.wide, self.deep = nn.Conv2d(16, 36, 1), nn.Conv2d(36, 36, 5, padding=2, groups=36)
        self.squeeze, self.excite = nn.Conv2d(36, 9, 1), nn.Conv2d(9, 36, 1)
        self.narrow, self.up = nn.Conv2d(36, 16, 1), nn.ConvTranspose2d(16, 6, 3, 2, 1, 1)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.stem(x))
        y = nn.functional.hardswish(self.deep(nn.functional.relu6(self.wide(x))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(nn.functional.adaptive_avg_pool2d(y, 1)))))
        x = x - self.narrow(y * gate)
        x = nn.functional.interpolate(self.up(x), scale_factor=2.0, mode="bilinear")
        x = nn.functional.adaptive_avg_pool2d(x, (3, 2)).permute(0, 2, 3, 1)
        return self.head(self.norm(x)).flatten(1)  # type: ignore[no-any-return]


def program(network: str, target: str) -> ProgramFiles:
    torch.manual_seed(0)
    if network in ("mixed", "inverted"):
        model: nn.Module = Mixed() if network == "mixed" else Inverted()
        x = torch.randn(4, 3, 33, 29)
    else:
        model = getattr(torchvision.models, network)(num_classes=10)
        x = torch.randn(4, 3, 64, 64)
        with torch.no_grad():
            model.train()(x)
    graph = compiled(model, x, target, [[x]]).main
    return emit(graph, "NCHW", "OIHW") if target == "int8_ort" else emit(graph)


@pytest.fixture(scope="module")
def mixed() -> ProgramFiles:
    return program("mixed", "int8_dsp")


@pytest.mark.parametrize("target", ["int8_dsp", "int8_dsp_per_channel", "int8_ort"])
@pytest.mark.parametrize("network", ["mixed", "inverted"])
def test_no_element_differs(network: str, target: str, tmp_path: Path) -> None:
    files = program(network, target)
    assert not differing(files, random_codes(files, 3), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["int8_dsp", "int8_dsp_per_channel", "int8_ort"])
@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5"])
def test_no_element_of_a_real_network_differs(network: str, target: str, tmp_path: Path) -> None:
    files = program(network, target)
    assert not differing(files, random_codes(files, 2), tmp_path, ("-O2",))


def test_no_undefined_behaviour_and_no_access_out_of_bounds(tmp_path: Path) -> None:
    files = program("inverted", "int8_dsp_per_channel")
    assert not differing(files, random_codes(files, 1), tmp_path, ("-O1", *SANITIZED))


def test_several_images_in_the_arena_at_once(mixed: ProgramFiles, tmp_path: Path) -> None:
    """Five images, two at a time: the last run has one image too many."""
    assert not differing(mixed, random_codes(mixed, 5), tmp_path, batch=2)


def test_run_gives_what_the_executor_gives(mixed: ProgramFiles, tmp_path: Path) -> None:
    folder = c.emit(mixed, "net", separate(mixed))
    for name, content in folder.items():
        (tmp_path / name).write_bytes(content)
    codes = random_codes(mixed, 3)
    expected = Executor(mixed).run_integer(codes)
    for given in (folder, tmp_path):
        found = c.run(given, codes, cflags=("-O0",))
        assert [array.dtype for array in found] == [array.dtype for array in expected]
        assert all(map(np.array_equal, found, expected))


def test_constants_that_are_not_compiled_are_those_of_the_text(
    mixed: ProgramFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompiler.backends.integer.c.build.COMPILED_CONSTANTS", 0)
    folder, codes = c.emit(mixed, "net", separate(mixed)), random_codes(mixed, 2)
    expected = Executor(mixed).run_integer(codes)
    assert np.array_equal(c.run(folder, codes, cflags=("-O0",))[0], expected[0])
    text, count = re.subn(r"(net_head_q_bias\[5\] = \{\n *)-?\d+", r"\g<1>-99999", folder["weights.c"].decode())
    assert count == 1
    altered = {**folder, "weights.c": text.encode()}
    assert not np.array_equal(c.run(altered, codes, cflags=("-O0",))[0], expected[0])


def test_results_can_be_replaced_step_by_step(mixed: ProgramFiles, tmp_path: Path) -> None:
    """Every layer reads random codes in place of what the layer before it gave, in C as in the executor."""
    codes, given = random_codes(mixed, 2), {}
    generator = np.random.default_rng(1)
    real = codes_of(mixed, codes)
    for name, array in real.items():
        given[name] = generator.integers(array.min(), array.max(), array.shape, array.dtype, endpoint=True)
    quantized = next(item.output for item in mixed.program.instructions if item.op == "quantize")
    found: dict[str, np.ndarray] = {}
    stand_in = [np.zeros(codes[0].shape, np.float32)]
    Executor(mixed).run(stand_in, found.__setitem__, given.get)
    binary = c.Binary(c.emit(mixed, "net", separate(mixed)), tmp_path, cflags=("-O0",), trace=True)
    trace = binary.run([given.pop(quantized)], given)
    steps = [step["tensor"] for step in json.loads(binary.files["contract.json"])["steps"]]
    assert len(steps) > 10
    assert all(np.array_equal(trace.codes[name], found[name]) for name in steps)
    assert any(not np.array_equal(real[name], found[name]) for name in steps)


def test_real_numbers_go_through_the_helpers(mixed: ProgramFiles, tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((3, 3, 33, 29)).astype(np.float32) * 3
    seen: dict[str, np.ndarray] = {}
    expected = Executor(mixed).run([x], seen.__setitem__)
    binary = c.Binary(c.emit(mixed, "net", separate(mixed)), tmp_path, cflags=("-O0",), trace=True)
    trace = binary.run([x], real=True)
    assert trace.outputs[0].dtype == np.float32
    assert np.array_equal(trace.outputs[0], expected[0])
    assert all(np.array_equal(array, seen[name]) for name, array in trace.codes.items())


def test_bad_codes_are_refused(mixed: ProgramFiles, tmp_path: Path) -> None:
    binary = c.Binary(c.emit(mixed, "net", separate(mixed)), tmp_path, cflags=("-O0",))
    codes = random_codes(mixed, 1)[0]
    for wrong, message in [
        ([codes, codes], "2 inputs were given"),
        ([codes[:, :, :-1]], r"int8\[1, 3, 32, 29\]"),
        ([codes.astype(np.int16)], r"int16\[1, 3, 33, 29\]"),
    ]:
        with pytest.raises(InputError, match=message):
            binary.run(wrong)


def test_without_a_compiler_the_reason_is_said(
    mixed: ProgramFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = c.emit(mixed, "net", separate(mixed))
    with pytest.raises(ToolchainError, match="there is no C compiler 'no-such-cc'"):
        c.run(folder, random_codes(mixed, 1), cc="no-such-cc")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ToolchainError, match=r"there is no C compiler\. Install gcc or clang"):
        c.run(folder, random_codes(mixed, 1))


def test_the_message_of_the_compiler_comes_through(mixed: ProgramFiles) -> None:
    folder = {**c.emit(mixed, "net", separate(mixed)), "kernels.c": b"this is no C\n"}
    with pytest.raises(ToolchainError, match=r"failed:\n.*kernels\.c:1"):
        c.run(folder, random_codes(mixed, 1))
