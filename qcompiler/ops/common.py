"""What the definitions of several ops share: stages, typed access to attributes, shape arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from qcompiler.errors import GraphError
from qcompiler.ir.dims import Dim, Shape, as_dim
from qcompiler.ir.graph import Attribute
from qcompiler.ir.types import DType, Stage, TensorType

FLOAT_STAGES = frozenset({Stage.FLOAT, Stage.CANONICAL, Stage.QUANTIZED})
"""Ops on real numbers; in an integer graph they stand only inside a called float graph."""
ANY_STAGE = frozenset(Stage)
QUANTIZED_ONLY = frozenset({Stage.QUANTIZED})
INTEGER_ONLY = frozenset({Stage.INTEGER})


def ints(attributes: Mapping[str, Attribute], name: str) -> tuple[int, ...]:
    """A tuple of ints."""
    return cast("tuple[int, ...]", attributes[name])


def integer(attributes: Mapping[str, Attribute], name: str) -> int:
    """An int."""
    return cast("int", attributes[name])


def real(attributes: Mapping[str, Attribute], name: str) -> float:
    """A float."""
    return float(cast("float", attributes[name]))


def same_type(types: Sequence[TensorType], attributes: Mapping[str, Attribute]) -> tuple[TensorType, ...]:
    """The type of the first operand."""
    return (types[0],)


def same_real_type(types: Sequence[TensorType], attributes: Mapping[str, Attribute]) -> tuple[TensorType, ...]:
    """The type of the first operand, which must be a float."""
    if not types[0].dtype.is_float:
        raise GraphError(f"a function of real numbers is given {types[0]}", expected="a float tensor")
    return (types[0],)


def like_first(types: Sequence[TensorType], attributes: Mapping[str, Attribute]) -> tuple[TensorType, ...]:
    """The shape of the first operand, with the element type of the attribute `dtype`."""
    return (TensorType(DType(str(attributes["dtype"])), types[0].shape),)


def window_size(
    size: Dim, kernel: int, stride: int, pad: int, dilation: int, *, ceil: bool = False, begin: int = 0
) -> Dim:
    """Output size of a sliding window along one axis.

        floor((size + pad - dilation * (kernel - 1) - 1) / stride) + 1

    Args:
        size: Input size.
        kernel: Window size.
        stride: Step of the window.
        pad: Padding at both ends together.
        dilation: Distance of the taps.
        ceil: Round up instead, but let no window start behind the input and the padding in front of it.
        begin: Padding in front, for `ceil`.

    Raises:
        GraphError: The window is larger than the padded input.
    """
    span = size + pad - dilation * (kernel - 1) - 1
    if isinstance(span, int) and span < 0:
        raise GraphError(
            f"a window of {dilation * (kernel - 1) + 1} does not fit into {size} elements padded by {pad}",
            expected="an input at least as large as the window",
        )
    result = as_dim((span + (stride - 1 if ceil else 0)) // stride + 1)
    if ceil and isinstance(result, int) and (result - 1) * stride >= cast("int", size) + begin:
        result -= 1
    return result


def broadcast(left: Shape, right: Shape) -> Shape:
    """The common shape of two operands by numpy's rules.

    Raises:
        GraphError: Two sizes differ and none is 1.
    """
    rank = max(len(left), len(right))
    a = (1,) * (rank - len(left)) + left
    b = (1,) * (rank - len(right)) + right
    result: list[Dim] = []
    for x, y in zip(a, b, strict=True):
        if x == y or y == 1:
            result.append(x)
        elif x == 1:
            result.append(y)
        else:
            raise GraphError(f"the shapes {list(left)} and {list(right)} do not broadcast", expected="equal sizes or 1")
    return tuple(result)


def check_float(types: Sequence[TensorType]) -> None:
    """Refuse operands that are not floating point."""
    for type in types:
        if not type.dtype.is_float:
            raise GraphError(f"an operand is {type}", expected="floating point numbers")
