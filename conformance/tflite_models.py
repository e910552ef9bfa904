"""Instructions of an integer program as .tflite models of one operator, for LiteRT's worker: see `oracles/litert.py`.

A .tflite model says what an operator computes by the scales and zero points of its tensors; its multipliers, tables and
divisors are LiteRT's own. That is what makes it an oracle for those of the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.errors import UnsupportedError
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Instruction, Program, Tensor

__all__ = ["OPERATORS", "model"]

Array = npt.NDArray[Any]
Json = dict[str, Any]

_VALID = 1
_NHWC, _NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_TYPES = {"i8": "INT8", "i16": "INT16", "i32": "INT32", "i64": "INT64"}


class _Model:
    """One operator being written down."""

    def __init__(self, program: Program, instruction: Instruction, operands: Sequence[Array]) -> None:
        self.program, self.instruction = program, instruction
        self.types = [program.tensors[name] for name in instruction.inputs]
        self.output = program.tensors[instruction.output]
        self.operands = [self.physical(array) for array in operands]
        self.tensors: dict[str, Json] = {}
        self.arrays: dict[str, Array] = {}
        self.inputs: list[str] = []
        self.feeds: list[str] = []

    @staticmethod
    def physical(array: Array) -> Array:
        return np.asarray(array.transpose(_NHWC), order="C") if array.ndim == 4 else array

    def add(self, name: str, array: Array, like: Tensor, *, constant: bool = False, axis: int = 0) -> None:
        """An operand: an activation, or a constant of the model."""
        self.arrays[name] = array
        self.tensors[name] = {
            "type": _TYPES[like.dtype],
            "shape": list(array.shape),
            "scale": list(like.scale),
            "zero_point": list(like.zero_point),
            "axis": axis,
        }
        if constant:
            self.tensors[name]["data"] = name
        else:
            self.feeds.append(name)
        self.inputs.append(name)

    def padded(self) -> Array:
        """The image with its padding, whose codes are the zero point: an operator then needs no padding of its own."""
        top, left, bottom, right = (*self.attribute("padding"), *self.attribute("padding"))[:4]
        ends = ((0, 0), (top, bottom), (left, right), (0, 0))
        return np.pad(self.operands[0], ends, constant_values=self.types[0].zero_point[0])

    def attribute(self, name: str) -> Any:
        return self.instruction.attributes[name]

    def activation(self) -> int:
        """The schema's number of the clamp that the limits of the codes stand for."""
        low, high = {"i8": (-128, 127), "i16": (-32768, 32767)}[self.output.dtype]
        qmin, qmax = (self.instruction.attributes.get(name) for name in ("qmin", "qmax"))
        zero_point = self.output.zero_point[0]
        limits = (low if qmin is None else qmin, high if qmax is None else qmax)
        if limits == (low, high):
            return 0
        if limits == (max(low, zero_point), high):
            return 1
        six = int(np.floor(np.float32(6.0) / np.float32(self.output.scale[0]) + 0.5)) + zero_point
        if limits == (max(low, zero_point), min(high, six)):
            return 3
        expected = "no limits, those of ReLU or those of ReLU6"
        raise UnsupportedError(f"limits {limits}", where=self.instruction.output, expected=expected)

    def finish(self, code: str, kind: str, shape: Sequence[int], version: int = 2, **fields: object) -> Json:
        physical = [shape[axis] for axis in _NHWC] if len(shape) == 4 else list(shape)
        self.tensors["y"] = {
            "type": _TYPES[self.output.dtype],
            "shape": physical,
            "scale": list(self.output.scale),
            "zero_point": list(self.output.zero_point),
        }
        operator: Json = {"code": code, "version": version, "inputs": self.inputs, "outputs": ["y"]}
        if kind:
            operator["options"] = {"class": kind, "fields": fields}
        return {
            "tensors": self.tensors,
            "operators": [operator],
            "inputs": self.feeds,
            "outputs": ["y"],
            "feeds": {name: name for name in self.feeds},
        }


def _conv2d(model: _Model, shape: Sequence[int]) -> Json:
    stride, dilation, groups = (model.attribute(name) for name in ("stride", "dilation", "groups"))
    model.add("x", model.padded(), model.types[0])
    fields = {
        "padding": _VALID,
        "strideH": stride[0],
        "strideW": stride[1],
        "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1],
        "fusedActivationFunction": model.activation(),
    }
    weight = model.operands[1]  # [out, h, w, in / groups]
    if groups == 1:
        model.add("w", weight, model.types[1], constant=True)
        model.add("b", model.operands[2], model.types[2], constant=True)
        return model.finish("CONV_2D", "Conv2DOptions", shape, 3, **fields)
    if weight.shape[3] != 1 or groups != model.operands[0].shape[3]:
        raise UnsupportedError(f"{groups} groups", where=model.instruction.output, expected="one, or depthwise")
    model.add("w", weight.transpose(3, 1, 2, 0), model.types[1], constant=True, axis=3)
    model.add("b", model.operands[2], model.types[2], constant=True)
    fields["depthMultiplier"] = weight.shape[0] // groups
    return model.finish("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", shape, 3, **fields)


def _linear(model: _Model, shape: Sequence[int]) -> Json:
    model.add("x", model.operands[0], model.types[0])
    model.add("w", model.operands[1], model.types[1], constant=True)
    model.add("b", model.operands[2], model.types[2], constant=True)
    activation = model.activation()
    return model.finish("FULLY_CONNECTED", "FullyConnectedOptions", shape, 4, fusedActivationFunction=activation)


