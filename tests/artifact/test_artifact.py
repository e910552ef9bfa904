"""An artifact that was written can be read, and is the same: for every target, in the verification itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.artifact.artifact import Artifact
from qcompiler.artifact.difference import difference
from qcompiler.backends import encodings as encodings_files
from qcompiler.backends.base import Emitted
from qcompiler.errors import ArtifactError, EncodingsError, VerificationError
from qcompiler.ir.diagnostics import note
from qcompiler.program.files import ProgramFiles
from qcompiler.targets import Target


class Small(nn.Module):
    """A convolution, an addition, a mean and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu()
        mean: Tensor = self.head((y + self.second(y)).mean((2, 3)))
        return mean


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (4, 3, 8, 8)), generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


WIDE: dict[str, Mapping[str, Any]] = {
    name: {"overrides": {"*": 16}} for name in ("cmsis_nn", "ethos_u55", "tosa_int", "int16x8")
}
"""Targets whose biases have more than 32 bits where activations have 16."""
HARDWARE = [name for name in qcompiler.targets() if qcompiler.load_target(name).simulation is None]
CASES = [*((name, {}) for name in HARDWARE), *WIDE.items()]


@pytest.mark.parametrize(("target", "options"), CASES, ids=[f"{name}{'-wide' * bool(wide)}" for name, wide in CASES])
def test_what_is_written_is_read_as_it_was(target: str, options: Mapping[str, Any]) -> None:
    compiled = qcompiler.compile(small(), target, calibration_data=[images()], verify="off", **options)
    found = compiled.artifact.read_back()
    assert found.faults == ()
    assert found.program is not None
    loaded = Artifact.parse(compiled.artifact.files())
    expected, outputs = compiled.run(images()), loaded.run(images())
    assert isinstance(expected, Tensor)
    assert isinstance(outputs, Tensor)
    assert torch.equal(expected, outputs)
    assert loaded.files() == compiled.artifact.files()


def dropped(**changes: object) -> Callable[[pytest.MonkeyPatch], None]:
    """A reader that forgets fields of the artifact."""

    def inject(patch: pytest.MonkeyPatch) -> None:
        parse = Artifact.parse
        patch.setattr(Artifact, "parse", lambda content: dataclasses.replace(parse(content), **changes))  # type: ignore[arg-type]

    return inject


def program_without(key: str, value: object) -> Callable[[pytest.MonkeyPatch], None]:
    """A reader that gives another value to a field of the program."""

    def inject(patch: pytest.MonkeyPatch) -> None:
        parse = ProgramFiles.parse

        def altered(text: str, weights: bytes) -> ProgramFiles:
            found = parse(text, weights)
            return dataclasses.replace(found, program=found.program.model_copy(update={key: value}))

        patch.setattr(ProgramFiles, "parse", altered)

    return inject


def encodings_with(**changes: object) -> Callable[[pytest.MonkeyPatch], None]:
    """A reader of encodings that says something else of the stored type, which the file of an artifact does not show."""

    def inject(patch: pytest.MonkeyPatch) -> None:
        stored_as = encodings_files.stored_as
        patch.setattr(
            encodings_files, "stored_as", lambda *given: dataclasses.replace(stored_as(*given), **changes)  # type: ignore[arg-type]
        )  # fmt: skip

    return inject


def other_weights(patch: pytest.MonkeyPatch) -> None:
    """A reader that changes one weight."""
    parse = ProgramFiles.parse

    def altered(text: str, weights: bytes) -> ProgramFiles:
        found = parse(text, weights)
        name = found.program.instructions[1].inputs[1]
        array = found.constants[name].copy()
        array.reshape(-1).view(np.uint8)[0] ^= 1
        return dataclasses.replace(found, constants={**found.constants, name: array})

    patch.setattr(ProgramFiles, "parse", altered)


def a_reader_that_refuses(patch: pytest.MonkeyPatch) -> None:
    """Encodings of no more than eight bits, as once of no more than 32."""

    def refuse(text: str, where: str) -> None:
        raise EncodingsError("bw is more than 8", where=f"{where}, relu.q.bias.codes")

    patch.setattr(encodings_files, "parse", refuse)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "the encodings": (dropped(grids=None), "encodings.json"),
    "the passes": (dropped(passes=()), "provenance.json: passes"),
    "the pipeline": (dropped(pipeline=""), "provenance.json: pipeline"),
    "the noise": (dropped(sqnr={}), "manifest.json: sqnr_db"),
    "the diagnostics": (dropped(diagnostics=(note("lost"),)), "manifest.json: diagnostics"),
    "the C": (dropped(forms={}), "c/"),
    "the nesting of outputs": (dropped(output_tree=("tuple", [0])), "manifest.json: output_tree"),
    "the memory plan": (program_without("memory", None), "program.json: memory"),
    "the order of axes": (program_without("layout", "NCHW"), "program.json: layout"),
    "a weight": (other_weights, "weights.safetensors: byte"),
    "the axis of encodings": (encodings_with(axis=1), "encodings.json, version 2.0.0: encodings"),
    "the sign of encodings": (encodings_with(signed=True), "encodings.json, version 2.0.0: encodings"),
    "wide encodings": (a_reader_that_refuses, "encodings.json, relu.q.bias.codes"),
}


