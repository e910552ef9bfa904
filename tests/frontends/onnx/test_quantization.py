"""Quantizers and products of codes of ONNX: the cases of its own tests."""

from __future__ import annotations

from qcompiler.frontends.onnx import quantization
from tests.frontends.onnx.cases import operators_of, unexpected


def test_the_cases_of_onnx() -> None:
    assert unexpected(operators_of(quantization), {}) == []
