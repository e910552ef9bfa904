"""Sums of products: convolutions, transposed convolutions, linear layers, matrix products."""

from __future__ import annotations

from qcompiler.frontends.builder import Builder, Operand, Rule
from qcompiler.frontends.table import Ints, Number, as_tuple, known_sizes, rule
from qcompiler.ir.graph import Value


def _convolution(rank: int) -> Rule:
    def rule(
        b: Builder,
        input: Operand,
        weight: Operand,
        bias: Operand | None = None,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
    ) -> Value:
        dilations = as_tuple(dilation, rank)
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(dilations, known_sizes(weight)[2:], strict=True)]
            pads = (*(t // 2 for t in totals), *(t - t // 2 for t in totals))
        elif isinstance(padding, str):
            if padding != "valid":
                raise b.unsupported(f"a convolution with padding={padding!r}", "Use numbers for the padding.")
            pads = (0,) * 2 * rank
        else:
            pads = as_tuple(padding, rank) * 2
        inputs = [input, weight] if bias is None else [input, weight, bias]
        return b.node(
            f"conv{rank}d", inputs, stride=as_tuple(stride, rank), padding=pads, dilation=dilations, groups=groups
        )

    return rule


def _transposed(rank: int) -> Rule:
    def rule(
        b: Builder,
        input: Operand,
        weight: Operand,
        bias: Operand | None = None,
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        dilation: Ints = 1,
    ) -> Value:
        return b.node(
            f"conv_transpose{rank}d",
            [input, weight] if bias is None else [input, weight, bias],
            stride=as_tuple(stride, rank),
            padding=as_tuple(padding, rank),
            output_padding=as_tuple(output_padding, rank),
            groups=groups,
            dilation=as_tuple(dilation, rank),
        )

    return rule


for _rank in (1, 2, 3):
    rule(f"conv{_rank}d")(_convolution(_rank))
    rule(f"conv_transpose{_rank}d")(_transposed(_rank))


@rule("convolution")
def _aten_convolution(
    b: Builder,
    input: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    transposed: bool,
    output_padding: Ints,
    groups: int,
) -> object:
    rank = weight.type.rank - 2
    if transposed:
        return _transposed(rank)(b, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _convolution(rank)(b, input, weight, bias, stride, padding, dilation, groups)


@rule("linear")
def _linear(b: Builder, input: Operand, weight: Operand, bias: Operand | None = None) -> Value:
    return b.node("linear", [input, weight] if bias is None else [input, weight, bias])


@rule("matmul")
def _matmul(b: Builder, input: Operand, other: Operand) -> Value:
    return b.node("matmul", [input, other])


@rule("mm")
def _mm(b: Builder, input: Operand, mat2: Operand) -> Value:
    weight = _untransposed(mat2)
    return b.node("matmul", [input, mat2]) if weight is None else b.node("linear", [input, weight])


@rule("addmm")
def _addmm(b: Builder, input: Operand, mat1: Operand, mat2: Operand, *, beta: Number = 1, alpha: Number = 1) -> Value:
    if beta != 1 or alpha != 1:
        raise b.unsupported(f"addmm with beta={beta} and alpha={alpha}", "Multiply the operands by beta and alpha.")
    weight = _untransposed(mat2)
    if weight is not None and input.type.shape == weight.type.shape[:1]:
        return b.node("linear", [mat1, weight, input])
    return b.node("add", [b.node("matmul", [mat1, mat2]), input])


def _untransposed(operand: Operand) -> Value | None:
    """The transpose of `operand`, if it exists: torch.export splits a linear layer into a transpose and a product."""
    node = operand.made_by("permute") if isinstance(operand, Value) else None
    return node.inputs[0] if node is not None and operand.type.rank == 2 else None
