"""Ops that move elements unchanged, for real numbers and codes alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, dims, integer, integers
from qcompiler.ir.dims import Dim, as_dim, bind, evaluate_dim, product
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import TensorType
from qcompiler.ops.common import ANY_STAGE
from qcompiler.ops.mac import pad_amounts

_MOVEMENT = frozenset({Trait.MOVEMENT, Trait.KEEPS_SIGN, Trait.COMMUTES_WITH_SCALE})
_VIEW = _MOVEMENT | {Trait.VIEW}


def _infer_reshape(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    shape = dims(attributes, "shape")
    if product(shape) != product(types[0].shape):
        raise GraphError(f"{types[0]} cannot be reshaped to {list(shape)}", expected="the same number of elements")
    return (types[0].with_shape(shape),)


def _reshape(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    bindings: dict[str, int] = {}
    bind(node.inputs[0].type.shape, operands[0].shape, bindings)
    shape = [evaluate_dim(dim, bindings) for dim in dims(node.attributes, "shape")]
    return (operands[0].reshape(shape),)


def _infer_permute(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    axes = integers(attributes, "axes")
    if sorted(axes) != list(range(types[0].rank)):
        raise GraphError(f"the axes are {axes}", expected=f"each of 0 to {types[0].rank - 1} once")
    return (types[0].with_shape(tuple(types[0].shape[axis] for axis in axes)),)


def _permute(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (operands[0].permute(node.integers("axes")),)


def _infer_concat(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    axis, first = integer(attributes, "axis"), types[0]
    if not 0 <= axis < first.rank:
        raise GraphError(f"the axis is {axis}", expected=f"0 to {first.rank - 1}")
    total: Dim = 0
    for type in types:
        others = (*type.shape[:axis], first.shape[axis], *type.shape[axis + 1 :])
        if type.rank != first.rank or dataclasses.replace(type, shape=others) != first:
            raise GraphError(
                f"{first} and {type} cannot be concatenated along axis {axis}",
                expected="equal sizes along all other axes",
            )
        total = as_dim(total + type.shape[axis])
    return (first.with_shape((*first.shape[:axis], total, *first.shape[axis + 1 :])),)


def _concat(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (torch.cat(list(operands), node.integer("axis")),)


def _infer_slice(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    axis, start, stop, step = (integer(attributes, key) for key in ("axis", "start", "stop", "step"))
    shape = types[0].shape
    size = shape[axis] if 0 <= axis < len(shape) else None
    if not isinstance(size, int):
        raise GraphError(f"the slice is along axis {axis} of {types[0]}", expected="an axis of known size")
    if not 0 <= start < stop <= size or step < 1:
        raise GraphError(f"the slice is {start}:{stop}:{step} of {size}", expected="a non-empty part")
    return (types[0].with_shape((*shape[:axis], -(-(stop - start) // step), *shape[axis + 1 :])),)


def _slice(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    axis, start, stop, step = (node.integer(key) for key in ("axis", "start", "stop", "step"))
    index = [slice(None)] * axis + [slice(start, stop, step)]
    return (operands[0][tuple(index)],)


def _infer_gather(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    axis, indices = integer(attributes, "axis"), integers(attributes, "indices")
    shape = types[0].shape
    size = shape[axis] if 0 <= axis < len(shape) else None
    if not isinstance(size, int):
        raise GraphError(f"indices are given for axis {axis} of {types[0]}", expected="an axis of known size")
    outside = [index for index in indices if not 0 <= index < size]
    if outside or not indices:
        found = f"the index {outside[0]} is given for an axis of size {size}" if outside else "there are no indices"
        raise GraphError(found, expected=f"at least one index from 0 to {size - 1}")
    return (types[0].with_shape((*shape[:axis], len(indices), *shape[axis + 1 :])),)


def _gather(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    index = torch.tensor(node.integers("indices"), device=operands[0].device)
    return (operands[0].index_select(node.integer("axis"), index),)


def _infer_pad(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    pad, rank = integers(attributes, "pad"), types[0].rank
    if len(pad) != 2 * rank:
        raise GraphError(f"there are {len(pad)} amounts of padding", expected=f"{2 * rank}: all begins, then all ends")
    sizes = [as_dim(size + pad[axis] + pad[rank + axis]) for axis, size in enumerate(types[0].shape)]
    if any(isinstance(size, int) and size < 1 for size in sizes):
        raise GraphError(f"{types[0]} padded by {pad} is empty", expected="a size of at least 1")
    return (types[0].with_shape(tuple(sizes)),)


def _pad(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    pad = node.integers("pad")
    half = len(pad) // 2
    return (functional.pad(operands[0], pad_amounts(pad[:half], pad[half:]), value=node.number("value")),)


register(
    OpDef(
        "reshape",
        ("x",),
        _infer_reshape,
        _reshape,
        ANY_STAGE,
        {"shape": REQUIRED},
        _VIEW,
        "The same elements in row-major order with other sizes.",
    )
)
register(
    OpDef("permute", ("x",), _infer_permute, _permute, ANY_STAGE, {"axes": REQUIRED}, _VIEW, "Axes in another order.")
)
register(
    OpDef(
        "concat",
        ("xs*",),
        _infer_concat,
        _concat,
        ANY_STAGE,
        {"axis": REQUIRED},
        _MOVEMENT,
        "Operands concatenated along one axis.",
    )
)
register(
    OpDef(
        "slice",
        ("x",),
        _infer_slice,
        _slice,
        ANY_STAGE,
        {"axis": REQUIRED, "start": REQUIRED, "stop": REQUIRED, "step": 1},
        _VIEW,
        "Part of one axis.",
    )
)
register(
    OpDef(
        "gather",
        ("x",),
        _infer_gather,
        _gather,
        ANY_STAGE,
        {"axis": REQUIRED, "indices": REQUIRED},
        _MOVEMENT,
        "Elements of one axis at the given indices, which may repeat.",
    )
)
register(
    OpDef(
        "pad",
        ("x",),
        _infer_pad,
        _pad,
        ANY_STAGE,
        {"pad": REQUIRED, "value": 0.0, "inside": None},
        _MOVEMENT,
        "A border of one value, a real number or in an INTEGER graph a code; `inside` if the operand's range holds it.",
    )
)
