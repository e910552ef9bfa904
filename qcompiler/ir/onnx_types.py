"""The table between ONNX operator types and the compiler's operators.

Files of other tools name operators as ONNX does: runtime configurations by type (`Conv`), and exported models in the
names of tensors (`/features/features.0/Conv_output_0`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

OPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Conv": ("conv1d", "conv2d", "conv3d"),
        "ConvTranspose": ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        "Gemm": ("linear",),
        "MatMul": ("matmul", "linear"),
        "Add": ("add",),
        "Sub": ("sub",),
        "Mul": ("mul",),
        "Div": ("div",),
        "Relu": ("relu",),
        "Clip": ("clamp",),
        "GlobalAveragePool": ("mean",),
        "ReduceMean": ("mean",),
        "Mean": ("mean",),
        "AveragePool": ("avg_pool2d", "adaptive_avg_pool2d"),
        "Resize": ("resize",),
        "Upsample": ("resize",),
        "LayerNormalization": ("layer_norm",),
        "BatchNormalization": ("batch_norm",),
        "Sigmoid": ("sigmoid",),
        "HardSigmoid": ("hardsigmoid",),
        "Tanh": ("tanh",),
        "HardSwish": ("hardswish",),
        "Gelu": ("gelu",),
        "LeakyRelu": ("leaky_relu",),
        "PRelu": ("prelu",),
        "Elu": ("elu",),
        "Celu": ("celu",),
        "Selu": ("selu",),
        "Softplus": ("softplus",),
        "Mish": ("mish",),
        "Softsign": ("softsign",),
        "Shrink": ("softshrink", "hardshrink"),
        "Abs": ("abs",),
        "Exp": ("exp",),
        "Log": ("log",),
        "Sqrt": ("sqrt",),
        "Reciprocal": ("reciprocal",),
        "Erf": ("erf",),
        "Sin": ("sin",),
        "Cos": ("cos",),
        "Atan": ("atan",),
        "MaxPool": ("max_pool2d",),
        "Concat": ("concat",),
        "Reshape": ("reshape",),
        "Flatten": ("reshape",),
        "Squeeze": ("reshape",),
        "Unsqueeze": ("reshape",),
        "Transpose": ("permute",),
        "Slice": ("slice",),
        "Split": ("slice",),
        "Pad": ("pad",),
        "Dropout": ("dropout",),
        "Identity": ("identity",),
    }
)
"""ONNX type -> the compiler's operators."""

ELSEWHERE = (
    "BatchPermutation",
    "BatchToSpace",
    "Cast",
    "ChannelShuffle",
    "Compress",
    "CropAndResize",
    "DepthToSpace",
    "Expand",
    "GRU",
    "Gather",
    "GatherND",
    "GroupNormalization",
    "If",
    "InstanceNormalization",
    "LSTM",
    "MaxRoiPool",
    "NonMaxSuppression",
    "NonZero",
    "RMSNormalization",
    "RNN",
    "ReduceMax",
    "ReduceMin",
    "ScatterElements",
    "Shape",
    "Softmax",
    "SpaceToBatch",
    "SpaceToDepth",
    "Tile",
    "TopK",
    "Where",
)
"""ONNX types in runtime configurations without an integer form: they run in float, or are refused."""
