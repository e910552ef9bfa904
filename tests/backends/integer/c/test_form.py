"""The form C of a compiled model: compared with the others, found out when it is wrong, and never run when it is foreign."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import qcompiler
from qcompiler.backends.base import Emitted, Lowered
from qcompiler.backends.integer.c import form
from qcompiler.backends.integer.c.form import CSource, folder_of
from qcompiler.errors import ArtifactError
from qcompiler.program import aliases, liveness
from qcompiler.program.files import ProgramFiles
from qcompiler.session.emission import emit_forms
from qcompiler.verification.forms import Forms, verify
from qcompiler.verification.report import Report
from tests.backends.integer.c.test_networks import Inverted
from tests.support.forms import c_form, c_of

X = torch.randn(4, 3, 33, 29, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def compiled() -> qcompiler.Compiled:
    torch.manual_seed(0)
    return qcompiler.compile(Inverted().eval(), "int8_dsp", calibration_data=[X])


def verified(compiled: qcompiler.Compiled, c: dict[str, bytes]) -> Report:
    """The report of a compile with other C."""
    artifact = compiled.artifact
    forms = Forms(artifact.program, c_form(c), compiled.quantized.main, compiled.integer.main)
    return verify(forms, list(compiled.inputs), compiled.target)


def test_every_tensor_of_c_is_compared(compiled: qcompiler.Compiled) -> None:
    assert compiled.verification is not None
    form, contract = compiled.verification.form("C"), json.loads(c_of(compiled.artifact)["contract.json"])
    assert (form.status, form.required) == ("equal", True)
    # The input and the output once, with their real numbers; what is computed twice.
    assert form.tensors == 1 + 2 * len(contract["steps"]) + 1
    assert len(contract["steps"]) > 15


class Parts(torch.nn.Module):
    """Results that are parts of others, and others that are put together of results: the plan moves none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = torch.nn.Linear(16, 32), torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x))
        whole = torch.cat([self.left(y[:, :16]), self.right(y[:, 16:])], 1)
        return whole.reshape(-1, 4, 8) + y.reshape(-1, 4, 8)


def test_tensors_that_lie_where_others_do() -> None:
    torch.manual_seed(0)
    compiled = qcompiler.compile(Parts().eval(), "int8_dsp", calibration_data=[torch.randn(4, 16)])
    program = compiled.artifact.program.program
    assert program.memory is not None
    tensors = liveness.Tensors(program, program.memory.batch)
    views = aliases.shown(tensors, aliases.find_homes(tensors, program.memory.alignment))
    assert len(views) >= 4
    contract = json.loads(c_of(compiled.artifact)["contract.json"])
    assert views == {step["tensor"] for step in contract["steps"] if step["is_view"]}
    text = c_of(compiled.artifact)["model.c"].decode()
    assert text.count("in its place already") == len(views)
    assert compiled.verification is not None
    assert compiled.verification.form("C").status == "equal"


