"""Builds graphs of one integer operator, and compares graph and executor with the plain loops on every element."""

from __future__ import annotations

import math
import random
from typing import Any, Literal

import numpy as np
import torch

from qcompiler.backends.integer import Executor, emit
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Graph, Module, Node, Value
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.types import DType, QuantParams, Stage, TensorType
from qcompiler.quant.requant import Requantization, RequantMode, prepare_requantization
from tests.reference import operators
from tests.reference.exact_operators import EXACT_OPERATORS
from tests.reference.operators import Grid
from tests.support.running import outputs_of

CODES = {dtype: dtype.limits for dtype in (DType.I4, DType.U4, DType.I8, DType.U8, DType.I16, DType.U16)}
"""Element types of codes, with their smallest and largest code."""
LAYOUTS: tuple[tuple[Literal["NCHW", "NHWC"], Literal["OIHW", "OHWI"]], ...] = (("NCHW", "OIHW"), ("NHWC", "OHWI"))
Array = np.ndarray[Any, Any]


def check(graph: Graph, inputs: list[torch.Tensor]) -> dict[str, Array]:
    """Compare graph and executor, in both layouts, with the reference on every node, each fed the graph's own codes.

    Returns:
        What each value of the graph is.
    """
    values: dict[str, Array] = {}
    outputs_of(graph, inputs, lambda value, tensor: values.update({value.name: tensor.numpy()}))
    for node in graph.nodes:
        if node.op in LEAVES:
            continue
        expected = expected_by_loops(node, values)
        assert values[node.name].reshape(-1).tolist() == expected, f"graph, {node}"
    for layout, weights in LAYOUTS:
        found: dict[str, Array] = {}
        Executor(emit(graph, layout, weights)).run([x.numpy() for x in inputs], found.__setitem__)
        for name, array in found.items():
            assert array.dtype == values[name].dtype, f"executor in {layout}, {name}"
            assert np.array_equal(array, values[name]), f"executor in {layout}, {name}"
    return values


def expected_by_loops(node: Node, values: dict[str, Array], **changes: Attribute) -> list[Any]:
    """The result of the reference for `node`, with some attributes changed."""
    attributes = {**node.attributes, **changes}
    rule = EXACT_OPERATORS.get(node.op) or operators.OPERATORS[node.op]
    return rule([_grid(value, values) for value in node.inputs], attributes, _grid(node.output, values))


def _grid(value: Value, values: dict[str, Array]) -> Grid:
    array, quant = values[value.name], value.type.quant
    shape, data = tuple(array.shape), array.reshape(-1).tolist()
    return Grid(shape, data) if quant is None else Grid(shape, data, quant.scale[0], quant.zero_point, quant.axis or 0)


