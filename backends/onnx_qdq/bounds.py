"""Allowed difference between each layer of a file and the integer program on the same integers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from qcompiler.backends.base import Array, Bound
from qcompiler.ir.registry import Trait, op
from qcompiler.program.files import ProgramFiles
from qcompiler.program.products import products
from qcompiler.program.program import Instruction, Tensor
from qcompiler.quant.arithmetic import ELEMENTWISE_FLOAT32
from qcompiler.quant.modes import SoftmaxMode

MAC_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators of a file that sum products."""
RUNTIME_EXACT = ("GlobalAveragePool", "Sigmoid")
"""Other operators whose integer kernels are reproduced by targets with ONNX Runtime's arithmetic."""
FLOAT_FRACTION = 0.005
"""Share of elements whose float32 sum may round to the other side of a tie."""

INTERPOLATION = 2
"""Largest error of an interpolated exponential of the mode `lut16`, in steps of the result; their sum has as many as a
row has elements."""

SUMS = ("int_add", "int_mean", "int_avg_pool2d", "int_resample2d")
"""Instructions that add elements of their operands."""

BITS_OF_KERNELS = 8
"""Largest width of the codes that ONNX Runtime multiplies as integers."""


def layer_bounds(
    operators: Mapping[str, str], files: ProgramFiles, allowed: Bound, *, optimize: bool
) -> dict[str, Bound]:
    """The bound of each quantized tensor of a file.

    Args:
        operators: ONNX operator that computes each tensor, by name of the tensor.
        files: Integer program of the same model.
        allowed: Bound of layers that sum products. A fraction of 0 says that the target has ONNX Runtime's arithmetic.
        optimize: Whether ONNX Runtime optimizes the file, and so uses its integer kernels.
    """
    same_arithmetic = allowed.fraction == 0
    if not optimize:  # sums in float32 round
        allowed = dataclasses.replace(allowed, fraction=max(allowed.fraction, FLOAT_FRACTION))
    result: dict[str, Bound] = {}
    instructions = files.program.instructions
    in_float32 = {item.output for item in instructions if item.attributes.get("mode") == ELEMENTWISE_FLOAT32}
    layers = products(files)
    wide = without_integer_kernel(files)
    makers = {name: item for item in instructions for name in item.outputs}
    for name, operator in operators.items():
        if name in in_float32:
            result[name] = Bound()  # the same operations, each rounded
        elif operator in MAC_OPERATORS or name in layers:
            rounded = max(allowed.fraction, FLOAT_FRACTION) if name in wide else allowed.fraction
            more = int(cancellation(files, makers[name]) + narrow_multiplier(files, makers[name]))
            result[name] = Bound(allowed.lsb + more, 1.0 if more else rounded)
        elif operator == "Softmax" and makers[name].attributes.get("mode") == SoftmaxMode.FLOAT32 and optimize:
            result[name] = Bound()  # its kernel on codes
        elif operator in RUNTIME_EXACT and same_arithmetic and optimize:
            result[name] = Bound()
        else:
            more = int(cancellation(files, makers[name]) + narrow_multiplier(files, makers[name]))
            result[name] = Bound(1 + steepness(files, makers[name]) + more, 1.0)
    return result


def without_integer_kernel(files: ProgramFiles) -> frozenset[str]:
    """Results of layers that ONNX Runtime sums in float32 even in optimized files: kernels on integers take 8 bits."""
    tensors = files.program.tensors
    return frozenset(
        item.output
        for item in files.program.instructions
        if op(item.op).has(Trait.WEIGHTED, Trait.CONTRACTION)
        and any(int(tensors[name].dtype[1:]) > BITS_OF_KERNELS for name in (*item.inputs[:2], item.output))
    )


