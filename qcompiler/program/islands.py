"""Float islands of a program: graphs that run in torch, on real numbers, between a dequantize and a quantize.

Islands are the only part of a program that is not integer arithmetic, and the only part that needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch

from qcompiler.errors import ArtifactError, InputError, QCompilerError
from qcompiler.ir.dims import bind, evaluate_dim
from qcompiler.ir.graph import Module
from qcompiler.ir.interpret import Evaluation, interpret_with
from qcompiler.ir.text import parse_module
from qcompiler.ir.types import DType, TensorType
from qcompiler.ir.verify import verify
from qcompiler.program.program import ISLAND_TENSOR, Array, Program

Island: TypeAlias = Callable[[Sequence[Array]], list[Array]]


def load(program: Program, constants: Mapping[str, Array], name: str) -> Island:
    """The island called `name` as a function of arrays.

    Raises:
        ArtifactError: The text of the island is not a graph, or one of its tensors is missing.
    """
    module = Module(_tensors(constants, name))
    try:
        graph = parse_module(program.islands[name], module.tensors).graphs[name]
        verify(graph)
    except (QCompilerError, KeyError) as error:
        raise _unreadable(name, error) from error

    def run(arrays: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            # Contiguous, as in the interpreter, because the order of sums in torch kernels follows the strides.
            inputs = [torch.from_numpy(np.asarray(array, order="C")) for array in arrays]
            return [tensor.contiguous().numpy() for tensor in interpret_with(graph, inputs, Evaluation(module.tensors))]

    return run


def _tensors(constants: Mapping[str, Array], name: str) -> dict[str, torch.Tensor]:
    prefix = name + ISLAND_TENSOR
    return {
        key.removeprefix(prefix): torch.tensor(array)  # a copy: an array from a file cannot be written to
        for key, array in constants.items()
        if key.startswith(prefix)
    }


def result_shapes(program: Program, name: str, operands: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The result shapes of the island called `name` for given operand shapes.

    Raises:
        ArtifactError: The text of the island is not a graph, or the operands do not fit.
    """
    return [shape for _, shape in _results(program, name, [(None, shape) for shape in operands])]


def result_types(program: Program, name: str, operands: Sequence[TensorType]) -> list[TensorType]:
    """The result types of the island called `name` for given operand types with known sizes.

    Raises:
        ArtifactError: The text of the island is not a graph, or the operands do not fit.
    """
    given = [(item.dtype, tuple(int(size) for size in item.shape)) for item in operands]
    return [TensorType(dtype, shape) for dtype, shape in _results(program, name, given)]


def _results(
    program: Program, name: str, operands: Sequence[tuple[DType | None, tuple[int, ...]]]
) -> list[tuple[DType, tuple[int, ...]]]:
    try:
        graph = parse_module(program.islands[name]).graphs[name]
        bindings: dict[str, int] = {}
        for value, (dtype, shape) in zip(graph.inputs, operands, strict=True):
            fault = bind(value.type.shape, shape, bindings)
            if fault or dtype not in (None, value.type.dtype):
                raise InputError(f"an operand does not fit: {fault or f'{dtype} for {value.type}'}")
        return [
            (value.type.dtype, tuple(evaluate_dim(dim, bindings) for dim in value.type.shape))
            for value in graph.outputs
        ]
    except (QCompilerError, KeyError, ValueError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> ArtifactError:
    return ArtifactError(f"the island cannot be read: {error}", where=f"program.json, islands.{name}")
