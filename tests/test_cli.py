"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.digits.data import load_data
from qcompiler import cli

DATA = load_data()
MODEL = "examples.digits.model:load_digits_net"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    np.savez(folder / "images.npz", images=DATA.calibration_images.numpy())
    command = ["compile", MODEL, "--calibration", str(folder / "images.npz"), "-o", str(folder / "out")]
    assert cli.main(command) == 0
    return folder / "out"


def test_compile_verify_run_explain(artifact: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["verify", str(artifact)]) == 0
    assert "onnxruntime, layer by layer" in capsys.readouterr().out
    np.save(tmp_path / "x.npy", DATA.test_images.numpy())
    assert cli.main(["run", str(artifact), str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npz")]) == 0
    with np.load(tmp_path / "y.npz") as outputs:
        labels = outputs["output_0"].argmax(1)
    assert float((labels == DATA.test_labels.numpy()).mean()) > 0.98
    capsys.readouterr()
    assert cli.main(["explain", str(artifact), "features.0.0"]) == 0
    assert "fold-batch-norm" in capsys.readouterr().out


def test_json_is_all_that_stands_on_stdout(artifact: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.save({"x": DATA.test_images[:3]}, tmp_path / "x.pt")
    commands = [
        ["verify", str(artifact)],
        ["run", str(artifact), str(tmp_path / "x.pt")],
        ["explain", str(artifact), "features.0.0"],
        ["targets"],
        ["passes"],
    ]
    for command in commands:
        capsys.readouterr()
        assert cli.main([*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)


def test_compile_in_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=DATA.calibration_images[:64].numpy())
    command = ["compile", MODEL, "--calibration", str(tmp_path / "x.npz"), "--override", "add=16", "--json"]
    assert cli.main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verification"]["passed"] is True
    assert result["output"] is None
    assert result["bytes"]["model.onnx"] < 200_000


REFUSED = {
    "an artifact that is none": (["verify", "nowhere"], "manifest.json"),
    "a model without a function": (["compile", "examples.digits.model"], "package.module:function"),
    "a module that is not there": (["compile", "no.such:model"], "cannot be imported"),
    "a calibration file that is not there": (["compile", MODEL, "--calibration", "no.npz"], "no file"),
    "a calibration file of no known kind": (["compile", MODEL, "--calibration", "no.csv"], ".npz"),
    "an override without a width": (["compile", MODEL, "--override", "features.0"], "PATTERN=BITS"),
    "an analysis": (["analyze", MODEL], "not supported yet"),
    "an ONNX file": (["compile", "model.onnx"], "not supported yet"),
    "a target that is unknown": (["compile", MODEL, "--target", "int9"], "int8_dsp"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_end_with_1_and_say_why_on_stderr(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, words = REFUSED[case]
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert words in captured.err


@pytest.mark.parametrize(
    "command", [["nonsense"], ["compile"], ["verify", "a", "b"], ["compile", MODEL, "--effort", "x"]]
)
def test_wrong_usage_ends_with_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command) == 2
    assert "Usage" in capsys.readouterr().err


def test_an_altered_artifact_ends_with_1(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    (copy / "model.onnx").write_bytes(b"")
    assert cli.main(["verify", str(copy)]) == 1
    assert "model.onnx is not what was written" in capsys.readouterr().err


def test_as_a_process_it_is_quiet_and_needs_no_terminal(artifact: Path) -> None:
    command = [sys.executable, "-m", "qcompiler", "verify", str(artifact), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert json.loads(run.stdout)["passed"] is True


def test_the_demo_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "-o", str(tmp_path / "digits"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    accuracy = result["accuracy"]
    assert accuracy["integer program"] >= accuracy["float"] - 0.005
    assert (
        accuracy["integer program, in a fresh process"] == accuracy["integer program"] == accuracy["exact simulation"]
    )
    assert result["passed"] is True
    assert result["bytes"]["model.onnx"] < 0.4 * result["float_bytes"]
