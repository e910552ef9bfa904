"""Recurrent layers of ONNX: the cases of its own tests."""

from __future__ import annotations

from qcompiler.frontends.onnx import recurrent
from tests.frontends.onnx.cases import operators_of, unexpected


def test_the_cases_of_onnx() -> None:
    assert unexpected(operators_of(recurrent), {}) == []
