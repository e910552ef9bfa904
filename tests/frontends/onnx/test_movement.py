"""Movement of elements of ONNX: the cases of its own tests."""

from __future__ import annotations

from qcompiler.frontends.onnx import movement
from tests.frontends.onnx.cases import operators_of, unexpected

REFUSED = {
    "gathernd_example_float32": "getitem has indices of torch.int64 with the shape [2, 1]",
    "range_float_type_positive_delta": "the operand 0 of Range depends on the inputs",
    "reshape_allowzero_reordered": "is empty",
    "reversesequence_batch": "ReverseSequence along an axis whose size depends on the batc",
    "reversesequence_time": "ReverseSequence along an axis whose size depends on the batc",
    "slice_start_out_of_bounds": "getitem",
    "split_zero_size_splits_opset13": "is empty",
    "split_zero_size_splits_opset18": "is empty",
}


def test_the_cases_of_onnx() -> None:
    assert unexpected(operators_of(movement), REFUSED) == []
