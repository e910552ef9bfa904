"""Allowed difference between each layer of a file and the integer program on the same integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from qcompiler.backends.base import Bound
from qcompiler.ir.registry import Trait, op
from qcompiler.program.files import ProgramFiles
from qcompiler.program.products import products
from qcompiler.program.program import Instruction
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
            result[name] = dataclasses.replace(allowed, fraction=rounded)
        elif operator == "Softmax" and makers[name].attributes.get("mode") == SoftmaxMode.FLOAT32 and optimize:
            result[name] = Bound()  # its kernel on codes
        elif operator in RUNTIME_EXACT and same_arithmetic and optimize:
            result[name] = Bound()
        else:
            result[name] = Bound(1 + steepness(files, makers[name]), 1.0)
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
