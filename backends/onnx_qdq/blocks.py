"""Weights with one scale per block of inputs, in ONNX."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from qcompiler.ir.graph import Node
from qcompiler.ir.types import QuantParams
from qcompiler.ops.quantizers import leaf_tensor

Array = npt.NDArray[np.generic]

INT8_MOST = 127
SCALE_TOLERANCE = 2.0**-19
"""ONNX Runtime multiplies a layer in integers if the bias scale equals the scale of the products up to an absolute
error of about 1e-6: 1.7e-7 was accepted, 1.7e-6 was not."""


def scales(quant: QuantParams, factors: Array, inputs: int, shape: tuple[int, ...]) -> Array:
    """The scale of each block, the channel scale times the factor, in the shape for DequantizeLinear.

    Args:
        quant: Scales of the channels.
        factors: [channels, blocks].
        inputs: The axis of the weight that is divided into blocks, 0 or 1.
        shape: Shape of the weight.
    """
    scale = np.asarray(quant.scale, np.float32)[:, None] * factors.astype(np.float32)
    scale = scale if inputs == 1 else scale.T
    return np.broadcast_to(scale.reshape(*scale.shape, *[1] * (len(shape) - 2)), (*scale.shape, *shape[2:]))


def seem_channels(node: Node, quant: QuantParams, factors: Array) -> bool:
    """Whether ONNX Runtime treats block scales, one per channel, as channel scales.

    It only checks whether the bias scale equals the scale of the products, and then fails on the shape of the scales at
    run time. This happens for weights that are all zero or very small.

    Args:
        node: The layer.
        quant: Scales of the channels.
        factors: [channels, blocks].
    """
    if factors.shape[1] > 1:
        return False
    read = node.inputs[0].type.quant
    steps = np.asarray(quant.scale, np.float64) * (1.0 if read is None else read.scale[0])
    return bool((steps * (factors[:, 0].astype(np.float64) - 1.0) <= SCALE_TOLERANCE).all())


def products(expand: Node) -> npt.NDArray[np.int16]:
    """The codes of a weight times the factors of their blocks, in steps of the channel scales."""
    found = expand.definition.evaluate(expand, [leaf_tensor(value) for value in expand.inputs])[0]
    return cast("npt.NDArray[np.int16]", found.numpy())