def replaced(file: str, old: str, new: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def inject(files: dict[str, bytes]) -> dict[str, bytes]:
        text, count = re.subn(old, new, files[file].decode(), count=1, flags=re.DOTALL)
        assert count == 1
        return {**files, file: text.encode()}

    return inject


FAULTS = {
    "weight": (replaced("weights.c", r"(_narrow_weight_q\[576\] = \{\n *)-?\d+", r"\g<1>-99"), "narrow.q"),
    "bias": (replaced("weights.c", r"(_deep_q_bias\[36\] = \{\n *)-?\d+", r"\g<1>99999"), "deep.q"),
    "rounding": (replaced("kernels.c", r" \+ \(\(int64_t\)1 << \(30 - exponent\)\)", ""), "clamp.q"),
    "shift": (replaced("kernels.c", r"31 - exponent\)", "30 - exponent)"), "clamp.q"),
    "clamp": (replaced("model.c", r"(c_clamp_1_q = .*?\.high = )-?\d+", r"\g<1>0"), "clamp_1.q"),
    "padding": (replaced("model.c", r"(c_deep_q = .*?\.top = )2", r"\g<1>1"), "deep.q"),
    "zero point of a result": (
        replaced("model.c", r"(c_excite_q = .*?\.zero_point = )(-?\d+)", r"\g<1>1 + \2"),
        "excite.q",
    ),
    "order of the operands": (replaced("model.c", r"(c_sub_q = .*?\.sign = )-1", r"\g<1>1"), "sub.q"),
    "quantizer of the input": (replaced("inverted_float.c", r"whole \+ up - down", "whole"), "x.q"),
    "scale of the output": (replaced("inverted.h", r"(OUTPUT_0_SCALE )\S+", r"\g<1>1.0f"), "output 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_source_fails_and_names_its_tensor(fault: str, compiled: qcompiler.Compiled) -> None:
    inject, name = FAULTS[fault]
    report = verified(compiled, inject(dict(c_of(compiled.artifact))))
    form = report.form("C")
    assert not report.passed
    assert (form.status, form.first) == ("differs", name)


def test_source_that_does_not_compile_fails(compiled: qcompiler.Compiled) -> None:
    report = verified(compiled, {**c_of(compiled.artifact), "kernels.c": b"this is no C\n"})
    assert not report.passed
    assert report.form("C").status == "not run"
    assert "failed:" in report.form("C").reason


def test_without_a_compiler_the_others_are_compared(
    compiled: qcompiler.Compiled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    report = verified(compiled, dict(c_of(compiled.artifact)))
    assert report.passed
    assert report.form("C").reason == "there is no C compiler 'no-such-compiler'"
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho nothing works >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    report = verified(compiled, dict(c_of(compiled.artifact)))
    assert report.passed
    assert "cannot build programs" in report.form("C").reason


def test_an_artifact_keeps_it_and_verifies_it_again(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    loaded = qcompiler.load(compiled.save(tmp_path / "out"))
    assert c_of(loaded) == c_of(compiled.artifact)
    assert loaded.files() == compiled.artifact.files()
    assert loaded.verify().form("C").status == "equal"


def test_foreign_source_is_never_run(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    """An artifact from elsewhere is verified without running the code in it, whatever its manifest says."""
    folder, mark = compiled.save(tmp_path / "out"), tmp_path / "was here"
    source = folder / "c" / "kernels.c"
    call = (
        f"#include <stdlib.h>\n__attribute__((constructor)) static void act(void) {{ system(\"touch '{mark}'\"); }}\n"
    )
    source.write_text(source.read_text(encoding="utf-8") + call, encoding="utf-8")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["sha256"]["c/kernels.c"] = hashlib.sha256(source.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    form = qcompiler.load(folder).verify().form("C")
    assert form.reason == "c/kernels.c differs from the file that this version writes, and is not run"
    assert not mark.exists()


@pytest.mark.parametrize("name", ["c/../../x", "../x", "/etc/hostname", "c/d/x", ""])
def test_a_manifest_cannot_name_files_elsewhere(name: str, compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    folder = compiled.save(tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["sha256"][name] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"manifest\.json names the file"):
        qcompiler.load(folder)


def test_names_of_tensors_cannot_become_code(compiled: qcompiler.Compiled) -> None:
    """A program from elsewhere may call its tensors what it likes."""
    files = compiled.artifact.program
    evil = 'x.q */ int main(void) { return 1; } /*\n#include "/etc/hostname"\n??/\n\\'
    text = files.program_json().replace('"x.q"', json.dumps(evil))
    renamed = ProgramFiles.parse(text, files.weights())
    graph = compiled.integer.main
    form = CSource().emit(Lowered("evil */ model", graph, renamed, [X.numpy()]), compiled.target)
    source = folder_of(form)
    assert json.loads(source["contract.json"])["name"] == "evil_model"
    files_of_c = {name: data for name, data in source.items() if name.endswith((".c", ".h")) and name != "selftest.c"}
    code = b"".join(files_of_c.values()).decode()
    without_comments = re.sub(r"/\*.*?\*/", "", code, flags=re.DOTALL)
    literals = re.compile(r'"(?:[^"\\\n?*]|\\[0-7]{3})*"')  # what ends a literal or a line is an octal number
    assert "main(void)" not in literals.sub("", without_comments)
    assert '"/etc/hostname"' not in without_comments
    assert "\\" not in literals.sub("", code)
    report = verify(Forms(renamed, c_form(source)), [X], compiled.target)
    assert report.form("C").status == "equal"


def test_what_is_too_large_or_not_integer_says_why(
    compiled: qcompiler.Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, graph = compiled.artifact.program, compiled.integer.main
    with monkeypatch.context() as patch:
        patch.setattr(form, "LARGEST", 1000)
        found = emit_forms(Lowered("net", graph, files), compiled.target)["C"]
    assert not found.files
    assert found.reason.startswith("its constants have 0 MiB, but ")
    unplanned = ProgramFiles(files.program.model_copy(update={"memory": None}), files.constants)
    without = emit_forms(Lowered("net", graph, unplanned), compiled.target)
    assert without["C"] == Emitted(reason="the program has no memory plan")
    assert without["ONNX"].files, "the other forms remain"
    report = verify(Forms(files, without), [X], compiled.target)
    assert report.form("C").reason == "the program has no memory plan"


def test_a_float_island_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Threshold(0.1, 0.0), torch.nn.Conv2d(4, 2, 1)).eval()
    target = qcompiler.load_target("int8_dsp").override(fallback="float")
    compiled = qcompiler.compile(model, target, calibration_data=[X])
    assert not compiled.artifact.forms["C"].files
    assert compiled.verification is not None
    form = compiled.verification.form("C")
    assert (form.status, form.required) == ("not run", False)
    assert re.match(r"the program runs the float island @\w+, and C is written only for the integer core", form.reason)
