"""One integer operator in both of our implementations: a graph for torch, and the program of that graph for NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from qcompiler.backends.integer import Executor, emit
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Graph, Module
from qcompiler.ir.interpret import interpret
from qcompiler.ir.types import DType, QuantParams, Stage, TensorType

__all__ = ["Operand", "run"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Operand:
    """An operand.

    Args:
        array: Elements; 4-bit ones in int8.
        scale: float32, one or one per channel; empty where it has no grid.
        zero_point: In the shape of `scale`.
        axis: Channel axis.
        dtype: Element type, if it differs from that of the array.
        constant: Whether it is a constant of the graph, as weights and multipliers are.
    """

    array: Array
    scale: Sequence[float] = ()
    zero_point: Sequence[int] = ()
    axis: int | None = None
    dtype: str = ""
    constant: bool = False

    @property
    def type(self) -> TensorType:
        """The operand's type in the graph."""
        dtype = DType(self.dtype) if self.dtype else DType.of(torch.from_numpy(self.array.copy()).dtype)
        return TensorType(dtype, self.array.shape, _quant(self.scale, self.zero_point, self.axis))


def _quant(scale: Sequence[float], zero_point: Sequence[int], axis: int | None) -> QuantParams | None:
    return QuantParams(tuple(scale), tuple(zero_point), axis) if scale else None


def run(
    op: str, operands: Sequence[Operand], attributes: Mapping[str, Attribute], scale: float, zero_point: int, dtype: str
) -> dict[str, Array]:
    """Run one operator.

    Args:
        op: Operator of an integer graph.
        operands: In its order.
        attributes: Attributes of the operator, without those that the result's type gives.
        scale: Scale of the result; 0 without a scale.
        zero_point: Zero point of the result.
        dtype: Element type of the result.

    Returns:
        By implementation, `torch` and `numpy`, the result.
    """
    module = Module()
    graph = module.add(Graph(stage=Stage.INTEGER))
    values, inputs = [], []
    for index, operand in enumerate(operands):
        # As torch holds the codes: 4-bit ones in bytes.
        array = (
            torch.tensor(operand.array.tolist(), dtype=operand.type.dtype.torch).reshape(operand.array.shape).numpy()
        )
        if operand.constant:
            module.tensors[f"t{index}"] = torch.from_numpy(array)
            leaf: dict[str, Attribute] = {"ref": f"t{index}", "dtype": str(operand.type.dtype), "shape": array.shape}
            values.append(graph.append("constant", [], leaf, types=[operand.type]).output)
        else:
            values.append(graph.add_input(f"x{index}", operand.type))
            inputs.append(array)
    limits: dict[str, Attribute] = {}
    if scale:
        low, high = DType(dtype).limits
        limits = {"dtype": dtype, "qmin": low, "qmax": high}
    node = graph.append(op, values, {**limits, **attributes})
    quant = _quant((scale,), (zero_point,), None) if scale else None
    node.output.type = TensorType(DType(dtype), node.output.type.shape, quant)
    graph.set_outputs([node.output])
    with torch.no_grad():
        (found,), _ = interpret(graph, [torch.from_numpy(array) for array in inputs], graph.module.tensors)
    return {"torch": found.numpy(), "numpy": Executor(emit(graph, "NCHW", "OIHW")).run(inputs)[0]}
