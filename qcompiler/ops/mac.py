"""Sums of products: convolutions, transposed convolutions, linear layers, matrix products.

The padding of a convolution is a tuple of all begins, then all ends. The attribute `statistics` names a tensor [2, C]
of the module with mean and standard deviation of each output channel, if a folded batch norm supplied them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, integer, integers, number
from qcompiler.ir.dims import Dim, as_dim
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import Evaluate, Infer, OpDef, Trait, register
from qcompiler.ir.types import TensorType
from qcompiler.ops.common import FLOAT_STAGES, broadcast, check_float, sizes, window_size

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)

_Shape: TypeAlias = Callable[[Sequence[TensorType], Attributes, int], tuple[Dim, ...]]
_Compute: TypeAlias = Callable[[Tensor, Tensor, "Tensor | None", Attributes, int], Tensor]


def conv_shape(types: Sequence[TensorType], attributes: Attributes, rank: int) -> tuple[Dim, ...]:
    """Output shape of a convolution of `rank` spatial axes.

    Raises:
        GraphError: Ranks, channels, groups or attributes do not fit, or the kernel is larger than the padded image.
    """
    x = types[0].shape
    stride, dilation = (sizes(attributes, key, rank, 1) for key in ("stride", "dilation"))
    padding = sizes(attributes, "padding", 2 * rank, 0)
    groups = integer(attributes, "groups")
    out, channels, *kernel = _weight_shape(types, rank)
    if groups < 1 or x[1] != channels * groups or out % groups:
        raise GraphError(
            f"{x[1]} input channels do not match the weight [{out}, {channels}, ...] in {groups} groups",
            expected=f"{channels * groups} input channels, and output channels divisible by the groups",
        )
    if len(types) > 2 and types[2].shape != (out,):
        raise GraphError(f"the bias is {types[2]}", expected=f"[{out}]")
    windows = [
        window_size(x[2 + i], kernel[i], stride[i], padding[i] + padding[rank + i], dilation[i]) for i in range(rank)
    ]
    return (x[0], out, *windows)


def _weight_shape(types: Sequence[TensorType], rank: int) -> tuple[int, ...]:
    """Sizes of the weight, the second operand, of a convolution of `rank` spatial axes."""
    weight = tuple(size for size in types[1].shape if isinstance(size, int) and size > 0)
    if types[0].rank != rank + 2 or types[1].rank != rank + 2 or len(weight) != rank + 2:
        raise GraphError(
            f"the input is {types[0]} and the weight {types[1]}",
            expected=f"{rank + 2} dimensions each, with known positive sizes of the weight",
        )
    return weight


def pad_amounts(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Padding amounts in the order of torch.nn.functional.pad: last axis first."""
    return [size for begin, end in zip(reversed(begins), reversed(ends), strict=True) for size in (begin, end)]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, attributes: Attributes, rank: int) -> Tensor:
    """The convolution that `attributes` describe, for any floating-point type."""
    stride, padding, dilation = (integers(attributes, key) for key in ("stride", "padding", "dilation"))
    begins, ends = padding[:rank], padding[rank:]
    if begins != ends:
        x = functional.pad(x, pad_amounts(begins, ends))
        begins = (0,) * rank
    return _CONV[rank - 1](x, weight, bias, stride, begins, dilation, integer(attributes, "groups"))


