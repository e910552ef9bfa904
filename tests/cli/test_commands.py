"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import qcompiler
from examples.digits.data import load_data
from qcompiler import cli
from qcompiler.cli.commands import DEBUG
from qcompiler.cli.inputs import example_inputs

DATA = load_data()
MODEL = "examples.digits.model:load_digits_net"
HERE = "tests.support.bad_inputs"


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


def test_the_summary_is_printed_and_problems_are_notes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=DATA.calibration_images[:64].numpy())
    command = ["compile", MODEL, "--calibration", str(tmp_path / "x.npz"), "--override", "reshape=16"]
    assert cli.main([*command, "--verify", "off", "--output", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "int8_dsp: not verified.\nSignal to noise of the outputs against the float model: output 0 " in captured.out
    assert "\nTensors that lose most by themselves" in captured.out
    assert "note: --override reshape=16 has no effect on %" in captured.err
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
    assert "clipped" not in capsys.readouterr().err, "random inputs need not be like the calibration"
    np.save(tmp_path / "far.npy", 100 * DATA.test_images[:8].numpy())
    assert cli.main(["verify", str(tmp_path / "out"), "--inputs", str(tmp_path / "far.npy")]) == 0
    assert "% of the verified numbers are clipped" in capsys.readouterr().err


def test_codes_at_the_ends(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=DATA.calibration_images[:64].numpy())
    command = ["compile", MODEL, "--calibration", str(tmp_path / "x.npz"), "--effort", "fast"]
    assert cli.main([*command, "--io", "uint8", "--output", str(tmp_path / "out")]) == 0
    contract = json.loads((tmp_path / "out" / "c" / "contract.json").read_text())
    assert {end["type"] for end in (*contract["inputs"], *contract["outputs"])} == {"uint8_t"}
    assert "ExternalTypes" not in capsys.readouterr().err
    assert cli.main([*command, "--io", "uint4", "--output", str(tmp_path / "no")]) == 2
    assert "uint4" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_compile_in_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=DATA.calibration_images[:64].numpy())
    command = ["compile", MODEL, "--calibration", str(tmp_path / "x.npz"), "--override", "add=16", "--json"]
    assert cli.main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verification"]["passed"] is True
    assert result["output"] is None
    assert result["bytes"]["model.onnx"] < 200_000
    assert [item["code"] for item in result["diagnostics"]][:3] == ["forms", "outputs", "losses"]
    assert all(item["text"] for item in result["diagnostics"])


def pictures(folder: Path, count: int = 24) -> Path:
    """Digits as pictures of another size, some of them coloured, in folders by label."""
    from PIL import Image

    for index, image in enumerate(DATA.calibration_images[:count]):
        pixels = (image[0] * 255).to(torch.uint8).numpy()
        picture = Image.fromarray(pixels).resize((40, 32))
        home = folder / str(index % 3)
        home.mkdir(parents=True, exist_ok=True)
        (picture.convert("RGB") if index % 2 else picture).save(home / f"{index:03}.{'jpg' if index % 3 else 'png'}")
    return folder


def test_a_folder_of_images_calibrates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "pictures")
    command = [
        "compile",
        MODEL,
        "--calibration",
        str(folder),
        "--batch-size",
        "10",
        "-o",
        str(tmp_path / "out"),
        "--json",
    ]
    assert cli.main(command) == 0
    capsys.readouterr()
    np.save(tmp_path / "x.npy", DATA.test_images.numpy())
    assert cli.main(["run", str(tmp_path / "out"), str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npz")]) == 0
    with np.load(tmp_path / "y.npz") as outputs:
        labels = outputs["output_0"].argmax(1)
    assert float((labels == DATA.test_labels.numpy()).mean()) > 0.9
    capsys.readouterr()
    (folder / "broken.png").write_bytes(b"no picture")
    assert cli.main(command) == 1
    assert "broken.png cannot be read" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["compile", MODEL, "--calibration", str(tmp_path / "empty")]) == 1
    assert "contains no images" in capsys.readouterr().err


def test_images_are_read_as_the_model_takes_them(tmp_path: Path) -> None:
    from PIL import Image

    from qcompiler.cli.inputs import ImageFolder
    from qcompiler.errors import InputError

    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (255, 0, 51)  # the middle third
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide).save(tmp_path / "b.png")
    (tmp_path / "note.txt").write_text("no picture")
    batches = list(ImageFolder(tmp_path, (3, 10, 10), batch_size=1))
    assert [len(batch[0]) for batch in batches] == [1, 1]
    assert torch.equal(batches[0][0][0, :, 5, 5], torch.tensor([255.0, 0.0, 51.0]) / 255)
    (signed,) = next(iter(ImageFolder(tmp_path, (3, 10, 10), "signed")))
    assert signed[0, :, 5, 5].tolist() == pytest.approx([1.0, -1.0, -0.6])
    (net,) = next(iter(ImageFolder(tmp_path, (3, 10, 10), "imagenet")))
    assert net[0, :, 5, 5].tolist() == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225])
    (grey,) = next(iter(ImageFolder(tmp_path, (1, 10, 10))))
    assert grey.shape == (2, 1, 10, 10)
    with pytest.raises(InputError, match="has 4 channels"):
        ImageFolder(tmp_path, (4, 10, 10))