def steepness(files: ProgramFiles, item: Instruction) -> int:
    """Additional steps by which the result of a function in float32 may differ because its argument is rounded.

    The argument (code - zero point) * scale has two roundings of at most 2^-24 each: with 2^16 codes, up to 2^-7 of a
    step of the input. This shows where neighbouring codes have results that are hundreds of steps apart.
    """
    if item.attributes.get("mode") == SoftmaxMode.LUT16:
        row = files.program.tensors[item.output].shape[int(str(item.attributes["axis"]))]
        return INTERPOLATION * (row + 1)
    if item.op != "lookup":
        return 0
    table = files.constants[item.inputs[1]].astype(np.int64)
    return int(np.abs(np.diff(table)).max(initial=0) * table.shape[-1] * 2.0**-23)


def cancellation(files: ProgramFiles, item: Instruction) -> float:
    """Steps by which a result in float32 may differ because large summands cancel.

    A summand of size |a| brings two roundings of at most 2^-24 |a|: its own, and that of the sum after it. Functions
    count with |x| and 1, the summands of x - tanh(x) and exp(x) - 1.
    """
    tensors = files.program.tensors
    result = tensors[item.output]
    if not result.scale:
        return 0.0
    sizes = [_largest(tensors[name]) for name in item.inputs if tensors[name].scale]
    definition = op(item.op)
    if definition.has(Trait.WEIGHTED):
        size = _largest_sum(files, item, sizes[0])
    elif definition.has(Trait.CONTRACTION):
        size = tensors[item.inputs[0]].shape[-1] * math.prod(sizes)
    elif item.op == "lookup":
        size = max(1.0, *sizes)
    elif item.op in SUMS:
        size = sum(sizes)
    else:
        return 0.0
    return 2.0**-23 * size / min(result.scale)


def narrow_multiplier(files: ProgramFiles, item: Instruction) -> float:
    """Steps by which a result differs from that of a file because multipliers of 16 bits round scales, by 2^-15."""
    tensors, constants = files.program.tensors, files.program.constants
    attributes = [
        value for name, value in item.attributes.items() if name.endswith("multiplier") and isinstance(value, int)
    ]
    operands = [
        tensors[name].dtype for name in item.inputs if name in constants and constants[name].role == "multiplier"
    ]
    if not (attributes or operands) or max(attributes, default=0) >= 2**15 or any(dtype != "i16" for dtype in operands):
        return 0.0
    result = tensors[item.output]
    size = _largest(result)
    if item.op == "int_add":
        size += sum(_largest(tensors[name]) for name in item.inputs)
    return 2.0**-15 * size / min(result.scale)


def _largest(tensor: Tensor) -> float:
    """The largest magnitude on the grid of a tensor."""
    values = 1 << int(tensor.dtype[1:])
    low, high = (-values // 2, values // 2 - 1) if tensor.dtype[0] == "i" else (0, values - 1)
    zeros = tensor.zero_point or (0,)
    return max(tensor.scale) * max(high - min(zeros), max(zeros) - low)


def _largest_sum(files: ProgramFiles, item: Instruction, x: float) -> float:
    """The largest sum of magnitudes of the products of a layer and of its bias, over its output channels."""
    tensors, (weight, bias) = files.program.tensors, item.inputs[1:3]
    magnitudes = np.abs(_real(tensors[weight], files.logical(weight)))
    if op(item.op).has(Trait.TRANSPOSED):  # [inputs, outputs per group, taps]
        groups = int(str(item.attributes["groups"]))
        parts = magnitudes.reshape(groups, len(magnitudes) // groups, magnitudes.shape[1], -1)
        products = parts.sum((1, 3)).reshape(-1)
    else:
        products = magnitudes.reshape(len(magnitudes), -1).sum(1)
    sums: Array = x * products + np.abs(_real(tensors[bias], files.logical(bias)))
    return float(sums.max())


def _real(tensor: Tensor, codes: Array) -> Array:
    """The numbers of codes; without the factors of blocks, which are at least 1."""
    along = [-1 if axis == tensor.axis else 1 for axis in range(codes.ndim)]
    scale, zero = (np.reshape(item, along) if len(item) > 1 else item for item in (tensor.scale, tensor.zero_point))
    numbers: Array = (codes.astype(np.float64) - zero) * scale
    return numbers
