"""Sampling of ONNX: the cases of its own tests."""

from __future__ import annotations

from qcompiler.frontends.onnx import sampling
from tests.frontends.onnx.cases import operators_of, unexpected

REFUSED = {
    "col2im_5d": "Col2Im over 3 spatial axes",
    "dft_irfft": "DFT that returns real numbers of one side",
    "dft_irfft_opset19": "DFT that returns real numbers of one side",
    "roialign_mode_max": "RoiAlign of maxima",
}


def test_the_cases_of_onnx() -> None:
    assert unexpected(operators_of(sampling), REFUSED) == []
