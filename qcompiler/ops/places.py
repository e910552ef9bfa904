"""Places of the largest and smallest elements along an axis, and elements at places that are computed.

A grid keeps the order of real numbers, so that codes have the places of the numbers that they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, integer
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import DType, TensorType
from qcompiler.ops.common import ANY_STAGE

__all__: list[str] = []


def _infer_top_places(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    (x,), axis, count = types, integer(attributes, "axis"), integer(attributes, "count")
    size = x.shape[axis] if 0 <= axis < x.rank else None
    if not isinstance(size, int):
        raise GraphError(f"places are along axis {axis} of {x}", expected="an axis of known size")
    if not 1 <= count <= size:
        raise GraphError(f"{count} places of {size} elements", expected=f"1 to {size}")
    if x.dtype is DType.BOOL or (x.quant is not None and x.quant.axis is not None):
        raise GraphError(f"places are those of {x}", expected="numbers with one scale")
    return (TensorType(DType.I64, (*x.shape[:axis], count, *x.shape[axis + 1 :])),)


def _top_places(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    (x,), axis, count, largest = operands, node.integer("axis"), node.integer("count"), node.flag("largest")
    if x.dtype is torch.uint16:  # torch neither compares nor sorts it
        x = x.to(torch.int32)
    if count == 1:
        return ((torch.argmax if largest else torch.argmin)(x, axis, keepdim=True),)
    return (torch.sort(x, dim=axis, descending=largest, stable=True).indices.narrow(axis, 0, count),)


def _infer_take(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    (x, places), axis = types, integer(attributes, "axis")
    if not 0 <= axis < x.rank or not isinstance(x.shape[axis], int):
        raise GraphError(f"elements are taken along axis {axis} of {x}", expected="an axis of known size")
    if places.dtype not in (DType.I32, DType.I64) or places.quant is not None:
        raise GraphError(f"the places are {places}", expected="integers of 32 or 64 bits")
    wanted = (*x.shape[:axis], *places.shape[axis : axis + 1], *x.shape[axis + 1 :])
    if places.shape != wanted:
        raise GraphError(f"the places are {places}", expected=f"the sizes of {x} along all axes but {axis}")
    if x.quant is not None and x.quant.axis is not None:
        raise GraphError(f"the elements are {x}", expected="one scale for all elements")
    return (x.with_shape(wanted),)


def _take(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    (x, places), axis = operands, node.integer("axis")
    return (torch.gather(x, axis, places.to(torch.int64).clamp(0, x.shape[axis] - 1)),)


register(
    OpDef(
        name="top_places",
        operands=("x",),
        attributes={"axis": REQUIRED, "count": 1, "largest": True},
        infer=_infer_top_places,
        evaluate=_top_places,
        stages=ANY_STAGE,
        traits=frozenset({Trait.EXACT}),
        kind="exact",
        summary="Places of the largest or smallest elements along an axis, in order; of equal ones, the first.",
    )
)
register(
    OpDef(
        name="take_along",
        operands=("x", "places"),
        attributes={"axis": REQUIRED},
        infer=_infer_take,
        evaluate=_take,
        stages=ANY_STAGE,
        traits=frozenset({Trait.MOVEMENT, Trait.GUIDED, Trait.KEEPS_SIGN}),
        summary="Elements along an axis at computed places. A place outside of it reads the nearest element.",
    )
)
