"""Integers and booleans that are computed: ids, positions and masks, and conversions of element types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qcompiler.frontends.builder import Builder, Observed, Operand, Rule
from qcompiler.frontends.table import axis_of, rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.graph import Value
from qcompiler.ir.types import DType

__all__ = ["as_type", "chosen_exactly", "exact_binary"]


def as_type(b: Builder, operand: object, dtype: torch.dtype) -> Operand:
    """An operand or a number converted to an element type."""
    if isinstance(operand, bool | int | float):
        return Leaf("constant", "", torch.tensor(operand, dtype=dtype, device=b.device))
    if not isinstance(operand, Value | Leaf):
        raise b.unsupported(
            f"{b.function} has a {type(operand).__name__} in place of a tensor", "Pass a tensor or a number."
        )
    own = operand.type.dtype
    if own.torch == dtype:
        return operand
    if isinstance(operand, Leaf) and operand.kind == "constant":
        return Leaf("constant", "", operand.tensor.to(dtype))
    wanted = DType.of(dtype)
    if own.is_float and wanted.is_float:
        raise b.unsupported(
            f"{b.function} changes the element type from {own}", "Convert the inputs before calling the model."
        )
    return b.node("convert" if own.is_float or wanted.is_float else "cast", [operand], dtype=str(wanted))


_OF_BOOLEANS: Mapping[str, str] = {"add": "or", "mul": "and"}
_ARITHMETIC: Mapping[str, str] = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "minimum": "minimum",
    "maximum": "maximum",
}


def exact_binary(b: Builder, op: str, input: object, other: object) -> Value:
    """A sum, difference or product of integers; of booleans, a disjunction or a conjunction."""
    assert isinstance(b.observed, Observed)
    dtype = b.observed.dtype
    operands = [as_type(b, operand, dtype) for operand in (input, other)]
    table = _OF_BOOLEANS if dtype == torch.bool else _ARITHMETIC
    if op not in table:
        raise b.unsupported(f"{b.function} of {DType.of(dtype)}", "Convert to float first.")
    return b.node("exact", operands, compute=table[op])


def _common(b: Builder, input: object, other: object) -> torch.dtype:
    """The element type in which torch compares two operands."""
    kinds: list[Any] = [
        torch.empty((1,) * min(item.type.rank, 1), dtype=item.type.dtype.torch)
        if isinstance(item, Value | Leaf)
        else item
        for item in (input, other)
    ]
    common = torch.result_type(kinds[0], kinds[1])
    return common if common.is_floating_point or common == torch.int32 else torch.int64


def _comparison(compute: str) -> Rule:
    def rule(b: Builder, input: object, other: object) -> Value:
        dtype = _common(b, input, other)
        operands = [as_type(b, operand, dtype) for operand in (input, other)]
        return b.node("compare" if dtype.is_floating_point else "exact", operands, compute=compute)

    return rule


_COMPARED = {
    "equal": ("eq",),
    "not_equal": ("ne", "not_equal"),
    "less": ("lt", "less"),
    "less_equal": ("le", "less_equal"),
    "greater": ("gt", "greater"),
    "greater_equal": ("ge", "greater_equal"),
}
for _compute, _names in _COMPARED.items():
    rule(*_names)(_comparison(_compute))


def _truth(b: Builder, operand: object) -> Operand:
    return as_type(b, operand, torch.bool)


def _logic(compute: str, *, logical: bool) -> Rule:
    def rule(b: Builder, input: object, other: object) -> Value:
        if not logical and (not isinstance(b.observed, Observed) or b.observed.dtype != torch.bool):
            raise b.unsupported(f"{b.function} of the bits of integers", "Use booleans.")
        return b.node("exact", [_truth(b, input), _truth(b, other)], compute=compute)

    return rule


for _compute in ("and", "or", "xor"):
    rule(f"logical_{_compute}")(_logic(_compute, logical=True))
    rule(f"bitwise_{_compute}", _compute, f"i{_compute}")(_logic(_compute, logical=False))


@rule("logical_not")
def _logical_not(b: Builder, input: Operand) -> Value:
    return b.node("not", [_truth(b, input)])


@rule("bitwise_not", "invert", "inv")
def _invert(b: Builder, input: Operand) -> Value:
    if input.type.dtype is DType.BOOL:
        return b.node("not", [input])
    minus_one = as_type(b, -1, input.type.dtype.torch)
    return b.node("exact", [minus_one, input], compute="subtract")


@rule("cumsum")
def _cumsum(b: Builder, input: Operand, dim: int, *, dtype: object = None) -> Value:
    if not isinstance(b.observed, Observed) or b.observed.dtype.is_floating_point:
        raise b.unsupported("cumsum of real numbers", "Sum integers, or replace it by a product with a matrix.")
    return b.node("cumsum", [as_type(b, input, b.observed.dtype)], axis=axis_of(input, dim))


@rule("to", "type", "type_as", "float", "double", "half", "bfloat16", "long", "int", "bool", "cpu", "cuda", "to_copy")
def _to(b: Builder, input: Operand, *arguments: object, **keywords: object) -> Operand:
    if not isinstance(b.observed, Observed):
        raise b.unsupported(f"{b.function} does not return a tensor", "Use one of its results.")
    return as_type(b, input, b.observed.dtype)


@rule("embedding")
def _embedding(b: Builder, input: Operand, weight: Operand, *arguments: object, **keywords: object) -> Value:
    """`functional.embedding(ids, weight, ...)`, and `aten.embedding(weight, ids, ...)`."""
    table, ids = (input, weight) if input.type.dtype.is_float else (weight, input)
    norm = keywords.get("max_norm", arguments[1] if table is weight and len(arguments) > 1 else None)
    if norm is not None and norm is not False:
        raise b.unsupported("an embedding with max_norm, which writes to its weight", "Set max_norm=None.")
    return b.node("embedding", [table, ids])


def chosen_exactly(b: Builder, condition: Operand, input: object, other: object) -> Value:
    """`where` of integers or booleans."""
    assert isinstance(b.observed, Observed)
    dtype = b.observed.dtype
    x, y = (as_type(b, operand, dtype) for operand in (input, other))
    if dtype == torch.bool:
        neither = b.node("not", [condition])
        sides: Sequence[Value] = [
            b.node("exact", [mask, side], compute="and") for mask, side in ((condition, x), (neither, y))
        ]
        return b.node("exact", list(sides), compute="or")
    share = as_type(b, condition, dtype)
    difference = b.node("exact", [x, y], compute="subtract")
    return b.node("exact", [b.node("exact", [difference, share], compute="multiply"), y], compute="add")
