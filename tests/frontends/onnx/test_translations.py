"""The table of translations, and operators that have none: the cases of ONNX's own tests."""

from __future__ import annotations

from pathlib import Path

from qcompiler.frontends.onnx.table import TRANSLATIONS
from qcompiler.frontends.onnx.translations import MODULES
from tests.frontends.onnx.cases import every_case, operator_of, operators_of, unexpected

ROOT = Path(__file__).parents[3]

REFUSED = {
    "bernoulli_*": "is not read",
    "causal_conv_with_state_kernel_size_one": "getitem",
    "causal_conv_with_state_silu_with_past_state": "is not read",
    "causal_conv_with_state_with_past_state": "is not read",
    "linear_attention_delta": "is not read",
    "linear_attention_explicit_scale": "is not read",
    "linear_attention_gated": "is not read",
    "linear_attention_gated_delta": "is not read",
    "linear_attention_gated_delta_beta_scalar": "is not read",
    "linear_attention_gated_delta_gqa": "is not read",
    "linear_attention_gated_delta_mqa": "is not read",
    "linear_attention_gated_per_head_decay": "is not read",
    "maxunpool_*": "is not read",
    "melweightmatrix": "is not read",
    "nonmaxsuppression_*": "is not read",
    "optional_get_element_tensor": "is not read",
    "qlinearconv": "is not read",
    "scan_sum": "the file has operators of opset 8",
    "stft*": "is not read",
    "tensorscatter*": "is not read",
    "unique_*": "is not read",
}
EXPANDED = {
    "attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal_expanded": "returns infinity",
    "attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal_expanded": "returns infinity",
    "bernoulli_*": "is not read",
    "castlike_DOUBLE_to_FLOAT_expanded": "contains NaN or infinity",
    "castlike_FLOAT16_to_FLOAT_expanded": "contains NaN or infinity",
    "castlike_FLOAT_to_DOUBLE_expanded": "contains NaN or infinity",
    "castlike_FLOAT_to_FLOAT16_expanded": "contains NaN or infinity",
    "causal_conv_with_state_kernel_size_one_expanded": "getitem",
    "range_float_type_positive_delta_expanded": "the operand 0 of Loop depends on the inputs",
    "reduce_*_empty_set*": "is empty",
}


def test_every_translation_belongs_to_a_module() -> None:
    found = [operators_of(module) for module in MODULES]
    assert set.union(*found) == set(TRANSLATIONS)
    assert sum(map(len, found)) == len(TRANSLATIONS)


def test_the_page_lists_all_operators() -> None:
    listed = (ROOT / "docs/reference/onnx.md").read_text(encoding="utf-8").partition("## Operators")[2]
    assert {word.strip(" `\n") for word in listed.split(",")} == {*TRANSLATIONS, "If", "Loop", "Scan"}


def test_the_cases_of_operators_without_translation() -> None:
    """Operators that ONNX defines by others are read as those; loops are unrolled."""
    without = {operator_of(case) for case in every_case()} - set(TRANSLATIONS)
    assert unexpected(without, REFUSED) == []


def test_the_cases_with_functions_in_place_of_operators() -> None:
    assert unexpected(set(), EXPANDED, expanded=True) == []
