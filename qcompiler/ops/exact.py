"""Operators on integers and booleans: token ids, positions, masks. They are the same at every stage.

Such values have no grid. Every form computes them exactly, in two's complement of their own width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, integer
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import DType, TensorType
from qcompiler.ops.common import ANY_STAGE, FLOAT_STAGES, broadcast, check_float

__all__ = ["COMPARISONS", "EXACT_FUNCTIONS", "LOGIC", "WHOLE", "computes_exactly"]

_Binary: TypeAlias = Callable[[Tensor, Tensor], Tensor]

WHOLE = (DType.I32, DType.I64)
"""Element types of integers that are not codes."""
COMPARISONS: Mapping[str, _Binary] = MappingProxyType(
    {
        "equal": torch.eq,
        "not_equal": torch.ne,
        "less": torch.lt,
        "less_equal": torch.le,
        "greater": torch.gt,
        "greater_equal": torch.ge,
    }
)
"""Functions of two integers with a boolean as result."""
LOGIC: Mapping[str, _Binary] = MappingProxyType(
    {"and": torch.logical_and, "or": torch.logical_or, "xor": torch.logical_xor}
)
"""Functions of two booleans."""
_ARITHMETIC: Mapping[str, _Binary] = MappingProxyType(
    {"add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "minimum": torch.minimum, "maximum": torch.maximum}
)
EXACT_FUNCTIONS: Mapping[str, _Binary] = MappingProxyType({**_ARITHMETIC, **COMPARISONS, **LOGIC})
"""All functions of the operator `exact`, by name."""


def computes_exactly(node: Node) -> bool:
    """Whether all results of a node are integers or booleans without a grid."""
    types = [value.type for value in node.outputs]
    return bool(types) and all(not type.dtype.is_float and type.quant is None for type in types)


def _check_exact(types: Sequence[TensorType], allowed: Sequence[DType], what: str) -> None:
    for type in types:
        if type.dtype not in allowed or type.quant is not None:
            raise GraphError(f"an operand is {type}", expected=what)


def _infer_exact(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    name = attributes["compute"]
    if name not in EXACT_FUNCTIONS:
        raise GraphError(f"the function is {name!r}", expected="one of " + ", ".join(EXACT_FUNCTIONS))
    if name in LOGIC:
        _check_exact(types, [DType.BOOL], "booleans")
    else:
        _check_exact(types, WHOLE, "integers of 32 or 64 bits")
    if types[0].dtype is not types[1].dtype:
        raise GraphError(f"the operands are {types[0]} and {types[1]}", expected="one element type")
    dtype = DType.BOOL if name in COMPARISONS else types[0].dtype
    return (TensorType(dtype, broadcast(types[0].shape, types[1].shape)),)


def _exact(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (EXACT_FUNCTIONS[node.text("compute")](operands[0], operands[1]),)


def _infer_compare(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    if attributes["compute"] not in COMPARISONS:
        raise GraphError(f"the function is {attributes['compute']!r}", expected="one of " + ", ".join(COMPARISONS))
    check_float(types)
    return (TensorType(DType.BOOL, broadcast(types[0].shape, types[1].shape)),)


def _infer_not(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    _check_exact(types, [DType.BOOL], "booleans")
    return (types[0],)


def _named_type(attributes: Attributes) -> DType:
    name = str(attributes["dtype"])
    if name not in set(DType):
        raise GraphError(f"the element type is {name!r}", expected="one of " + ", ".join(DType))
    return DType(name)


def _infer_cast(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    allowed, dtype = (*WHOLE, DType.BOOL), _named_type(attributes)
    _check_exact(types, allowed, "booleans, or integers of 32 or 64 bits")
    if dtype not in allowed:
        raise GraphError(f"the element type is {dtype}", expected="bool, i32 or i64")
    return (TensorType(dtype, types[0].shape),)


def _infer_convert(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    dtype = _named_type(attributes)
    if types[0].dtype.is_float == dtype.is_float:
        raise GraphError(f"{types[0]} is converted to {dtype}", expected="real numbers from or to integers or booleans")
    return (TensorType(dtype, types[0].shape),)


def _cast(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (operands[0].to(node.output.type.dtype.torch),)


def _infer_cumsum(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    _check_exact(types, WHOLE, "integers of 32 or 64 bits")
    axis = integer(attributes, "axis")
    if not 0 <= axis < types[0].rank:
        raise GraphError(f"the axis is {axis}", expected=f"0 to {types[0].rank - 1}, for {types[0]}")
    return (types[0],)


def _cumsum(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (torch.cumsum(operands[0], node.integer("axis"), dtype=operands[0].dtype),)


def _infer_select(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    mask, x, y = types
    if mask.dtype is not DType.BOOL or x.dtype is not y.dtype:
        raise GraphError(f"the operands are {mask}, {x} and {y}", expected="a boolean and two of one element type")
    return (TensorType(x.dtype, broadcast(mask.shape, broadcast(x.shape, y.shape))),)


def _select(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (torch.where(operands[0], operands[1], operands[2]),)


_EXACT = frozenset({Trait.EXACT})
register(
    OpDef(
        name="exact",
        operands=("a", "b"),
        attributes={"compute": REQUIRED},
        infer=_infer_exact,
        evaluate=_exact,
        stages=ANY_STAGE,
        traits=_EXACT,
        kind="exact",
        summary="A sum, a comparison or another function of two integers or booleans, with broadcasting.",
    )
)
register(
    OpDef(
        name="not",
        operands=("x",),
        infer=_infer_not,
        evaluate=lambda node, operands: (torch.logical_not(operands[0]),),
        stages=ANY_STAGE,
        traits=_EXACT,
        kind="exact",
        summary="True where x is false.",
    )
)
register(
    OpDef(
        name="cast",
        operands=("x",),
        attributes={"dtype": REQUIRED},
        infer=_infer_cast,
        evaluate=_cast,
        stages=ANY_STAGE,
        traits=_EXACT,
        kind="exact",
        summary="Integers and booleans as another type of such; a boolean is true for all numbers but 0.",
    )
)
register(
    OpDef(
        name="cumsum",
        operands=("x",),
        attributes={"axis": REQUIRED},
        infer=_infer_cumsum,
        evaluate=_cumsum,
        stages=ANY_STAGE,
        traits=_EXACT,
        kind="exact",
        summary="Sums of integers from the first element of an axis to each element.",
    )
)
register(
    OpDef(
        name="convert",
        operands=("x",),
        attributes={"dtype": REQUIRED},
        infer=_infer_convert,
        evaluate=_cast,
        stages=FLOAT_STAGES,
        summary="Integers or booleans as real numbers, or the reverse.",
    )
)
register(
    OpDef(
        name="compare",
        operands=("a", "b"),
        attributes={"compute": REQUIRED},
        infer=_infer_compare,
        evaluate=_exact,
        stages=FLOAT_STAGES,
        summary="A comparison of real numbers, with broadcasting.",
    )
)
register(
    OpDef(
        name="select",
        operands=("mask", "x", "y"),
        infer=_infer_select,
        evaluate=_select,
        stages=FLOAT_STAGES,
        summary="x where the mask is true, otherwise y.",
    )
)
