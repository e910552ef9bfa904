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
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import DType, TensorType
from qcompiler.ops.common import ANY_STAGE, broadcast
from qcompiler.ops.mac import pad_amounts

__all__ = ["joins", "moved"]

_MOVEMENT = frozenset({Trait.MOVEMENT, Trait.KEEPS_SIGN, Trait.COMMUTES_WITH_SCALE})
_VIEW = _MOVEMENT | {Trait.VIEW}


def moved(node: Node) -> list[Value]:
    """The operands of a movement whose elements it gives: all, or the first if the others guide it."""
    return node.inputs[:1] if node.definition.has(Trait.GUIDED) else list(node.inputs)


def joins(node: Node) -> bool:
    """Whether a node gives elements of several operands, which must then be on one grid."""
    return node.definition.has(Trait.MOVEMENT) and len(moved(node)) > 1


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


def _infer_embedding(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    table, ids = types
    if table.rank != 2 or ids.dtype not in (DType.I32, DType.I64) or ids.quant is not None:
        raise GraphError(f"the operands are {table} and {ids}", expected="a matrix and integers of 32 or 64 bits")
    if table.quant is not None and table.quant.axis is not None:
        raise GraphError(f"the rows are {table}", expected="one scale for all rows")
    return (table.with_shape((*ids.shape, table.shape[1])),)


def _embedding(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    rows, ids = operands
    return (functional.embedding(ids.clamp(0, rows.shape[0] - 1), rows),)


def _infer_masked(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    x, mask = types
    if mask.dtype is not DType.BOOL or broadcast(x.shape, mask.shape) != x.shape:
        raise GraphError(f"the mask is {mask}", expected=f"booleans that broadcast with {x}")
    return (x,)


def _masked(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, mask = operands
    quant = node.output.type.quant
    zero = 0 if quant is None or x.is_floating_point() else quant.zero_point[0]
    return (torch.where(mask, x, torch.tensor(zero, dtype=x.dtype, device=x.device)),)


def _infer_expand(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    (x, like), shape = types, dims(attributes, "shape")
    fits = len(shape) == x.rank and all(old in (1, new) for old, new in zip(x.shape, shape, strict=True))
    unknown = [size for size in shape if not isinstance(size, int) and size not in like.shape]
    if not fits or unknown:
        raise GraphError(
            f"{x} is expanded to {list(shape)}", expected=f"repeated axes of one element, symbolic sizes as in {like}"
        )
    return (x.with_shape(shape),)


def _expand(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    bindings: dict[str, int] = {}
    bind(node.inputs[1].type.shape, operands[1].shape, bindings)
    return (operands[0].expand([evaluate_dim(dim, bindings) for dim in dims(node.attributes, "shape")]),)


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
_GUIDED = frozenset({Trait.MOVEMENT, Trait.GUIDED, Trait.KEEPS_SIGN})
register(
    OpDef(
        "embedding",
        ("x", "ids"),
        _infer_embedding,
        _embedding,
        ANY_STAGE,
        {},
        _GUIDED,
        "Rows of a matrix at integers that are computed. An integer outside of the matrix reads its nearest row.",
    )
)
register(
    OpDef(
        "masked",
        ("x", "mask"),
        _infer_masked,
        _masked,
        ANY_STAGE,
        {},
        _GUIDED,
        "x where the mask is true, otherwise 0.",
    )
)
register(
    OpDef(
        "expand",
        ("x", "like"),
        _infer_expand,
        _expand,
        ANY_STAGE,
        {"shape": REQUIRED},
        _GUIDED,
        "Axes of one element repeated; symbolic sizes are those of `like`, whose elements are not read.",
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