def test_check_lists_every_node_and_ends_with_1_where_it_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["check", MODEL]) == 0
    assert "folded" in capsys.readouterr().out
    assert cli.main(["check", MODEL, "--override", "classifier=float", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [node["name"] for node in found["nodes"] if node["fate"] == "refused"] == ["classifier"]
    assert cli.main(["check", MODEL, "--override", "classifier=float", "--set", "fallback=float"]) == 0
    assert "an override selects float" in capsys.readouterr().out


def test_the_target_and_single_layers_can_be_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "x.npz", x=DATA.calibration_images[:64].numpy())
    command = ["compile", "tests.support.networks:few", "--calibration", str(tmp_path / "x.npz"), "--json"]
    command += ["--set", "per_channel=true", "--set", "weight_bits=4", "--set", "fallback=float"]
    command += ["--override", "features.0=a16w8", "--override", "classifier=float"]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["target"] == "int8_dsp[per_channel=True, weight_bits=4, fallback=float]"
    assert "One float island" in captured.err


def test_the_shell_completes_commands_and_targets() -> None:
    environment = {
        "_QCOMPILER_COMPLETE": "complete_bash",
        "COMP_WORDS": "qcompiler compile x --target int",
        "COMP_CWORD": "4",
        "PYTHONPATH": str(Path(__file__).parents[2]),  # the command may have been installed for another checkout
    }
    run = subprocess.run(
        [Path(sys.executable).parent / "qcompiler"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert {"int8_dsp", "int8_dsp_per_channel", "int16x8"} <= set(run.stdout.split())


REFUSED = {
    "an artifact that is none": (["verify", "nowhere"], "manifest.json"),
    "a model without a function": (["compile", "examples.digits.model"], "package.module:function"),
    "a module that is not there": (["compile", "no.such:model"], "cannot be imported"),
    "a calibration file that is not there": (["compile", MODEL, "--calibration", "no.npz"], "no file"),
    "a calibration file of no known kind": (["compile", MODEL, "--calibration", "no.csv"], ".npz"),
    "an override without a width": (["compile", MODEL, "--override", "features.0"], "PATTERN=BITS"),
    "an analysis without samples": (["analyze", MODEL, "--calibration", "no.npz"], "no file"),
    "an absent ONNX file": (["compile", "model.onnx"], "there is no file"),
    "a model of Keras": (["compile", "model.keras"], "not supported yet"),
    "a change that is none": (["compile", MODEL, "--set", "per_channel"], "FIELD=VALUE"),
    "a change of no known field": (["check", MODEL, "--set", "per_chanel=true"], "Did you mean per_channel"),
    "a digit that is no number": (["check", MODEL, "--set", "weight_bits=²"], "weight_bits"),
    "a number of thousands of digits": (["check", MODEL, "--set", f"weight_bits={'9' * 5000}"], "weight_bits"),
    "a width that is no number": (["check", MODEL, "--override", "features.0=a8w٤"], "a8w"),
    "a function whose name is misspelled": (["compile", f"{HERE}:net_and_input"], "did you mean 'net_and_inputs'?"),
    "a function of no such name": (
        ["compile", f"{HERE}:quite_another"],
        "has no 'quite_another'; expected package.module:function",
    ),
    "sizes of no number": (["check", f"{HERE}:net", "--input-shape", "3xHxW"], "such as 3,224,224"),
    "sizes of an unknown type": (
        ["check", f"{HERE}:net", "--input-shape", "3,8,8:half"],
        "float, int64, int32, uint8, bool",
    ),
    "a size of nothing": (["check", f"{HERE}:net", "--input-shape", "3,0,8"], "no elements"),
    "sizes beyond the memory": (["check", f"{HERE}:net", "--input-shape", "99999,99999,99999"], "less than the memory"),
    "sizes of too many inputs": (["check", f"{HERE}:net", "--input-shape", "3,8,8", "--input-shape", "1"], "argument"),
    "a function that raises": (["compile", f"{HERE}:raises"], "raises KeyError: 'no such"),
    "a function that ends": (["compile", f"{HERE}:leaves"], "raises SystemExit: 3"),
    "a function that takes arguments": (["compile", f"{HERE}:takes"], "without arguments"),
    "a number for a model": (["compile", f"{HERE}:NUMBER"], "int"),
    "a module that is relative": (["compile", "..x:y"], "cannot be imported"),
    "a folder in place of a file": (["compile", MODEL, "--encodings", "{folder}"], "is a directory"),
    "a pipe in place of a file": (["compile", MODEL, "--calibration", "{pipe}"], "is a pipe"),
    "a pipe in place of encodings": (["compile", MODEL, "--encodings", "{pipe}"], "is a pipe"),
    "a name that no file can have": (["verify", "x" * 5000], "manifest.json"),
    "a name of two lines": (["verify", "a\nb"], "a b contains no manifest.json"),
    "a target that is unknown": (["compile", MODEL, "--target", "int9"], "int8_dsp"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_end_with_1_and_say_why_on_stderr(
    case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command, words = REFUSED[case]
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    places = {"{folder}": str(tmp_path / "folder.npz"), "{pipe}": str(tmp_path / "pipe.npz")}
    assert cli.main([places.get(word, word) for word in command]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_what_is_missing_is_told_in_the_words_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", "tests.support.functions:missing"]) == 1
    text = capsys.readouterr().err
    assert "Run it in float, --set fallback=float, or replace it in the model" in text
    assert "(at %sinh (tests.support.functions:Missing.forward:" in text
    assert text.count(": `return torch.sinh(x) + torch.logcumsumexp(x, 1)`)") == 2
    assert cli.main(["check", "tests.support.functions:missing"]) == 1
    assert "or run them in float: --set fallback=float." in capsys.readouterr().out


def test_the_shape_of_the_input_is_enough(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["compile", f"{HERE}:net", "--input-shape", "3,8,8", "--output", str(tmp_path / "out"), "--json"]
    assert cli.main(["compile", f"{HERE}:net"]) == 1
    assert "Give --input-shape" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["verification"]["passed"]
    assert qcompiler.load(tmp_path / "out").program.program.tensors["x"].shape == (-1, 3, 8, 8)
    assert cli.main(["traffic", f"{HERE}:net", "--input-shape", "3,8,8"]) == 0


def test_shapes_may_have_types() -> None:
    values, ids, flags, number = example_inputs(["3,4", "5:int64", "2:bool", ":float"])
    assert values.shape == (2, 3, 4)
    assert values.dtype == torch.float32
    assert values.std() > 0.5
    assert torch.equal(ids, torch.zeros(2, 5, dtype=torch.int64))
    assert flags.dtype == torch.bool
    assert number.shape == (2,)


def test_a_function_that_raises_is_told_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", f"{HERE}:raises"]) == 1
    assert re.search(r"bad_inputs\.py:\d+, in raises", capsys.readouterr().err)


def test_a_defect_of_ours_is_called_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import qcompiler

    def broken() -> list[str]:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(qcompiler, "targets", broken)
    monkeypatch.delenv(DEBUG, raising=False)
    assert cli.main(["targets"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: this is a defect in qcompiler: ZeroDivisionError: of ours (at test_commands.py:")
    assert text.count("\n") == 1
    monkeypatch.setenv(DEBUG, "1")
    assert cli.main(["targets"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "case",
    [
        "a closed pipe",
        "an interrupt",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("a full disk", "no stdout")),
    ],
)
def test_results_that_go_nowhere_end_in_one_line(case: str) -> None:
    code = "import sys, qcompiler.cli as cli; sys.exit(cli.main(['targets']))"
    if case == "an interrupt":
        # A shell in the background starts its children with the signal ignored: a terminal does not.
        heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
        kill = "qcompiler.targets = lambda: os.kill(os.getpid(), signal.SIGINT)"
        code = f"import os, signal, qcompiler; {heard}; {kill}; {code}"
    command = [sys.executable, "-c", code]
    if case == "a full disk":
        with Path("/dev/full").open("w") as full:
            run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (run.returncode, run.stderr) == (1, "error: cannot write the results: No space left on device\n")
        return
    shell = {"a closed pipe": " | true; exit ${PIPESTATUS[0]}", "no stdout": " >&-", "an interrupt": ""}[case]
    run = subprocess.run(["bash", "-c", '"$@"' + shell, "bash", *command], capture_output=True, text=True, check=False)
    assert run.returncode == {"a closed pipe": 1, "no stdout": 0, "an interrupt": 1}[case], run.stderr
    assert run.stderr == ("aborted\n" if case == "an interrupt" else "")


@pytest.mark.parametrize(
    "command",
    [
        ["nonsense"],
        ["compile"],
        ["verify", "a", "b"],
        ["compile", MODEL, "--effort", "x"],
        ["verify", "a", "--seed", "-1"],
    ],
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
    assert "model.onnx was altered" in capsys.readouterr().err


def test_as_a_process_it_is_quiet_and_needs_no_terminal(artifact: Path) -> None:
    command = [sys.executable, "-m", "qcompiler", "verify", str(artifact), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(line.startswith("note: ") for line in run.stderr.splitlines()), "only diagnostics"
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
