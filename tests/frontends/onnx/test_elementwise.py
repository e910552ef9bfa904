"""Elementwise operators of ONNX: the cases of its own tests."""

from __future__ import annotations

from qcompiler.frontends.onnx import elementwise
from tests.frontends.onnx.cases import operators_of, unexpected

REFUSED = {
    "cast_FLOAT_to_DOUBLE": "contains NaN or infinity",
    "cast_FLOAT_to_FLOAT16": "contains NaN or infinity",
    "castlike_DOUBLE_to_FLOAT": "contains NaN or infinity",
    "castlike_FLOAT16_to_FLOAT": "contains NaN or infinity",
    "castlike_FLOAT_to_DOUBLE": "contains NaN or infinity",
    "castlike_FLOAT_to_FLOAT16": "contains NaN or infinity",
    "isinf*": "contains NaN or infinity",
    "isnan": "contains NaN or infinity",
    "mod_float_edge_cases_fmod_0_float32": "contains NaN or infinity",
    "pow_types_float32_uint32": "a power whose exponent is a tensor",
    "pow_types_float32_uint64": "a power whose exponent is a tensor",
    "training_dropout*": "in training mode",
}


def test_the_cases_of_onnx() -> None:
    assert unexpected(operators_of(elementwise), REFUSED) == []