class Maker:
    """Builds one-operator graphs from a seeded source of random numbers."""

    def __init__(self, seed: int, mode: RequantMode = RequantMode.SINGLE) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.mode = mode
        self.graph = Module().add(Graph(stage=Stage.INTEGER))
        self.inputs: list[torch.Tensor] = []

    def quant(self, dtype: DType) -> QuantParams:
        """A random scale, and a zero point that is often at an end of the grid."""
        low, high = CODES[dtype]
        scale = float(torch.tensor(2.0 ** self.random.uniform(-9, -2)))
        return QuantParams((scale,), (self.random.choice([low, high, 0, self.random.randint(low, high)]),))

    def codes(self, shape: tuple[int, ...], dtype: DType) -> torch.Tensor:
        """Random codes; the two ends of the grid are among them."""
        low, high = CODES[dtype]
        codes = torch.randint(low, high + 1, shape, generator=self.generator)
        codes.reshape(-1)[:2] = torch.tensor([low, high])[: codes.numel()]
        return codes.to(dtype.torch)

    def input(
        self,
        shape: tuple[int, ...],
        dtype: DType = DType.I8,
        quant: QuantParams | None = None,
        codes: torch.Tensor | None = None,
    ) -> Value:
        """A graph input with its codes."""
        self.inputs.append(self.codes(shape, dtype) if codes is None else codes)
        return self.graph.add_input("x", TensorType(dtype, shape, quant or self.quant(dtype)))

    def leaf(self, tensor: torch.Tensor, quant: QuantParams | None = None, dtype: DType | None = None) -> Value:
        """A constant; `dtype` says which, where a torch type holds several."""
        module = self.graph.module
        name = module.unique_tensor_name("t")
        module.tensors[name] = tensor
        dtype = dtype or DType.of(tensor.dtype)
        attributes: dict[str, Attribute] = {"ref": name, "dtype": str(dtype), "shape": tuple(tensor.shape)}
        types = [TensorType(dtype, tuple(tensor.shape), quant)]
        return self.graph.append("constant", [], attributes, types=types).output

    def multiplier(self, count: int, low: float, high: float) -> list[Value]:
        """Multipliers from 2^low to 2^high: random ones, and powers of two, which make ties."""
        real = [self.random.choice([2.0 ** self.random.uniform(low, high), 2.0 ** round(low)]) for _ in range(count)]
        return [self.leaf(part.reshape(-1)) for part in self.prepared(*real).parts]

    def prepared(self, *real: float) -> Requantization:
        """Multipliers in the maker's mode, those that only shift by the next power of two."""
        if self.mode.is_shift:
            real = tuple(2.0 ** round(math.log2(value)) for value in real)
        dtype = torch.float32 if self.mode is RequantMode.FLOAT32_RNE else torch.float64
        return prepare_requantization(torch.tensor(real, dtype=dtype), self.mode)

    def scalar(self, name: str, real: float) -> dict[str, Attribute]:
        """The attributes of one multiplier."""
        item = self.prepared(real)
        multiplier, exponent = (None if part is None else part.item() for part in (item.multiplier, item.exponent))
        return {f"{name}_multiplier": multiplier, f"{name}_exponent": exponent}

    def limits(self, dtype: DType) -> dict[str, Attribute]:
        """The whole grid or, half of the time, less of it."""
        low, high = CODES[dtype]
        if self.random.random() < 0.5:
            cut = (high - low) // 4
            low, high = low + self.random.randint(0, cut), high - self.random.randint(0, cut)
        return {"dtype": str(dtype), "qmin": low, "qmax": high}

    def apply(self, op: str, operands: list[Value], attributes: dict[str, Attribute], dtype: DType = DType.I8) -> Node:
        """Append an operator that requantizes in the maker's mode."""
        return self.requantized(op, operands, {**attributes, "mode": str(self.mode)}, dtype)

    def requantized(
        self, op: str, operands: list[Value], attributes: dict[str, Attribute], dtype: DType, like: Value | None = None
    ) -> Node:
        """Append an operator whose result has a grid of its own."""
        node = self.graph.append(op, operands, {**self.limits(dtype), **attributes})
        quant = self.quant(dtype) if like is None else like.type.quant
        node.output.type = TensorType(dtype, node.output.type.shape, quant)
        self.graph.set_outputs([node.output])
        return node

    def elementwise_float32(
        self, operation: str, a: Value, b: Value, quant: QuantParams, dtype: DType = DType.I8
    ) -> Node:
        """Append an addition, a subtraction or a product in the mode f32, whose result is on the grid `quant`."""
        names = ("product",) if operation == "mul" else ("left", "right", "out")
        unused = {f"{name}_{part}": None for name in names for part in ("multiplier", "exponent")}
        sums: dict[str, Attribute] = {"shift": 0, "offset": None, "scalar_left_offset": None}
        sums["subtract"] = operation == "sub"
        op = "int_mul" if operation == "mul" else "int_add"
        attributes = {**unused, **(sums if operation != "mul" else {}), "mode": "f32"}
        node = self.requantized(op, [a, b], attributes, dtype)
        node.output.type = TensorType(dtype, node.output.type.shape, quant)
        return node

    def check(self) -> dict[str, Array]:
        """`check` on what was built."""
        return check(self.graph, self.inputs)