def conv_transpose_shape(types: Sequence[TensorType], attributes: Attributes, rank: int) -> tuple[Dim, ...]:
    """Output shape of a transposed convolution of `rank` spatial axes.

    Raises:
        GraphError: Ranks, channels, groups or attributes do not fit, or the output is empty.
    """
    x = types[0].shape
    stride, dilation = (sizes(attributes, key, rank, 1) for key in ("stride", "dilation"))
    padding, extra = (sizes(attributes, key, rank, 0) for key in ("padding", "output_padding"))
    groups = integer(attributes, "groups")
    rows, channels, *kernel = _weight_shape(types, rank)
    if groups < 1 or x[1] != rows or rows % groups:
        raise GraphError(
            f"{x[1]} input channels do not match the weight [{rows}, {channels}, ...] in {groups} groups",
            expected="as many input channels as rows of the weight, divisible by the groups",
        )
    if any(extra[i] >= max(stride[i], dilation[i]) for i in range(rank)):
        raise GraphError(f"output_padding is {extra}", expected="a number less than the stride or the dilation")
    out = channels * groups
    if len(types) > 2 and types[2].shape != (out,):
        raise GraphError(f"the bias is {types[2]}", expected=f"[{out}]")
    spans = [
        as_dim((x[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + extra[i] + 1)
        for i in range(rank)
    ]
    if any(isinstance(span, int) and span < 1 for span in spans):
        raise GraphError(f"padding is {padding}", expected="padding that leaves a non-empty output")
    return (x[0], out, *spans)


def convolve_transposed(x: Tensor, weight: Tensor, bias: Tensor | None, attributes: Attributes, rank: int) -> Tensor:
    """The transposed convolution that `attributes` describe, for any floating-point type."""
    stride, padding, extra, dilation = (
        integers(attributes, key) for key in ("stride", "padding", "output_padding", "dilation")
    )
    groups = integer(attributes, "groups")
    return _CONV_TRANSPOSE[rank - 1](x, weight, bias, stride, padding, extra, groups, dilation)


def _convolution(shape: _Shape, compute: _Compute, rank: int) -> tuple[Infer, Evaluate]:
    """Type inference and evaluation of a convolution of `rank` spatial axes, transposed or not."""

    def infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
        check_float(types)
        return (TensorType(types[0].dtype, shape(types, attributes, rank)),)

    def evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        bias = operands[2] if len(operands) > 2 else None
        return (compute(operands[0], operands[1], bias, node.attributes, rank),)

    return infer, evaluate


for _rank in (1, 2, 3):
    _infer, _evaluate = _convolution(conv_shape, convolve, _rank)
    register(
        OpDef(
            name=f"conv{_rank}d",
            operands=("x", "weight", "bias?"),
            attributes={
                "stride": (1,) * _rank,
                "padding": (0,) * 2 * _rank,
                "dilation": (1,) * _rank,
                "groups": 1,
                "statistics": None,
                "center": None,
            },
            infer=_infer,
            evaluate=_evaluate,
            stages=FLOAT_STAGES,
            traits=frozenset({Trait.MAC, Trait.WEIGHTED, Trait.CONVOLUTION}),
            summary="Cross-correlation; weight [out, in / groups, kernel...], padding (begins..., ends...).",
        )
    )
    _infer, _evaluate = _convolution(conv_transpose_shape, convolve_transposed, _rank)
    register(
        OpDef(
            name=f"conv_transpose{_rank}d",
            operands=("x", "weight", "bias?"),
            attributes={
                "stride": (1,) * _rank,
                "padding": (0,) * _rank,
                "output_padding": (0,) * _rank,
                "dilation": (1,) * _rank,
                "groups": 1,
                "statistics": None,
                "center": None,
            },
            infer=_infer,
            evaluate=_evaluate,
            stages=FLOAT_STAGES,
            traits=frozenset({Trait.MAC, Trait.WEIGHTED, Trait.CONVOLUTION, Trait.TRANSPOSED}),
            summary="Transposed convolution; weight [in, out / groups, kernel...].",
        )
    )


def linear_shape(types: Sequence[TensorType]) -> tuple[Dim, ...]:
    """Output shape of a linear layer.

    Raises:
        GraphError: The last size of the input differs from the second size of the weight.
    """
    x, weight = types[0].shape, types[1].shape
    if len(weight) != 2 or not x or x[-1] != weight[1]:
        raise GraphError(f"the input is {types[0]} and the weight {types[1]}", expected="[..., in] and [out, in]")
    if len(types) > 2 and types[2].shape != (weight[0],):
        raise GraphError(f"the bias is {types[2]}", expected=f"[{weight[0]}]")
    return (*x[:-1], weight[0])


def _infer_linear(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    return (TensorType(types[0].dtype, linear_shape(types)),)


def _evaluate_linear(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (functional.linear(*operands),)


register(
    OpDef(
        name="linear",
        operands=("x", "weight", "bias?"),
        attributes={"statistics": None, "center": None},
        infer=_infer_linear,
        evaluate=_evaluate_linear,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.MAC, Trait.WEIGHTED}),
        summary="x W^T + b; weight [out, in].",
    )
)


def matmul_shape(types: Sequence[TensorType]) -> tuple[Dim, ...]:
    """Output shape of a matrix product: [..., m, k] times [..., k, n], the other axes broadcast.

    Raises:
        GraphError: The operands have fewer than two axes, or their inner or outer sizes differ.
    """
    a, b = types[0].shape, types[1].shape
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise GraphError(f"the operands are {types[0]} and {types[1]}", expected="[..., m, k] and [..., k, n]")
    return (*broadcast(a[:-2], b[:-2]), a[-2], b[-1])


def _infer_matmul(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    if not number(attributes, "factor") > 0.0:
        raise GraphError(f"the factor is {attributes['factor']}", expected="a number above 0")
    return (TensorType(types[0].dtype, matmul_shape(types)),)


def _evaluate_matmul(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    product, factor = torch.matmul(operands[0], operands[1]), node.number("factor")
    return (product if factor == 1.0 else product * factor,)


register(
    OpDef(
        name="matmul",
        operands=("a", "b"),
        attributes={"factor": 1.0},
        infer=_infer_matmul,
        evaluate=_evaluate_matmul,
        stages=FLOAT_STAGES,
        traits=frozenset({Trait.MAC, Trait.CONTRACTION}),
        summary="Matrix product over the last two axes, batched over the others, times a factor.",
    )
)
