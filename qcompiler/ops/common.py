"""Helpers shared by operator definitions: stages, checks of attributes, shape arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attribute, integer
from qcompiler.ir.dims import Dim, Shape, as_dim
from qcompiler.ir.types import DType, Stage, TensorType
from qcompiler.quant.rounding import AverageRounding, Rounding

FLOAT_STAGES = frozenset({Stage.FLOAT, Stage.CANONICAL, Stage.QUANTIZED})
"""Stages of ops on real numbers; an integer graph holds such ops only inside a called float graph."""
ANY_STAGE = frozenset(Stage)
QUANTIZED_ONLY = frozenset({Stage.QUANTIZED})
INTEGER_ONLY = frozenset({Stage.INTEGER})


def sizes(attributes: Mapping[str, Attribute], name: str, count: int, least: int) -> tuple[int, ...]:
    """A tuple of `count` ints that are at least `least`.

    Raises:
        GraphError: The attribute is something else.
    """
    value = attributes[name]
    if not isinstance(value, tuple) or len(value) != count:
        raise GraphError(f"{name} is {value}", expected=f"{count} integers")
    found = tuple(item for item in value if isinstance(item, int) and item >= least)
    if len(found) != count:
        raise GraphError(f"{name} is {value}", expected=f"integers of at least {least}")
    return found


def same_type(types: Sequence[TensorType], attributes: Mapping[str, Attribute]) -> tuple[TensorType, ...]:
    """The type of the first operand."""
    return (types[0],)


def same_real_type(types: Sequence[TensorType], attributes: Mapping[str, Attribute]) -> tuple[TensorType, ...]:
    """The type of the first operand, which must be a float."""
    if not types[0].dtype.is_float:
        raise GraphError(f"a function of real numbers has the operand {types[0]}", expected="a float tensor")
    return (types[0],)


def like_first(types: Sequence[TensorType], attributes: Mapping[str, Attribute]) -> tuple[TensorType, ...]:
    """The shape of the first operand, with the element type of the attribute `dtype`."""
    return (TensorType(result_dtype(attributes), types[0].shape),)


def result_dtype(attributes: Mapping[str, Attribute], channels: Dim | None = None) -> DType:
    """The integer type that the attribute `dtype` names, which must hold the limits `qmin` and `qmax`.

    Args:
        attributes: Attributes of the op.
        channels: Number of channels of the result, where limits may differ per channel.

    Raises:
        GraphError: `dtype` names no integer type, or the limits are out of order or out of range.
    """
    name = str(attributes["dtype"])
    if name not in set(DType) or DType(name).is_float or DType(name) is DType.BOOL:
        raise GraphError(f"the element type is {name!r}", expected="an integer type")
    dtype = DType(name)
    if channels is None:
        code_limits(attributes, *dtype.limits)
    else:
        channel_code_limits(attributes, *dtype.limits, channels)
    return dtype


def code_limits(attributes: Mapping[str, Attribute], low: int, high: int) -> tuple[int, int]:
    """The attributes `qmin` and `qmax`; `low` and `high` where they are None.

    Raises:
        GraphError: The limits are out of order, or outside of low..high.
    """
    qmin = low if attributes["qmin"] is None else integer(attributes, "qmin")
    qmax = high if attributes["qmax"] is None else integer(attributes, "qmax")
    if not low <= qmin <= qmax <= high:
        raise GraphError(f"the codes are limited to {qmin}..{qmax}", expected=f"an interval in {low}..{high}")
    return qmin, qmax


def channel_code_limits(
    attributes: Mapping[str, Attribute], low: int, high: int, channels: Dim
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The attributes `qmin` and `qmax`, each a code or a tuple with one code per channel, as tuples.

    Raises:
        GraphError: A tuple has another length, or a pair is out of order, or outside of low..high.
    """
    found = []
    for name, default in (("qmin", low), ("qmax", high)):
        value = attributes[name]
        given = value if isinstance(value, tuple) else (default if value is None else value,)
        codes = tuple(code for code in given if isinstance(code, int))
        if len(codes) != len(given) or (isinstance(value, tuple) and len(codes) != channels):
            raise GraphError(f"{name} is {value!r}", expected=f"an integer, or {channels} of them")
        found.append(codes)
    count = max(map(len, found))
    for qmin, qmax in zip(*(codes * (count // len(codes)) for codes in found), strict=True):
        code_limits({"qmin": qmin, "qmax": qmax}, low, high)
    return found[0], found[1]


def check_rounding(
    attributes: Mapping[str, Attribute], modes: type[Rounding] | type[AverageRounding] = Rounding
) -> None:
    """Refuse an attribute `rounding` that names none of `modes`."""
    if attributes["rounding"] not in set(modes):
        raise GraphError(f"the rounding is {attributes['rounding']!r}", expected="one of " + ", ".join(modes))


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
        ceil: Round up instead, but start no window after the end of the input and the padding before it.
        begin: Padding before the input, for `ceil`.

    Raises:
        GraphError: The window is larger than the padded input, or the number of windows cannot be written as a formula
            of a symbolic size.
    """
    span = size + pad - dilation * (kernel - 1) - 1 + (stride - 1 if ceil else 0)
    if isinstance(span, int) and span < 0:
        raise GraphError(
            f"a window of {dilation * (kernel - 1) + 1} does not fit into {size} elements with padding {pad}",
            expected="an input at least as large as the window",
        )
    if ceil and not isinstance(span, int) and stride + begin > dilation * (kernel - 1) + 1:
        # torch drops the last window for some sizes only, which a formula of the size cannot express.
        raise GraphError(
            f"the number of windows is rounded up along an axis of {size} elements", expected="an axis of known size"
        )
    result = as_dim(span // stride + 1)
    if ceil and isinstance(result, int) and isinstance(size, int) and (result - 1) * stride >= size + begin:
        result -= 1
    return result


def broadcast(left: Shape, right: Shape) -> Shape:
    """The common shape of two operands by numpy's rules.

    Raises:
        GraphError: Two sizes differ and neither is 1.
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
    """Refuse operands that are not floating point, or not of one type."""
    for type in types:
        if not type.dtype.is_float:
            raise GraphError(f"an operand is {type}", expected="floating point numbers")
        if type.dtype is not types[0].dtype:
            raise GraphError(f"the operands are {types[0]} and {type}", expected="one element type")


def check_integer(types: Sequence[TensorType]) -> None:
    """Refuse operands that are not integers."""
    for type in types:
        if type.dtype.is_float or type.dtype is DType.BOOL:
            raise GraphError(f"an operand is {type}", expected="integers")
