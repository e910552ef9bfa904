"""Elements that a target rounds otherwise than ONNX Runtime are found one by one, and a defect is none of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qcompiler
from qcompiler.backends import onnx_qdq
from qcompiler.backends.integer import Executor
from qcompiler.errors import VerificationError
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.program.files import ProgramFiles
from qcompiler.quant.requant import (
    RequantMode,
    multiply_by_quantized_multiplier,
    prepare_requantization,
    rounding_reach,
)
from qcompiler.session.pipeline import default_pipeline
from qcompiler.verification import rounded_once
from qcompiler.verification.forms import Forms, verify
from qcompiler.verification.rounded_once import RoundedOnce
from tests.support.forms import onnx_form, onnx_of

INTEGER_MODES = [mode for mode in RequantMode if mode is not RequantMode.FLOAT32_RNE]


def exact(acc: int, significand: int | None, exponent: int, mode: RequantMode) -> Fraction:
    """The product without any rounding."""
    return (
        acc
        * Fraction(1 if significand is None else significand)
        * Fraction(2) ** (exponent - mode.form.significand_bits)
    )


@pytest.mark.parametrize("mode", INTEGER_MODES)
@given(real=st.floats(2.0**-12, 1.5), acc=st.integers(-(2**24), 2**24))
@settings(max_examples=150)
def test_no_result_is_out_of_reach(mode: RequantMode, real: float, acc: int) -> None:
    if mode.is_shift:
        real = 2.0 ** round(np.log2(real))
    item = prepare_requantization(torch.tensor([real], dtype=torch.float64), mode)
    assert item.exponent is not None
    significand = None if item.multiplier is None else int(item.multiplier)
    found = int(multiply_by_quantized_multiplier(torch.tensor([acc]), item.multiplier, item.exponent, mode))
    distance = abs(found - exact(acc, significand, int(item.exponent), mode))
    assert distance <= Fraction(float(rounding_reach(item.exponent, mode)))


@pytest.mark.parametrize("mode", INTEGER_MODES)
@pytest.mark.parametrize("right", [1, 2, 5])
def test_the_reach_is_no_larger_than_it_must_be(mode: RequantMode, right: int) -> None:
    """Some accumulator comes within a hundredth of a step of it."""
    exponent = torch.tensor([-right], dtype=torch.int8)
    bits = mode.form.significand_bits
    significand = None if mode.is_shift else torch.tensor([int(0.618034 * 2**bits)])
    accs = torch.arange(-(2**10), 2**10)
    found = multiply_by_quantized_multiplier(accs, significand, exponent, mode)
    factor = exact(1, None if significand is None else int(significand), -right, mode)
    farthest = max(abs(int(code) - int(acc) * factor) for code, acc in zip(found, accs, strict=True))
    reach = float(rounding_reach(exponent, mode))
    # Shifts have no remainders between the multiples of 2^-right.
    assert reach - (2.0**-right if mode.is_shift else 0.01) <= float(farthest) <= reach


class Few(nn.Module):
    """A transposed convolution whose stride is larger than its kernel: most of what it gives is a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 1, stride=3, output_padding=2)
        self.conv = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def few(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return Few().eval(), torch.randn(4, 4, 6, 6)


TARGETS: dict[str, dict[str, object]] = {
    "twice": {"requantize": "double"},
    "twice, half up": {"requantize": "double_hu", "activation_bits": 6},
    "a multiplier of 15 bits": {"requantize": "tosa16", "activation_bits": 16},
    "half away": {"requantize": "nvdla_cvt", "symmetric_activations": True},
    "shifts": {"requantize": "pow2_shift", "power_of_two": True, "symmetric_activations": True},
    "shifts, down": {"requantize": "pow2_shift_floor", "power_of_two": True},
    "shifts, towards zero": {"requantize": "pow2_shift_trunc", "power_of_two": True},
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", TARGETS)
def test_layers_of_few_products_are_verified(case: str, seed: int) -> None:
    target = qcompiler.load_target("int8_dsp").override(**TARGETS[case])
    # A multiplier of 15 bits is off by up to 2^-15 of a code of 16 bits: by one step, before the rounding of both.
    most = 2 if target.activation_bits == 16 else 1
    model, x = few(seed)
    report = qcompiler.compile(model, target, calibration_data=[x]).verification
    assert report is not None and report.passed
    for form in report.forms:
        if "layer by layer" in form.name:
            assert form.status in ("equal", "within bound") and form.largest <= most


def test_a_share_alone_would_refuse_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for the bound: where most outputs are one number, two roundings move more than any useful share."""
    target = qcompiler.load_target("int8_dsp").override(requantize="double", weight_bits=4)

    def is_refused(seed: int) -> bool:
        model, x = few(seed)
        compiled = qcompiler.compile(model, target, calibration_data=[x])
        with monkeypatch.context() as patch:
            patch.setattr(RoundedOnce, "codes", lambda *_, **__: None)
            forms = Forms(compiled.artifact.program, onnx_form(onnx_of(compiled.artifact)))
            return not verify(forms, [x], target).passed

    assert any(map(is_refused, range(12)))


def test_a_result_next_to_a_tie_may_have_the_code_of_a_product_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21 * 90 + 14 times m is 61.49998: the program rounds it down, float32 makes 61.5 of it. Found in a DenseNet."""
    scale_x, scale_w, scale_y = 0.08586794883012772, 0.011135484091937542, 0.02960274927318096
    model = nn.Conv2d(1, 1, 1).eval()
    with torch.no_grad():
        model.weight.fill_(90 * scale_w)
        model.bias.fill_(14 * scale_x * scale_w)  # type: ignore[union-attr]
    x = torch.full((4, 1, 8, 8), 21 * scale_x)
    found = json.loads(qcompiler.compile(model, calibration_data=[x], verify="off").encodings())
    found["param_encodings"] = [item for item in found["param_encodings"] if "bias" not in item["name"]]
    for item in (*found["activation_encodings"], *found["param_encodings"]):
        item["scale"] = [scale_w if "weight" in item["name"] else scale_x if "input" in item["name"] else scale_y]
    path = tmp_path / "encodings.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    report = qcompiler.compile(model, calibration_data=[x], encodings=path).verification
    assert report is not None
    form = report.form("onnxruntime, layer by layer")
    assert (form.status, form.first, form.largest) == ("within bound", "conv2d.q", 1)
    assert form.differing >= 256
    monkeypatch.setattr(rounded_once, "_PRODUCT", 0)
    with pytest.raises(VerificationError, match=r"first in %conv2d\.q"):
        qcompiler.compile(model, calibration_data=[x], encodings=path)


class Taps(nn.Module):
    """Two weights of four bits and no bias: many sums lie on a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 7, (1, 2), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.hardtanh(x))  # type: ignore[no-any-return]


def test_ties_of_sums_in_float32_are_found_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_refused(seed: int) -> bool:
        torch.manual_seed(seed)
        model, x = Taps().eval(), torch.randn(4, 1, 1, 7)
        # Clipped ranges have scales that lead to many ties.
        every = default_pipeline()
        passes = [CalibrateActivations("percentile") if isinstance(p, CalibrateActivations) else p for p in every]
        overrides = {"conv": {"weight_bits": 4}}
        compiled = qcompiler.compile(model, "ort_cpu", calibration_data=[x], overrides=overrides, passes=passes)
        assert compiled.verification is not None and compiled.verification.passed
        with monkeypatch.context() as patch:
            patch.setattr("qcompiler.verification.rounded_once._FEW", 0.0)
            return not compiled.verify().passed

    assert any(map(is_refused, (4, 0, 1, 2, 3, 5))), "a share alone would suffice"


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_fault_is_no_tie_of_float32(place: int) -> None:
    """Weight, bias and multiplier of a target that rounds as ONNX Runtime does."""
    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 4, 3).eval(), torch.randn(4, 3, 8, 8)
    compiled = qcompiler.compile(model, "ort_cpu", calibration_data=[x])
    files, constants = compiled.artifact.program, dict(compiled.artifact.program.constants)
    layer = next(item for item in files.program.instructions if item.op == "int_conv2d")
    array = constants[layer.inputs[place]]
    constants[layer.inputs[place]] = np.asarray(
        array.astype(np.float64) * 1.02 + (60 if place == 2 else 0), array.dtype
    )
    report = verify(
        Forms(ProgramFiles(files.program, constants), onnx_form(onnx_of(compiled.artifact))), [x], compiled.target
    )
    assert report.form("onnxruntime unoptimized, layer by layer").status == "differs"


def changed(place: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ProgramFiles], ProgramFiles]:
    """A fault in an operand of the transposed convolution."""

    def inject(files: ProgramFiles) -> ProgramFiles:
        layer = next(item for item in files.program.instructions if item.op == "int_conv_transpose2d")
        constants = copy.copy(dict(files.constants))
        array = constants[layer.inputs[place]]
        constants[layer.inputs[place]] = np.asarray(change(array.copy()), array.dtype)
        return ProgramFiles(files.program, constants)

    return inject


FAULTS = {
    "a multiplier that is wrong by half a percent": changed(3, lambda m: (m * 1.005).astype(np.int64)),
    "a shift": changed(4, lambda e: e - 1),
    "a bias": changed(2, lambda b: b + 60),
    "a weight": changed(1, lambda w: -w),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_not_explained(fault: str) -> None:
    """The program is the reference, as for an artifact from disk: only ONNX Runtime shows that it is wrong."""
    target = qcompiler.load_target("int8_dsp").override(requantize="double")
    model, x = few(0)
    compiled = qcompiler.compile(model, target, calibration_data=[x])
    files = compiled.artifact.program
    assert verify(Forms(files, onnx_form(onnx_of(compiled.artifact))), [x], target).passed
    report = verify(Forms(FAULTS[fault](files), onnx_form(onnx_of(compiled.artifact))), [x], target)
    assert not report.passed
    assert (
        report.form("onnxruntime, layer by layer").first == "up.q"
        or "relu" in report.form("onnxruntime unoptimized, end to end").first
    )


def test_a_wrong_rounding_is_not_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference that always rounds down is one step off, as two roundings may be, but not where these may be."""
    target = qcompiler.load_target("int8_dsp").override(requantize="double")
    model, x = few(1)
    compiled = qcompiler.compile(model, target, calibration_data=[x])
    from qcompiler.program import arithmetic

    right = arithmetic.shift_right

    def down(value: np.ndarray, shift: object, ties: object) -> np.ndarray:
        return right(value, shift, ties) if ties == "up" else value >> np.asarray(shift)  # type: ignore[arg-type]

    monkeypatch.setattr(arithmetic, "shift_right", down)
    assert not verify(Forms(compiled.artifact.program, onnx_form(onnx_of(compiled.artifact))), [x], target).passed


def test_what_is_no_layer_has_no_other_codes() -> None:
    target = qcompiler.load_target("int8_dsp").override(requantize="double")
    model, x = few(0)
    compiled = qcompiler.compile(model, target, calibration_data=[x])
    executor = Executor(compiled.artifact.program)
    codes: dict[str, np.ndarray] = {}
    executor.run([x.numpy()], codes.__setitem__)
    rounded = RoundedOnce(executor, target)
    assert rounded.codes("x.q", codes, codes["x.q"]) is None
    layer = next(item for item in compiled.artifact.program.program.instructions if item.op == "int_conv2d")
    other = rounded.codes(layer.output, codes, codes[layer.output])
    assert other is not None and np.abs(other - codes[layer.output]).max() <= 1
    assert rounded.codes(layer.output, {}, codes[layer.output]) is None, "the operand is not known"
    float_target = qcompiler.load_target("ort_cpu")
    compiled = qcompiler.compile(model, float_target, calibration_data=[x])
    rounded = RoundedOnce(Executor(compiled.artifact.program), float_target)
    assert rounded.codes(layer.output, codes, codes[layer.output]) is None, "the operator rounds once itself"
    assert onnx_qdq.emit(compiled.integer.main) == onnx_of(compiled.artifact)
