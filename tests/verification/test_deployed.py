"""The session of a user is compared with the file as it is written; optimizers that change the results are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.backends import onnx_qdq
from qcompiler.backends.base import Deployed
from qcompiler.backends.onnx_qdq import form as onnx_form_file
from qcompiler.backends.onnx_qdq import runtime
from qcompiler.errors import VerificationError
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.verification.deployed import Trial, compare_deployed
from qcompiler.verification.forms import Forms, verify
from qcompiler.verification.report import Form
from tests.support.forms import onnx_form, onnx_of
from tests.support.processors import exact_default_session

NAME = "onnxruntime, default session"
Float = npt.NDArray[np.floating[Any]]
KERNELS = ("QLinearConv (first.weight)",)


def normal(*shape: int, seed: int = 0) -> Float:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compared(
    wanted: Float, written: Float, found: Float, *, step: float = 0.0, real: bool = True, doubt: str = ""
) -> tuple[Form, Diagnostic | None]:
    deployed = Deployed("d", lambda x: [found], lambda x: [written], doubt, lambda: KERNELS, "Do this.")
    return compare_deployed(deployed, Trial([], [torch.from_numpy(wanted)], real), {"output 0": step} if step else {})


@pytest.mark.parametrize(
    ("factor", "status"),
    [(1.0, "equal"), (1.04, "within bound"), (0.96, "within bound"), (1.2, "differs"), (0.8, "differs")],
)
def test_the_noise_may_differ_by_half_a_decibel_in_either_direction(factor: float, status: str) -> None:
    wanted, error = normal(64, 500), normal(64, 500, seed=1) / 10
    written = wanted + error
    found = written if factor == 1 else wanted + np.float32(factor) * error
    form, diagnostic = compared(wanted, written, found)
    assert (form.status, form.required, diagnostic) == (status, True, None)
    assert form.differing == (0 if factor == 1 else form.elements)


def test_few_elements_may_differ_by_chance() -> None:
    wanted = normal(2, 7)
    written = wanted + np.where(np.arange(14) % 2, -0.1, 0.1).reshape(2, 7).astype(np.float32)
    found = written.copy()
    found[0, 0] += np.float32(0.1)  # 0.84 dB
    assert compared(wanted, written, found)[0].status == "within bound"
    many = [np.concatenate([item] * 100) for item in (wanted, written, found)]
    assert compared(many[0], many[1], many[2])[0].status == "differs"


def test_few_ties_of_an_exact_file_are_allowed() -> None:
    wanted = normal(10, 100)
    found = wanted.copy()
    found[0, :5] += 0.25
    assert compared(wanted, wanted, found, step=0.25)[0].status == "within bound"
    assert compared(wanted, wanted, found)[0].status == "differs"
    found[0, :5] += 0.25
    assert compared(wanted, wanted, found, step=0.25)[0].status == "differs"


@pytest.mark.parametrize(("exchanged", "status"), [(1, "within bound"), (4, "differs")])
def test_classes_with_a_clear_margin_stay(exchanged: int, status: str) -> None:
    wanted = np.zeros((200, 10), np.float32)
    wanted[np.arange(200), np.arange(200) % 10] = 1
    written = wanted + np.float32(0.25) * normal(200, 10)
    found, ordered = written.copy(), written.argsort(1)
    margins = np.sort(written, 1)[:, -1] - np.sort(written, 1)[:, -2]
    assert np.count_nonzero(margins > 0.52) > 100
    for row in np.flatnonzero(margins > 0.52)[:exchanged]:
        first, second = ordered[row, -1], ordered[row, -2]
        found[row, [first, second]] = written[row, [second, first]]
    form, _ = compared(wanted, written, found)
    assert form.status == status
    images = [item.reshape(200, 10, 1) for item in (wanted, written, found)]
    assert compared(images[0], images[1], images[2])[0].status == "within bound"  # no output of classes


@pytest.mark.parametrize(("real", "doubt"), [(False, ""), (True, "sums may saturate")])
def test_random_inputs_and_doubtful_processors_are_counted_with_the_names_of_the_kernels(
    real: bool, doubt: str
) -> None:
    wanted, error = normal(64, 500), normal(64, 500, seed=1) / 10
    form, diagnostic = compared(wanted, wanted + error, wanted + 2 * error, real=real, doubt=doubt)
    assert (form.status, form.required) == ("differs", False)
    assert diagnostic is not None
    assert diagnostic.code == "runtime"
    assert "14.0 dB against the float model, and 20.1 dB without optimization" in str(diagnostic)
    assert f"Kernels: {KERNELS[0]}. Do this." in str(diagnostic)
    assert (doubt or "the inputs are random") in str(diagnostic)


def test_without_a_float_model_differences_are_counted() -> None:
    deployed = Deployed("d", lambda x: [normal(3)], lambda x: [normal(3, seed=1)])
    form, diagnostic = compare_deployed(deployed, Trial([]), {})
    assert (form.status, form.required, form.differing, diagnostic) == ("differs", False, 3, None)


def test_numbers_that_are_not_finite_and_whole_numbers_are_compared() -> None:
    odd = np.array([np.nan, np.inf, 1.0], np.float32)
    assert compared(odd, odd, odd.copy())[0].status == "equal"
    whole = np.arange(3)
    form, _ = compared(whole, whole, whole + 1)  # type: ignore[arg-type]  # indices
    assert (form.status, form.differing) == ("within bound", 3)


class Net(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 8, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


MODELS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "relu": lambda m, x: functional.relu(x),
    "layer after relu": lambda m, x: m.conv(functional.relu(x)),
    "clamp": lambda m, x: m.conv(x.clamp(-0.5, 0.7)),
    "pool": lambda m, x: m.conv(functional.max_pool2d(functional.relu(x), 2)),
    "border": lambda m, x: m.conv(functional.pad(functional.relu(x), (1, 1, 1, 1), value=-6.0)),
}


def images() -> Tensor:
    return torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def separated(model: bytes) -> int:
    """Number of pairs of quantizers in sequence that something separates."""
    nodes = onnx.load_from_string(model).graph.node
    makers = {name: node for node in nodes for name in node.output}
    read = [makers[node.input[0]] for node in nodes if node.op_type == "QuantizeLinear" and node.input[0] in makers]
    read = [makers[node.input[0]] if node.op_type == "Clip" else node for node in read]
    assert not any(node.op_type == "DequantizeLinear" for node in read)
    return sum(node.op_type == "Sum" for node in read)


@pytest.mark.parametrize("target", ["ort_cpu", "int8_dsp", "openvino", "tflite_int8"])
@pytest.mark.parametrize("name", MODELS)
def test_a_default_session_computes_what_the_file_says(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact_default_session(monkeypatch)
    found = qcompiler.compile(Net(MODELS[name]).eval(), target, calibration_data=[images()])
    assert found.verification is not None
    form = found.verification.form(NAME)
    assert form.required
    assert form.status in ("equal", "within bound")
    assert form.differing <= 0.001 * form.elements
    assert separated(onnx_of(found.artifact)) >= (name != "border")


def test_an_optimizer_that_changes_the_results_fails_the_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs of quantizers of `relu`, without what separates them, become one pair in ONNX Runtime."""

    def joined(model: onnx.ModelProto) -> bytes:
        nodes = model.graph.node
        sums = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Sum" and len(node.input) == 1}
        kept = [node for node in nodes if node.output[0] not in sums]
        for node in kept:
            node.input[:] = [sums.get(name, name) for name in node.input]
        del nodes[:]
        nodes.extend(kept)
        content: bytes = model.SerializeToString()
        return content

    exact_default_session(monkeypatch)
    model = Net(MODELS["relu"]).eval()
    good = qcompiler.compile(model, "ort_cpu", calibration_data=[images()])
    broken = onnx_form(joined(onnx.load_from_string(onnx_of(good.artifact))))
    trial = Trial([images()], [model(images())], real=True)
    report = verify(Forms(good.artifact.program, broken, trial=trial), [images()[:4]], good.target)
    assert not report.passed
    assert [form.name for form in report.forms if form.status == "differs" and form.required] == [NAME]
    assert report.form(NAME).differing > 0.2 * report.form(NAME).elements
    emit = onnx_qdq.emit
    monkeypatch.setattr(onnx_form_file, "emit", lambda *given, **io: joined(onnx.load_from_string(emit(*given, **io))))
    with pytest.raises(VerificationError, match=NAME):
        qcompiler.compile(model, "ort_cpu", calibration_data=[images()])


@pytest.mark.parametrize(("bits", "unsafe"), [(8, 1), (7, 0)])
def test_processors_whose_kernels_saturate_are_told_the_kernels_and_the_remedy(
    bits: int, unsafe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = qcompiler.load_target("ort_cpu").override(weight_bits=bits)
    found = qcompiler.compile(Net(MODELS["layer after relu"]).eval(), target, calibration_data=[images()])
    monkeypatch.setattr(runtime, "saturates", lambda: True)
    monkeypatch.setattr(onnx_form_file, "saturates", lambda: True)
    form = found.artifact.forms["ONNX"]
    deployed = onnx_form_file.Onnx().deployed(form.files, target)
    assert "x86 without VNNI" in deployed.doubt
    assert [item for item in deployed.kernels() if "conv.weight" in item] == ["QLinearConv (conv.weight.q)"] * unsafe
    assert "target.override(weight_bits=7)" in deployed.fix
    assert "session.x64quantprecision" in deployed.fix
    assert not found.verify(images()).form(NAME).required


def test_random_inputs_are_not_required() -> None:
    found = qcompiler.compile(Net(MODELS["relu"]).eval(), "ort_cpu", example_inputs=images())
    assert found.verification is not None
    assert not found.verification.form(NAME).required
