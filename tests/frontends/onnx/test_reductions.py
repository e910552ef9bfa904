"""Reductions of ONNX: the cases of its own tests."""

from __future__ import annotations

from qcompiler.frontends.onnx import reductions
from tests.frontends.onnx.cases import operators_of, unexpected

REFUSED = {
    "reduce_*_empty_set*": "is empty",
}


def test_the_cases_of_onnx() -> None:
    assert unexpected(operators_of(reductions), REFUSED) == []
