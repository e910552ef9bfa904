"""Resizing of ONNX: the cases of its own tests."""

from __future__ import annotations

from qcompiler.frontends.onnx import resize
from tests.frontends.onnx.cases import operators_of, unexpected

REFUSED = {
    "resize_downsample_scales_cubic_align_corners": "differs by",
    "resize_downsample_scales_cubic_antialias": "captured graph and the model differ",
    "resize_downsample_scales_linear_align_corners": "differs by",
    "resize_downsample_scales_linear_antialias": "captured graph and the model differ",
    "resize_downsample_sizes_cubic_antialias": "captured graph and the model differ",
    "resize_downsample_sizes_linear_antialias": "captured graph and the model differ",
    "resize_tf_crop_and_resize*": "Resize with tf_crop_and_resize",
}


def test_the_cases_of_onnx() -> None:
    assert unexpected(operators_of(resize), REFUSED) == []
