"""ONNX files through the whole compiler."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import qcompiler
from qcompiler.cli import main
from qcompiler.errors import CaptureError, InputError, NotSupportedYetError
from qcompiler.frontends import capture
from qcompiler.frontends.onnx import source
from qcompiler.frontends.onnx.source import OnnxModel
from tests.frontends.onnx.files import graph_of, model_of


class Network(nn.Module):
    """Convolutions, a residual, a pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish())
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image)
        x = x + self.second(x)
        scores: torch.Tensor = self.head(torch.flatten(nn.functional.avg_pool2d(x, 8), 1))
        return scores


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    found = Network()
    with torch.no_grad():
        found(torch.randn(16, 3, 8, 8))
    return found.eval()


@pytest.fixture(scope="module")
def path(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("onnx") / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.randn(2, 3, 8, 8),),
            found,
            dynamo=False,
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes={"image": {0: "N"}, "scores": {0: "N"}},
        )
    return found


DATA = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def test_the_codes_are_those_of_the_module(network: nn.Module, path: Path) -> None:
    """The exporter folds the batch norm in float32, so that weights may differ in the last bit."""
    direct, read = (qcompiler.compile(model, calibration_data=DATA) for model in (network, path))
    first, second = (compiled.run(DATA[0]) for compiled in (direct, read))
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert float((first == second).float().mean()) > 0.95
    assert read.verification is not None
    assert all(form.status != "differs" or not form.required for form in read.verification.forms)


def test_names_of_the_file_are_kept(path: Path) -> None:
    module = capture(OnnxModel(path)).module
    assert "head.weight" in module.tensors
    assert any(node.location.path == "/head/Gemm" for node in module.main.nodes)
    assert module.main.input_names == ["image"]


def test_batch_sizes_are_free(path: Path) -> None:
    graph = capture(OnnxModel(path)).module.main
    assert str(graph.inputs[0].type.shape[0]) == "N"


def test_the_command_line_takes_a_file(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(path), "--output", str(tmp_path / "out"), "--effort", "fast"]) == 0
    assert (tmp_path / "out" / "program.json").is_file()
    assert main(["check", str(path)]) == 0
    assert "/head/Gemm" in capsys.readouterr().out


def test_training_starts_from_a_file(path: Path) -> None:
    module = qcompiler.prepare_qat(path, "int8_dsp", calibration_data=DATA)
    loss = module(DATA[0]).square().mean()
    loss.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def test_several_outputs_have_their_names_and_inputs_names_that_python_allows() -> None:
    nodes = [helper.make_node("Relu", ["in:0"], ["a"]), helper.make_node("Neg", ["in:0"], ["b"])]
    compiled = qcompiler.compile(
        model_of(graph_of(nodes, {"in:0": ["N", 3]}, ["a", "b"])), calibration_data=[{"in_0": torch.randn(4, 3)}]
    )
    assert set(compiled.run(torch.randn(2, 3))) == {"a", "b"}  # type: ignore[call-overload]


def test_examples_are_made_from_declared_sizes() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    example = OnnxModel(model_of(graph_of(nodes, {"x": ["N", 3, 5]}, ["y"]))).example()
    assert isinstance(example, tuple)
    assert example[0].shape == (2, 3, 5)
    with pytest.raises(InputError, match="no example inputs"):
        qcompiler.compile(model_of(graph_of(nodes, {"x": ["N", 3, "width"]}, ["y"])))


