"""Convolutions, products, poolings and normalizations of ONNX: the cases of its own tests."""

from __future__ import annotations

from qcompiler.frontends.onnx import layers
from tests.frontends.onnx.cases import operators_of, unexpected

REFUSED = {
    "basic_deform_conv_with_padding": "the traced model does not run",
    "basic_deform_conv_without_padding": "the traced model does not run",
    "batchnorm_epsilon_training_mode": "in training mode",
    "batchnorm_example_training_mode": "in training mode",
    "deform_conv_with_multiple_offset_groups": "the traced model does not run",
    "maxpool_with_argmax_2d_precomputed_pads": "the model reads the indices of max_pool2d",
    "maxpool_with_argmax_2d_precomputed_strides": "MaxPool that returns places of column-major order or with un",
}


def test_the_cases_of_onnx() -> None:
    assert unexpected(operators_of(layers), REFUSED) == []
