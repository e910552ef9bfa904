"""Attention of ONNX: the cases of its own tests."""

from __future__ import annotations

from qcompiler.frontends.onnx import attention
from tests.frontends.onnx.cases import operators_of, unexpected

REFUSED = {
    "attention_23_fullymasked_qk_matmul_output_mode3_zero": "captured graph and the model differ",
    "attention_24_fullymasked_qk_matmul_output_mode3_zero": "captured graph and the model differ",
    "attention_4d_diff_heads_mask4d_padded_kv": "does not run on the example inputs",
    "attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal": "captured graph and the model differ",
    "attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal": "captured graph and the model differ",
    "attention_local_window_gqa_rank4_mask": "captured graph and the model differ",
}


def test_the_cases_of_onnx() -> None:
    assert unexpected(operators_of(attention), REFUSED) == []