def test_a_graph_that_differs_from_the_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is ONNX Runtime: a wrong translation is named with the operator."""
    from qcompiler.frontends.onnx.table import TRANSLATIONS

    monkeypatch.setitem(TRANSLATIONS, "Relu", TRANSLATIONS["Neg"])
    nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"], name="act")]
    with pytest.raises(CaptureError, match=r"the first module that differs is act \(Relu\)"):
        capture(OnnxModel(model_of(graph_of(nodes, {"x": [2, 3]}, ["y"]))), torch.randn(2, 3))


def test_the_reference_evaluator_replaces_a_kernel_that_onnx_runtime_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def refuse(*arguments: object, **keywords: object) -> object:
        raise RuntimeError("NOT_IMPLEMENTED")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    found = capture(OnnxModel(model_of(graph_of(nodes, {"x": [2, 3]}, ["y"]))), torch.randn(2, 3))
    assert [node.op for node in found.module.main.nodes] == ["relu"]


def test_double_precision_is_captured_in_float32() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = graph_of(nodes, {"x": ["N", 3]}, ["y"], {"w": np.ones((3, 2))}, {"x": 11, "y": 11})
    x = torch.randn(4, 3, dtype=torch.float64)
    compiled = qcompiler.compile(model_of(graph), calibration_data=[x])
    found = compiled.run(x)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float64


def test_models_of_tensorflow_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("model.keras", "model.tflite"):
        with pytest.raises(NotSupportedYetError, match="TensorFlow"):
            qcompiler.compile(tmp_path / name)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(NotSupportedYetError, match="tf2onnx"):
        qcompiler.compile(tmp_path / "saved")


def test_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = OnnxModel(model_of(graph_of(nodes, {"x": [2, 3]}, ["y"])))
    monkeypatch.setattr(source, "parse_device", torch.device)
    with pytest.raises(InputError, match="captured on the processor"):
        capture(model, torch.randn(2, 3), device="cuda")


def test_identifiers() -> None:
    assert source._identifiers(["a", "a:0", "1x", "class", "a.0"]) == ["a", "a_0", "_1x", "_class", "a_0_"]


def test_a_name_that_python_allows_is_never_that_of_another_input() -> None:
    assert source._identifiers(["a.b", "a_b", "a_b_"]) == ["a_b__", "a_b", "a_b_"]


RATE = [
    helper.make_node("Cast", ["rate"], ["real"], to=1),
    helper.make_node("Mul", ["x", "real"], ["z"]),
    helper.make_node("Relu", ["z"], ["y"]),
]
RATED = model_of(graph_of(RATE, {"x": ["N", 3], "rate": []}, ["y"], types={"rate": TensorProto.INT64}))


def test_inputs_are_fixed_by_every_function_that_takes_a_model() -> None:
    data, given = [torch.randn(4, 3)], {"rate": 2}
    network = qcompiler.compile(RATED, calibration_data=data, fixed_inputs=given)
    assert network.quantized.main.input_names == ["x"]
    x = data[0]
    assert torch.allclose(network.run(x), torch.relu(2 * x), atol=0.05)  # type: ignore[arg-type]
    assert qcompiler.check(RATED, fixed_inputs=given).passed
    qcompiler.analyze(RATED, calibration_data=data, fixed_inputs=given)
    qcompiler.memory_movement(RATED, fixed_inputs=given)
    qcompiler.mixed_precision(RATED, "int8_dsp", data, fixed_inputs=given)
    qcompiler.autoquant(RATED, "int8_dsp", data, lambda model: 1.0, fixed_inputs=given)
    qcompiler.prepare_qat(RATED, calibration_data=data, fixed_inputs=given)
    qcompiler.prepare_quantized_training(RATED, calibration_data=data, fixed_inputs=given)


@pytest.mark.parametrize("model", [nn.Linear(3, 2).eval(), OnnxModel(RATED), "network.pt2"])
def test_inputs_of_other_models_are_not_fixed(model: nn.Module | OnnxModel | str) -> None:
    with pytest.raises(InputError, match="fixed_inputs= is for ONNX files"):
        qcompiler.compile(model, fixed_inputs={"rate": 2})


def test_the_command_line_fixes_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rated.onnx"
    path.write_bytes(RATED.SerializeToString())
    assert main(["check", str(path), "--fixed-input", "rate=2"]) == 0
    for text, words in (("rate", "NAME=VALUE"), ("rate=two", "a number, true or false"), ("rate=2.5", "int64 values")):
        assert main(["check", str(path), "--fixed-input", text]) == 1
        assert words in capsys.readouterr().err


def test_inputs_have_the_names_of_the_file_too() -> None:
    nodes = [helper.make_node("Add", ["in:0", "in.1"], ["y"])]
    model = model_of(graph_of(nodes, {"in:0": ["N", 3], "in.1": ["N", 3]}, ["y"]))
    x, z = torch.randn(4, 3), torch.randn(4, 3)
    compiled = qcompiler.compile(model, calibration_data=[{"in:0": x, "in.1": z}])
    by_name = compiled.run(**{"in.1": z, "in:0": x})
    assert torch.equal(by_name, compiled.run(x, z))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="both the parameter 'in_0'"):
        compiled.run(**{"in:0": x, "in_0": x, "in.1": z})
