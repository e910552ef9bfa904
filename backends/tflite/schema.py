"""Numbers and slots of the schema of TensorFlow Lite, version 3.

Source: tensorflow/compiler/mlir/lite/schema/schema.fbs, as in ai-edge-litert 2.3.0.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.backends.tflite.flatbuffer import Field, Kind

__all__ = ["ACTIVATIONS", "IDENTIFIER", "OPERATORS", "OPTIONS", "SAME", "TYPES", "VALID", "VERSION", "options"]

IDENTIFIER, VERSION = b"TFL3", 3
SAME, VALID = 0, 1
"""Paddings."""
TYPES: Mapping[str, int] = {"f32": 0, "i32": 2, "u8": 3, "i64": 4, "i16": 7, "i8": 9}
"""Element types."""
ACTIVATIONS: Mapping[str, int] = {"none": 0, "relu": 1, "relu6": 3}
"""Fused activations."""
OPERATORS: Mapping[str, tuple[int, int]] = {
    "ADD": (0, 2),
    "AVERAGE_POOL_2D": (1, 2),
    "CONCATENATION": (2, 2),
    "CONV_2D": (3, 3),
    "DEPTHWISE_CONV_2D": (4, 3),
    "DEQUANTIZE": (6, 2),
    "FULLY_CONNECTED": (9, 4),
    "LOGISTIC": (14, 2),
    "MAX_POOL_2D": (17, 2),
    "MUL": (18, 2),
    "RESHAPE": (22, 1),
    "SOFTMAX": (25, 2),
    "TANH": (28, 2),
    "GATHER": (36, 2),
    "TRANSPOSE": (39, 2),
    "MEAN": (40, 2),
    "SUB": (41, 2),
    "STRIDED_SLICE": (45, 2),
    "CAST": (53, 1),
    "MAXIMUM": (55, 2),
    "MINIMUM": (57, 2),
    "PADV2": (60, 2),
    "TRANSPOSE_CONV": (67, 3),
    "QUANTIZE": (114, 2),
    "BATCH_MATMUL": (126, 2),
}
"""Number and version of each operator."""
OPTIONS: Mapping[str, tuple[int, Mapping[str, tuple[int, Kind]]]] = {
    "Conv2DOptions": (
        1,
        {
            "padding": (0, "i8"),
            "stride_w": (1, "i32"),
            "stride_h": (2, "i32"),
            "activation": (3, "i8"),
            "dilation_w": (4, "i32"),
            "dilation_h": (5, "i32"),
        },
    ),
    "DepthwiseConv2DOptions": (
        2,
        {
            "padding": (0, "i8"),
            "stride_w": (1, "i32"),
            "stride_h": (2, "i32"),
            "multiplier": (3, "i32"),
            "activation": (4, "i8"),
            "dilation_w": (5, "i32"),
            "dilation_h": (6, "i32"),
        },
    ),
    "Pool2DOptions": (
        5,
        {
            "padding": (0, "i8"),
            "stride_w": (1, "i32"),
            "stride_h": (2, "i32"),
            "width": (3, "i32"),
            "height": (4, "i32"),
            "activation": (5, "i8"),
        },
    ),
    "FullyConnectedOptions": (8, {"activation": (0, "i8"), "keep_axes": (2, "bool")}),
    "SoftmaxOptions": (9, {"beta": (0, "f32")}),
    "ConcatenationOptions": (10, {"axis": (0, "i32")}),
    "AddOptions": (11, {"activation": (0, "i8")}),
    "ReshapeOptions": (17, {"shape": (0, "i32s")}),
    "MulOptions": (21, {"activation": (0, "i8")}),
    "GatherOptions": (23, {"axis": (0, "i32")}),
    "TransposeOptions": (26, {}),
    "ReducerOptions": (27, {"keep_axes": (0, "bool")}),
    "SubOptions": (28, {"activation": (0, "i8")}),
    "StridedSliceOptions": (32, {"begin_mask": (0, "i32"), "end_mask": (1, "i32")}),
    "CastOptions": (37, {"from": (0, "i8"), "to": (1, "i8")}),
    "DequantizeOptions": (38, {}),
    "MaximumMinimumOptions": (39, {}),
    "PadV2Options": (43, {}),
    "TransposeConvOptions": (
        49,
        {"padding": (0, "i8"), "stride_w": (1, "i32"), "stride_h": (2, "i32"), "activation": (3, "i8")},
    ),
    "QuantizeOptions": (89, {}),
    "BatchMatMulOptions": (101, {"transpose_a": (0, "bool"), "transpose_b": (1, "bool")}),
}
"""Number of each table of options, and the slots and kinds of its fields."""


def options(kind: str, fields: Mapping[str, object]) -> tuple[int, dict[int, Field]]:
    """The number of a table of options, and the table."""
    number, slots = OPTIONS[kind]
    return number, {slots[name][0]: Field(slots[name][1], value) for name, value in fields.items()}
