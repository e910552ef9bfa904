"""A dump of a device: its C writes what the program computes, and the first wrong step is named with its rounding."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import cli
from qcompiler.backends.integer.c import find_compiler
from qcompiler.errors import InputError
from qcompiler.verification.compare_dump import compare_dump, read_dump

MAIN = """
#include <stdio.h>
#include "net.h"
#include "net_dump.h"
int main(void) {
    if (fread(net_input_0(), 1, NET_INPUT_0_ELEMENTS, stdin) == 0) return 2;
    if (net_dump_open("dump.npz")) return 3;
    net_run();
    return net_dump_close();
}
"""
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror")


class Net(nn.Module):
    """Three layers, an addition and a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        scores: Tensor = self.head((y + self.second(y)).flatten(1))
        return scores


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def compiled() -> qcompiler.Compiled:
    torch.manual_seed(0)
    return qcompiler.compile(Net().eval(), "int8_dsp", calibration_data=[images()], verify="off")


@pytest.fixture(scope="module")
def artifact(compiled: qcompiler.Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled.save(tmp_path_factory.mktemp("compare") / "out")


def codes(compiled: qcompiler.Compiled) -> dict[str, np.ndarray]:
    return {name: item.codes.copy() for name, item in compiled.layer_outputs(images()).items()}


def test_layer_outputs_are_those_of_all_forms(compiled: qcompiler.Compiled) -> None:
    found = compiled.layer_outputs(images())
    assert list(found) == ["x.q", "relu.q", "second.q", "add.q", "reshape", "head.q"]
    layer = found["second.q"]
    assert (layer.model, layer.c) == ("second", "t_second_q")
    assert layer.simulated is not None and layer.floating is not None
    tensor = compiled.artifact.program.program.tensors["second.q"]
    real = (layer.codes.astype(np.float32) - tensor.zero_point[0]) * np.float32(tensor.scale[0])
    assert np.array_equal(layer.simulated, real)
    assert np.abs(layer.floating - real).max() < 10 * tensor.scale[0]
    head = found["head.q"].simulated
    expected = compiled.simulate(images())
    assert isinstance(expected, Tensor)
    assert head is not None and np.array_equal(head, expected.numpy())
    assert found["relu.q"].floating is not None and float(found["relu.q"].floating.min()) == 0.0


def test_a_saved_file_is_a_dump(compiled: qcompiler.Compiled, artifact: Path, tmp_path: Path) -> None:
    compiled.layer_outputs(images()).save(tmp_path / "x.npz")
    assert {"x.q", "simulated/head.q", "float/add.q"} <= set(read_dump(tmp_path / "x.npz"))
    found = compare_dump(read_dump(tmp_path / "x.npz"), qcompiler.load(artifact).program)
    assert found.equal
    assert found.first is None
    assert (found.missing, found.unknown) == ((), ())
    assert "5 of 5 tensors are equal" in str(found)
    with pytest.raises(InputError, match=r"ends in \.npz"):
        compiled.layer_outputs(images()).save(tmp_path / "x.txt")


def test_the_first_wrong_step_is_named_and_inherited_differences_are_not_blamed(compiled: qcompiler.Compiled) -> None:
    dump = codes(compiled)
    wrong = dump["second.q"]
    wrong[0, 0, 0, 0] ^= 4  # the device goes on from there
    program = compiled.artifact.program
    replaced = compare_dump({"x.q": dump["x.q"], "relu.q": dump["relu.q"], "second.q": wrong}, program)
    assert replaced.first is not None
    assert (replaced.first.tensor, replaced.first.own, replaced.first.own_largest) == ("second.q", 1, 4)
    assert replaced.missing == ("add.q", "reshape", "head.q")
    relayed = _device(compiled, dump, second=wrong)
    found = compare_dump(relayed, program)
    assert found.first is not None and found.first.tensor == "second.q"
    later = {item.tensor: item for item in found.tensors}["add.q"]
    assert later.differing and not later.own
    assert "all inherited from earlier steps" in str(later)
    assert not found.first.rounding


def _device(compiled: qcompiler.Compiled, dump: dict[str, np.ndarray], second: np.ndarray) -> dict[str, np.ndarray]:
    """The codes of a device that gives these codes in the second layer, and computes the rest correctly."""
    from qcompiler.backends.integer import Executor

    found: dict[str, np.ndarray] = {}
    changed = {"second.q": second}
    executor = Executor(compiled.artifact.program)
    executor.run(
        [images().numpy()],
        lambda name, array: found.__setitem__(name, np.array(array)),
        changed.get,
    )
    return {**{name: found[name] for name in dump}, **changed}


def test_another_rounding_mode_is_recognized() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    target = qcompiler.load_target("int8_dsp")
    ours, theirs = (
        qcompiler.compile(model, chosen, calibration_data=[images()], verify="off", effort="fast")
        for chosen in (target, target.override(requantize="double"))
    )
    dump = {name: item.codes for name, item in theirs.layer_outputs(images(64)).items()}
    found = compare_dump(dump, ours.artifact.program)
    assert not found.equal
    layers = [item for item in found.tensors if item.own and item.tensor in ("relu.q", "second.q", "head.q")]
    assert layers
    assert all(item.rounding == "double" and item.own_largest == 1 for item in layers)
    assert "the rounding mode 'double' explains all" in str(found)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_the_emitted_c_writes_the_dump(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    target = qcompiler.load_target("int8_dsp").override(layout=layout)
    compiled = qcompiler.compile(Net().eval(), target, calibration_data=[images()], verify="off", effort="fast")
    out = compiled.save(tmp_path / "out")
    (out / "c" / "main.c").write_text(MAIN)
    sources = ["main.c", "model.c", "kernels.c", "weights.c", "net_dump.c"]
    elements = ("-DNET_INPUT_0_ELEMENTS=108", "-DNET_HOOK")
    subprocess.run([*find_compiler(), *STRICT, *elements, *sources, "-o", "main"], cwd=out / "c", check=True)
    expected = {name: item.codes[:1] for name, item in compiled.layer_outputs(images()).items()}
    given = expected["x.q"].transpose(0, 2, 3, 1) if layout == "NHWC" else expected["x.q"]
    subprocess.run([str(out / "c" / "main")], cwd=tmp_path, input=given.tobytes(), check=True)
    dump = read_dump(tmp_path / "dump.npz")
    assert list(dump) == list(expected)
    for name, array in expected.items():
        assert dump[name].dtype == array.dtype
        assert np.array_equal(dump[name], array)
    (out / "c" / "main.c").unlink()
    (out / "c" / "main").unlink()
    assert cli.main(["compare", str(tmp_path / "dump.npz"), str(out)]) == 0
    assert "5 of 5 tensors are equal" in capsys.readouterr().out


def test_the_command_ends_with_1_for_a_difference(
    compiled: qcompiler.Compiled, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = codes(compiled)
    dump["head.q"] += 1
    np.savez(tmp_path / "dump.npz", allow_pickle=False, **dump)
    assert cli.main(["compare", str(tmp_path / "dump.npz"), str(artifact), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["first"], found["equal"]) == ("head.q", False)


def test_dumps_that_cannot_be_compared(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    program, dump = compiled.artifact.program, codes(compiled)
    with pytest.raises(InputError, match=r"lacks the input 'x\.q'"):
        compare_dump({"second.q": dump["second.q"]}, program)
    with pytest.raises(InputError, match=r"expected integers \['N', 8, 6, 6\]"):
        compare_dump({**dump, "second.q": dump["second.q"].transpose(0, 2, 3, 1)}, program)
    with pytest.raises(InputError, match="float32"):
        compare_dump({**dump, "second.q": dump["second.q"].astype(np.float32)}, program)
    assert compare_dump({**dump, "other": dump["x.q"]}, program).unknown == ("other",)
    (tmp_path / "text.npz").write_text("no archive")
    for path in (tmp_path / "text.npz", tmp_path / "absent.npz"):
        with pytest.raises(InputError, match="cannot be read"):
            read_dump(path)