def _matmul(model: _Model, shape: Sequence[int]) -> Json:
    if len(shape) == 4:
        raise UnsupportedError("a product of four axes", where=model.instruction.output, expected="other numbers")
    for name, operand, like in zip("ab", model.operands[:2], model.types[:2], strict=True):
        model.add(name, operand, like)
    return model.finish("BATCH_MATMUL", "BatchMatMulOptions", shape, 2, adjX=False, adjY=False)


def _softmax(model: _Model, shape: Sequence[int]) -> Json:
    axis = model.attribute("axis") % len(shape)
    last = _NHWC[-1] if len(shape) == 4 else len(shape) - 1
    if axis != last:
        raise UnsupportedError(f"a softmax along axis {axis}", where=model.instruction.output, expected="the last one")
    model.add("x", model.operands[0], model.types[0])
    return model.finish("SOFTMAX", "SoftmaxOptions", shape, 2, beta=1.0)


def _binary(code: str, kind: str) -> Callable[[_Model, Sequence[int]], Json]:
    def write(model: _Model, shape: Sequence[int]) -> Json:
        for name, operand, like in zip("ab", model.operands, model.types, strict=True):
            model.add(name, operand, like)
        return model.finish(code, kind, shape, fusedActivationFunction=model.activation())

    return write


def _add(model: _Model, shape: Sequence[int]) -> Json:
    code, kind = ("SUB", "SubOptions") if model.instruction.attributes.get("subtract") else ("ADD", "AddOptions")
    return _binary(code, kind)(model, shape)


def _extreme(code: str) -> Callable[[_Model, Sequence[int]], Json]:
    def write(model: _Model, shape: Sequence[int]) -> Json:
        for name, operand, like in zip("ab", model.operands, model.types, strict=True):
            model.add(name, operand, like)
        return model.finish(code, "MaximumMinimumOptions", shape)

    return write


def _pool(code: str) -> Callable[[_Model, Sequence[int]], Json]:
    def write(model: _Model, shape: Sequence[int]) -> Json:
        if any(model.attribute("padding")):
            raise UnsupportedError("pooling with padding", where=model.instruction.output, expected="none")
        model.add("x", model.operands[0], model.types[0])
        kernel, stride = model.attribute("kernel"), model.attribute("stride")
        sizes = {"filterHeight": kernel[0], "filterWidth": kernel[1], "strideH": stride[0], "strideW": stride[1]}
        return model.finish(code, "Pool2DOptions", shape, 2, padding=_VALID, **sizes)

    return write


def _mean(model: _Model, shape: Sequence[int]) -> Json:
    axes = model.attribute("axes")
    physical = [_NHWC.index(axis % 4) for axis in axes] if model.operands[0].ndim == 4 else list(axes)
    model.add("x", model.operands[0], model.types[0])
    plain = Tensor(dtype="i32", shape=(len(axes),))
    model.add("axes", np.array(sorted(physical), np.int32), plain, constant=True)
    return model.finish("MEAN", "ReducerOptions", shape, 2, keepDims=bool(model.attribute("keepdim")))


def _unary(code: str) -> Callable[[_Model, Sequence[int]], Json]:
    def write(model: _Model, shape: Sequence[int]) -> Json:
        model.add("x", model.operands[0], model.types[0])
        return model.finish(code, "", shape)

    return write


def _concat(model: _Model, shape: Sequence[int]) -> Json:
    for index, (operand, like) in enumerate(zip(model.operands, model.types, strict=True)):
        model.add(f"x{index}", operand, like)
    axis = model.attribute("axis") % len(shape)
    return model.finish(
        "CONCATENATION", "ConcatenationOptions", shape, 2, axis=_NHWC.index(axis) if len(shape) == 4 else axis
    )


def _rescale(model: _Model, shape: Sequence[int]) -> Json:
    model.add("x", model.operands[0], model.types[0])
    return model.finish("QUANTIZE", "QuantizeOptions", shape)


OPERATORS: dict[str, Callable[[_Model, Sequence[int]], Json]] = {
    "int_conv2d": _conv2d,
    "int_linear": _linear,
    "int_matmul": _matmul,
    "int_softmax": _softmax,
    "int_add": _add,
    "int_mul": _binary("MUL", "MulOptions"),
    "maximum": _extreme("MAXIMUM"),
    "minimum": _extreme("MINIMUM"),
    "int_avg_pool2d": _pool("AVERAGE_POOL_2D"),
    "max_pool2d": _pool("MAX_POOL_2D"),
    "int_mean": _mean,
    "concat": _concat,
    "rescale": _rescale,
    "sigmoid": _unary("LOGISTIC"),
    "tanh": _unary("TANH"),
}
"""How each instruction is written; tables by the name of their function."""


def model(
    files: ProgramFiles, instruction: Instruction, operands: Sequence[Array], shape: Sequence[int], function: str = ""
) -> tuple[Json, dict[str, Array]]:
    """The model of one instruction, and the arrays that it reads.

    Args:
        files: The program.
        instruction: Instruction of the program.
        operands: Operands of the instruction, in logical order.
        shape: Shape of the result, in logical order.
        function: Function of a lookup table: `sigmoid`, `tanh`.

    Raises:
        UnsupportedError: LiteRT has no such operator, or this file does not write it.
    """
    name = function or instruction.op
    if name not in OPERATORS:
        raise UnsupportedError(f"no LiteRT operator stands for {name}", where=instruction.output)
    building = _Model(files.program, instruction, operands)
    return OPERATORS[name](building, shape), building.arrays
