"""Softmax and attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from qcompiler.frontends.builder import Builder, Observed, Operand
from qcompiler.frontends.rules_indexing import picked
from qcompiler.frontends.table import axis_of, rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.dims import Dim, product
from qcompiler.ir.graph import Value
from qcompiler.ir.types import DType


@rule("softmax", "softmin", "log_softmax")
def _softmax(
    b: Builder,
    input: Operand,
    dim: int | None = None,
    half_to_float: object = None,
    dtype: object = None,
    **keywords: object,
) -> Value:
    """`torch.softmax(x, dim)`, `functional.softmax(x, dim, _stacklevel, dtype)`, `aten._softmax`, and the logarithm."""
    result = b.observed
    if not isinstance(result, Observed) or result.dtype != input.type.dtype.torch:
        raise b.unsupported(f"{b.function} changes the element type from {input.type.dtype}", "Convert the input.")
    if dim is None:  # as torch chooses with a warning
        dim = 0 if input.type.rank in (0, 1, 3) else 1
    x = b.node("mul", [input, -1.0]) if b.function == "softmin" else input
    return b.node("log_softmax" if "log" in b.function else "softmax", [x], axis=axis_of(input, dim))


@rule("scaled_dot_product_attention")
def _attention(
    b: Builder,
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Operand | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """softmax(query key^T scale + mask) value, [..., L, d] and [..., S, d] to [..., L, d].

    A boolean mask, and a causal one, add minus infinity where they are false. The canonical graph has masks of the
    softmax.
    """
    if dropout_p:
        raise b.unsupported("attention drops weights in a model in eval mode", "Pass dropout_p=0.0 unless training.")
    if enable_gqa:
        key, value = (_repeated_heads(b, operand, query) for operand in (key, value))
    scores = b.node("matmul", [query, _turned(b, key)])
    factor = query.type.size(query.type.rank - 1) ** -0.5 if scale is None else float(scale)
    if factor != 1.0:
        scores = b.node("mul", [scores, factor])
    mask: list[Operand] = []
    if attn_mask is not None and attn_mask.type.dtype is DType.BOOL and not isinstance(attn_mask, Leaf):
        mask.append(attn_mask)
    elif attn_mask is not None:
        scores = b.node("add", [scores, _added_mask(b, attn_mask, scores)])
    if is_causal:
        rows, columns = (operand.type.shape[-2] for operand in (query, key))
        if not isinstance(rows, int) or not isinstance(columns, int):
            raise b.unsupported("a causal mask over an axis of symbolic size", "Use a fixed length.")
        kept = torch.ones(rows, columns, dtype=torch.bool, device=b.device).tril()
        scores = b.node("add", [scores, _added_mask(b, Leaf("constant", "", kept), scores)])
    weights = b.node("softmax", [scores, *mask], axis=scores.type.rank - 1)
    return b.node("matmul", [weights, value])


def _turned(b: Builder, operand: Operand) -> Value:
    """The last two axes exchanged."""
    rank = operand.type.rank
    return b.node("permute", [operand], axes=(*range(rank - 2), rank - 1, rank - 2))


def _repeated_heads(b: Builder, operand: Operand, query: Operand) -> Operand:
    """Each head of keys or values once for every query head of its group."""
    axis = operand.type.rank - 3
    heads, wanted = operand.type.shape[axis], query.type.shape[query.type.rank - 3]
    if not isinstance(heads, int) or not isinstance(wanted, int):
        raise b.unsupported("grouped queries over a symbolic number of heads", "Use a fixed number of heads.")
    return picked(b, operand, axis, [head for head in range(heads) for _ in range(wanted // heads)])


def _added_mask(b: Builder, mask: Operand, scores: Value) -> Operand:
    """The numbers that a mask adds to scores."""
    if mask.type.dtype.is_float:
        return mask
    assert isinstance(mask, Leaf)
    zeros = torch.zeros(mask.tensor.shape, dtype=scores.type.dtype.torch, device=mask.tensor.device)
    return Leaf("constant", "", zeros.masked_fill(~mask.tensor, -torch.inf))


@rule("baddbmm")
def _baddbmm(
    b: Builder, input: Operand, batch1: Operand, batch2: Operand, *, beta: float = 1, alpha: float = 1
) -> Value:
    product = b.node("matmul", [batch1, batch2])
    scaled = product if alpha == 1 else b.node("mul", [product, float(alpha)])
    if beta == 0:
        return scaled
    return b.node("add", [scaled, input if beta == 1 else b.node("mul", [input, float(beta)])])


@rule("einsum")
def _einsum(b: Builder, equation: str, *operands: object, path: object = None) -> Operand:
    """Two operands without an ellipsis: a matrix product between permutations and reshapes.

    Letters of both operands that the result has are outer axes; those that it lacks are summed. Each of the others
    belongs to one operand.
    """
    listed = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    given = cast("Sequence[Operand]", listed)
    terms, arrow, result = equation.replace(" ", "").partition("->")
    names = terms.split(",")
    repeated = any(len(set(name)) < len(name) for name in (*names, result))
    if len(given) != 2 or not arrow or "." in equation or repeated:
        raise b.unsupported(f"einsum of {equation!r}", "Write it with matmul, permute and sum.")
    (left, right), (x, y) = names, given
    outer = [c for c in result if c in left and c in right]
    summed = [c for c in left if c in right and c not in result]
    mine, other = ([c for c in name if c not in outer and c not in summed] for name in (left, right))
    if not summed or set(outer + mine + other) != set(result):
        raise b.unsupported(f"einsum of {equation!r}", "Write it with matmul, permute and sum.")
    sizes = dict(zip(left + right, (*x.type.shape, *y.type.shape), strict=True))
    first = _grouped(b, x, left, sizes, outer, mine, summed)
    second = _grouped(b, y, right, sizes, outer, summed, other)
    multiplied = b.node("matmul", [first, second])
    order = [*outer, *mine, *other]
    spread = _shaped(b, multiplied, [sizes[c] for c in order])
    return _ordered(b, spread, "".join(order), result)


def _grouped(
    b: Builder, x: Operand, letters: str, sizes: dict[str, Dim], outer: list[str], rows: list[str], columns: list[str]
) -> Operand:
    """[outer..., rows, columns], each group of letters one axis."""
    ordered = _ordered(b, x, letters, "".join([*outer, *rows, *columns]))
    grouped: list[Dim] = [product([sizes[c] for c in group]) for group in (rows, columns)]
    return _shaped(b, ordered, [*(sizes[c] for c in outer), *grouped])


def _ordered(b: Builder, x: Operand, letters: str, wanted: str) -> Operand:
    if letters == wanted:
        return x
    return b.node("permute", [x], axes=tuple(letters.index(c) for c in wanted))


def _shaped(b: Builder, x: Operand, shape: list[Dim]) -> Operand:
    return x if list(x.type.shape) == shape else b.node("reshape", [x], shape=tuple(shape))
