"""Softmax in every form and mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import TargetError, UnsupportedError
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.modes import SoftmaxMode
from qcompiler.quant.softmax import softmax_codes, softmax_parameters
from qcompiler.targets import Target, load_target


class Attention(nn.Module):
    """Attention of two heads by its formula, and a softmax over channels: [N, 9, 16] -> [N, 2, 9, 8], [N, 9, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layers = (self.query, self.key, self.value)
        query, key, value = (layer(x).reshape(x.shape[0], 9, 2, 8).transpose(1, 2) for layer in layers)
        return torch.softmax(query @ key.transpose(-2, -1), -1) @ value, nn.functional.softmax(x, 1)


def attention() -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = Attention().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model, torch.randn(4, 9, 16, generator=generator)


MODES = {"int8_dsp": "table", "ort_cpu": "f32", "tflite_int8": "gemmlowp", "int16x8": "lut16", "pow2_mcu": "table"}


@pytest.mark.parametrize("target", MODES)
def test_all_forms_agree_in_every_mode(target: str) -> None:
    model, x = attention()
    compiled = qcompiler.compile(model, target, calibration_data=[x])
    assert compiled.verification is not None and compiled.verification.passed
    statuses = {form.name: form.status for form in compiled.verification.forms}
    assert {statuses[name] for name in ("integer graph", "integer program", "C")} == {"equal"}
    softmaxes = [item for item in compiled.artifact.program.program.instructions if item.op == "int_softmax"]
    assert [item.attributes["mode"] for item in softmaxes] == [MODES[target]] * 2
    if target == "ort_cpu":
        assert set(statuses.values()) == {"equal"}, "ONNX Runtime's kernel on codes"
    with torch.no_grad():
        expected = model(x)
    results = compiled.run(x)
    assert isinstance(results, tuple)
    for result, wanted in zip(results, expected, strict=True):
        assert float((result - wanted).abs().max()) < 0.15 * float(wanted.abs().max())


class Classes(nn.Module):
    """Log-probabilities of 30 classes, [N, 6] -> [N, 30]: most of them are below 1/512."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 30)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(4.0 * self.layer(x), 1)


@pytest.mark.parametrize("target", [*MODES, "hexagon_htp_a16w8"])
def test_log_softmax_agrees_in_all_forms_and_keeps_small_probabilities(target: str) -> None:
    torch.manual_seed(0)
    model, x = Classes().eval(), torch.randn(64, 6)
    compiled = qcompiler.compile(model, target, calibration_data=[x])
    assert compiled.verification is not None and compiled.verification.passed
    statuses = {form.name: form.status for form in compiled.verification.forms}
    assert {statuses[name] for name in ("integer graph", "integer program", "C")} == {"equal"}
    with torch.no_grad():
        wanted = model(x)
    wanted = wanted.clamp(min=-255 / 16) if target == "tflite_int8" else wanted  # the fixed grid
    found = compiled.run(x)
    assert isinstance(found, Tensor)
    assert float((wanted < -6.2).float().mean()) > 0.3
    assert float((found - wanted).abs().max()) < 0.06 * float(wanted.abs().max())


def test_the_range_of_a_log_softmax_is_known_without_data() -> None:
    torch.manual_seed(0)
    model, x = Classes().eval(), torch.randn(512, 6)
    compiled = qcompiler.compile(model, "int8_dsp", example_inputs=x[:2])
    with torch.no_grad():
        wanted = model(x)
    program = compiled.artifact.program.program
    name = next(item.output for item in program.instructions if item.op == "int_log_softmax")
    assert 0.7 < 256 * program.tensors[name].scale[0] / -float(wanted.min()) < 2.0


@pytest.mark.parametrize("mode", list(SoftmaxMode))
def test_codes_are_near_the_real_numbers_and_a_mask_leaves_elements_out(mode: SoftmaxMode) -> None:
    wide = mode is SoftmaxMode.LUT16
    steps, zero_point = (32768, 0) if wide else (256, -128)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-128, 128, (5, 7, 3), generator=generator) * (256 if wide else 1)
    kept = torch.rand(5, 7, 1, generator=generator) > 0.4
    kept[0] = False
    scale = torch.tensor(0.03 / (256 if wide else 1))
    source = AffineParams(scale, torch.tensor(5, dtype=torch.int32))
    target = AffineParams(torch.tensor(1.0 / steps), torch.tensor(zero_point, dtype=torch.int32))
    p = softmax_parameters(source, target, mode, count=7, distance=65535 if wide else 255, bits=16 if wide else 8)
    low, high = (-32768, 32767) if wide else (-128, 127)
    found = softmax_codes(codes, 1, p, kept, out_zero_point=zero_point, qmin=low, qmax=high)
    assert set(found[0].reshape(-1).tolist()) == {zero_point}, "a row without elements is 0"
    exact = torch.softmax((codes * scale).double().masked_fill(~kept, -torch.inf), 1)[1:]
    error = (found[1:] - zero_point - (exact * steps).clamp(max=high - zero_point)).abs()
    assert float(error.max()) <= (16 if wide else 1)
    assert bool((found[1:] == zero_point)[~kept.expand(codes.shape)[1:]].all())


def test_what_a_mode_does_not_compute_is_refused() -> None:
    model, x = attention()
    symmetric = load_target("ort_cpu").override(symmetric_activations=True)
    with pytest.raises(UnsupportedError, match=r"a softmax with the scale .*Attention\.forward.*1/256"):
        qcompiler.compile(model, symmetric, calibration_data=[x])
    with pytest.raises(UnsupportedError, match=r"softmax over an axis of symbolic size"):
        qcompiler.compile(nn.Softmax(0).eval(), "int8_dsp", calibration_data=[x])
    data = load_target("int8_dsp").descriptor.model_dump(mode="json", by_alias=True)
    data["softmax"]["mode"] = "lut16"
    with pytest.raises(TargetError, match="mode is lut16, which computes 16-bit results"):
        Target.of(data, "test")


@pytest.mark.parametrize("target", ["int8_dsp", "ort_cpu"])
def test_the_attention_of_torch_runs_in_integers(target: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return result + x

    torch.manual_seed(0)
    x = torch.randn(4, 9, 16)
    compiled = qcompiler.compile(Block().eval(), target, calibration_data=[x])
    assert compiled.verification is not None and compiled.verification.passed
    assert not compiled.artifact.islands
    ops = [item.op for item in compiled.artifact.program.program.instructions]
    assert (ops.count("int_matmul"), ops.count("int_softmax")) == (2, 1)


def test_a_mask_stretches_no_range_and_gives_zero() -> None:
    class Causal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = torch.tril(torch.ones(9, 9, dtype=torch.bool))
            return torch.softmax(x.masked_fill(~kept, torch.finfo(torch.float32).min), -1)

    x = torch.randn(4, 9, 9, generator=torch.Generator().manual_seed(0))
    model = Causal().eval()
    compiled = qcompiler.compile(model, "int8_dsp", calibration_data=[x])
    assert compiled.verification is not None and compiled.verification.passed
    result = compiled.run(x)
    assert isinstance(result, Tensor)
    assert not bool(result.triu(1).any())
    assert float((result - model(x)).abs().max()) < 0.02


TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "vision": lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10),
    "swin": lambda: torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=10),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_run_in_integers_throughout(name: str) -> None:
    torch.manual_seed(0)
    model = TRANSFORMERS[name]().eval()
    if name == "vision":
        nn.init.normal_(model.get_parameter("heads.head.weight"))
    x = torch.randn(2, 3, 32, 32)
    compiled = qcompiler.compile(model, load_target("int8_dsp_per_channel"), calibration_data=[x])
    assert compiled.verification is not None and compiled.verification.passed
    assert not compiled.artifact.islands
    assert compiled.verification.form("C").status == "equal"