@pytest.fixture(scope="module")
def compiled() -> qcompiler.Compiled:
    return qcompiler.compile(small(), "int8_dsp_per_channel", calibration_data=[images()])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reader_that_loses_something_fails_the_verification(
    fault: str, compiled: qcompiler.Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject, words = FAULTS[fault]
    inject(monkeypatch)
    found = compiled.artifact.read_back()
    assert found.faults, "the fault must be found"
    assert any(words in text for text in found.faults), found.faults


def test_a_fault_of_the_reader_fails_the_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped(pipeline="")(monkeypatch)
    with pytest.raises(VerificationError, match=r"artifact read back: provenance\.json: pipeline changed between"):
        qcompiler.compile(small(), "int8_dsp", calibration_data=[images()])


def test_the_report_says_that_the_artifact_was_read_back(compiled: qcompiler.Compiled, tmp_path: Path) -> None:
    loaded = qcompiler.load(compiled.save(tmp_path / "out"))
    for report in (compiled.verification, compiled.verify(), loaded.verify()):
        assert report is not None
        form = report.form("artifact read back")
        assert (form.status, form.required) == ("equal", True)
        assert form.elements > 1000


class Bordered(nn.Module):
    """A maximum in a border of minus infinity, as networks of TensorFlow have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(self.conv(x).relu(), (1, 0, 1, 0), value=float("-inf"))
        return functional.max_pool2d(padded, 2)


def test_a_tensor_with_infinities_is_saved_and_reported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    compiled = qcompiler.compile(Bordered().eval(), "int8_dsp", calibration_data=[images()])
    loaded = qcompiler.load(compiled.save(tmp_path / "out"))
    assert "signal-to-noise" in compiled.report(tmp_path / "report.html").read_text(encoding="utf-8")
    ratios = {name: ratio for name, ratio in loaded.sqnr.items() if name.startswith("output")}
    assert ratios
    assert all(20 < ratio < 80 for ratio in ratios.values()), ratios


def test_codes_between_two_right_roundings_are_no_fault() -> None:
    """21 of 32,768 elements are two steps from the code of the target.

    Its multiplier of 15 bits is one step away from one rounding at 16 bits, and ONNX Runtime's float32 sum one step on
    the other side of it.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
    compiled = qcompiler.compile(
        model, "hexagon_htp_a16w8", calibration_data=[torch.randn(4, 3, 16, 16)], verify="warn"
    )
    assert compiled.verification is not None
    form = compiled.verification.form("onnxruntime, layer by layer")
    assert form.largest == 2, "the data contain the case"
    assert compiled.verification.passed
    assert compiled.artifact.verify().passed


def test_facts_of_a_target_do_not_depend_on_the_order_of_keys() -> None:
    target = qcompiler.load_target("ethos_u55")
    assert Target.from_json(target.to_json()).facts() == target.facts()


def test_a_difference_names_its_place() -> None:
    assert difference(b'{"a": [1, {"b": 2}]}', b'{"a": [1, {"b": 3}]}').startswith("a.1.b changed")
    assert difference(b'{"a": 1}', b"{}").startswith("a changed")
    assert difference(b"abc", b"abd").startswith("byte 2")
    assert difference(None, b"") == "it exists only after reading"


class Halves(nn.Module):
    """Each sample becomes two samples of the result, whose real numbers come after the integer core."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).reshape(-1, 17, 4, 1)


def test_results_of_several_times_the_batch_are_read_back() -> None:
    x = torch.randn(6, 136, generator=torch.Generator().manual_seed(0))
    compiled = qcompiler.compile(Halves().eval(), "int8_dsp", calibration_data=[x])
    assert compiled.verification is not None
    assert compiled.verification.form("artifact read back").status == "equal"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["c/model.c"], "names the file 'c/model.c'"),
        (["../model.onnx"], "names the file"),
        (["manifest.json"], "names the file 'manifest.json'"),
        (["other.onnx"], "other.onnx is missing"),
    ],
)
def test_forms_of_a_manifest_have_files_of_their_own(
    files: list[str], message: str, compiled: qcompiler.Compiled, tmp_path: Path
) -> None:
    folder = compiled.save(tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["forms"]["ONNX"]["files"] = files
    manifest["sha256"].pop("model.onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        qcompiler.load(folder)


@pytest.mark.parametrize(
    ("code", "data"), [("forms", {}), ("outputs", {"db": 3}), ("losses", {"losses": [{"tensor": "x", "db": "much"}]})]
)
def test_diagnostics_of_a_manifest_make_sentences(
    code: str, data: dict[str, object], compiled: qcompiler.Compiled, tmp_path: Path
) -> None:
    folder = compiled.save(tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["diagnostics"] = [{"code": code, "data": data, "where": ""}]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"the facts of '{code}' make no sentence"):
        qcompiler.load(folder)


def test_a_form_without_files_is_not_run(compiled: qcompiler.Compiled) -> None:
    forms = {**compiled.artifact.forms, "ONNX": Emitted()}
    report = dataclasses.replace(compiled.artifact, forms=forms).verify()
    assert report.form("ONNX").reason == "it has no files"
    assert report.form("C").status == "equal"
