"""The target in which papers on few bits report: where its quantizers stand, and that nothing is compiled for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler import errors
from qcompiler.quant.spec import QuantSpec
from qcompiler.training.batch_norm import BatchNorm
from qcompiler.training.quantizer import Quantizer
from tests.training.networks import INPUTS, small


def quantizers(module: nn.Module) -> dict[str, QuantSpec]:
    return {name: item.spec for name, item in module.named_modules() if isinstance(item, Quantizer)}


def test_quantizers_stand_on_what_layers_read() -> None:
    target = qcompiler.load_target("lsq_paper").override(weight_bits=3, activation_bits=3)
    module = qcompiler.prepare_qat(small(), target, calibration_data=[INPUTS])
    found = quantizers(module)
    assert set(found) == {
        "stem.0.weight_quantizer",
        "depthwise.0.weight_quantizer",
        "point.0.weight_quantizer",
        "head.weight_quantizer",
        "depthwise.0.input.quantizer",
        "point.0.input.quantizer",
        "head.input.quantizer",
    }
    bits = {name: spec.bits for name, spec in found.items()}
    assert {name for name, width in bits.items() if width == 8} == {
        "stem.0.weight_quantizer",
        "head.weight_quantizer",
        "head.input.quantizer",
    }
    assert set(bits.values()) == {3, 8}
    for name, spec in found.items():
        assert spec.symmetric
        assert spec.axis is None
        # After a ReLU there is no sign to spend a bit on; the input of the head has both signs.
        assert spec.signed == (name not in ("depthwise.0.input.quantizer", "point.0.input.quantizer"))
    assert sum(isinstance(item, BatchNorm) for item in module.modules()) == 3, "in float, after their layers"


def clamped(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, low: float | None = None, high: float | None = None
) -> Tensor:
    """The part of a quantizer that does not quantize: the preceding activation."""
    return x if low is None and high is None else x.clamp(low, high)


def test_everything_else_is_in_float() -> None:
    module = qcompiler.prepare_qat(small(), "lsq_paper", calibration_data=[INPUTS])
    for item in module.modules():
        if isinstance(item, Quantizer):
            item.forward = clamped  # type: ignore[method-assign,assignment]
    found = module.eval()(INPUTS)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, small()(INPUTS), rtol=1e-4, atol=1e-5)


def test_nothing_is_compiled_for_it() -> None:
    reason = "for simulation only: additions, batch norms and the first input stay in float"
    with pytest.raises(errors.UnsupportedError, match=reason):
        qcompiler.compile(small(), "lsq_paper", example_inputs=INPUTS)
    module = qcompiler.prepare_qat(small(), "lsq_paper", calibration_data=[INPUTS])
    with pytest.raises(errors.UnsupportedError, match=reason):
        qcompiler.compile(module)
    with pytest.raises(errors.UnsupportedError, match="no integer program"):
        module.quantized()
