"""Integer ops: the instructions of an integer core, one op per instruction.

All codes are int64 internally. Sums of products run in float64 if the weights prove that every partial sum, in any
order, stays below 2^53 and is therefore exact; other sums are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, flag, integer, integers, number, text
from qcompiler.ir.dims import Dim, Shape
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, Evaluate, Infer, OpDef, Trait, register
from qcompiler.ir.types import DType, TensorType
from qcompiler.ops.common import INTEGER_ONLY, broadcast, check_integer, check_rounding, result_dtype
from qcompiler.ops.mac import conv_shape, conv_transpose_shape, convolve, convolve_transposed, linear_shape
from qcompiler.ops.pooling import AVG_POOL_ATTRIBUTES, mean_shape, pool_shape
from qcompiler.ops.quantization import codes_limits, grid
from qcompiler.quant.accumulator import exact_in_float64
from qcompiler.quant.affine import along_axis
from qcompiler.quant.arithmetic import (
    ELEMENTWISE_FLOAT32,
    AddParameters,
    AverageParameters,
    FloatOperation,
    MulParameters,
    add_codes,
    elementwise_float32,
    global_average_codes,
    mul_codes,
    windowed_average_codes,
)
from qcompiler.quant.requant import Requantization, RequantMode
from qcompiler.quant.rounding import AverageRounding

_RESULT: dict[str, object] = {"dtype": REQUIRED, "qmin": None, "qmax": None}
REQUANTIZED: dict[str, object] = {"mode": REQUIRED, **_RESULT}
REQUANTIZES = frozenset({Trait.REQUANTIZES})
_Shape = Callable[[Sequence[TensorType], Attributes, int], Shape]
_Convolve = Callable[[Tensor, Tensor, Tensor | None, Attributes, int], Tensor]


def _requantization(node: Node, operands: Sequence[Tensor], first: int) -> Requantization:
    """The multiplier in the operands from `first` on: one operand per part of the mode's form."""
    return Requantization.of(RequantMode(node.text("mode")), operands[first:])


def check_requantized(types: Sequence[TensorType], attributes: Attributes, first: int, channels: Dim = 1) -> DType:
    """Check the operands and attributes that all requantizing ops share; return the element type of the result.

    Args:
        types: Types of all operands: integers, with the parts of the multiplier from `first` on.
        attributes: Attributes of the op.
        first: Index of the first operand that holds the multiplier.
        channels: Number of multipliers, and of limits, if they differ per channel; a single one always fits.

    Raises:
        GraphError: The mode, number, types and shapes of the operands do not fit together.
    """
    check_integer(types[:first])
    mode = attributes["mode"]
    if mode not in set(RequantMode):
        raise GraphError(f"the mode is {mode!r}", expected="one of " + ", ".join(RequantMode))
    parts = tuple(map(DType, RequantMode(str(mode)).form.parts))
    found = types[first:]
    shapes = {type.shape for type in found}
    if tuple(type.dtype for type in found) != parts or len(shapes) != 1 or shapes.isdisjoint({(1,), (channels,)}):
        raise GraphError(
            f"the multiplier is {', '.join(map(str, found))}",
            expected=f"{' and '.join(parts)} of 1 or {channels} elements for mode '{mode}'",
        )
    return result_dtype(attributes, None if channels == 1 else channels)


def _finish(node: Node, codes: Tensor) -> tuple[Tensor, ...]:
    return (codes.to(node.output.type.dtype.torch),)


def steps(node: Node, operands: Sequence[Tensor], index: int) -> Tensor:
    """int64 codes of operand `index` with the zero point removed."""
    params = grid(node, index)
    codes = operands[index].to(torch.int64)
    return codes - along_axis(params.zero_point, codes.dim(), params.axis)


def limits_along(node: Node, codes: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest codes, to broadcast with `codes`: a single pair, or a pair per channel along `axis`."""
    given = zip(("qmin", "qmax"), node.output.type.dtype.limits, strict=True)
    values = (default if node.attributes[name] is None else node.attributes[name] for name, default in given)
    low, high = (along_axis(torch.tensor(value, device=codes.device), codes.dim(), axis) for value in values)
    return low, high


def apply(node: Node, operands: Sequence[Tensor], acc: Tensor, axis: int, first: int) -> tuple[Tensor, ...]:
    """Requantize an accumulator.

    Args:
        node: Node with the mode, and the grid and limits of the result.
        operands: Operands of the node; the parts of the multiplier begin at index `first`.
        acc: Accumulators, int64.
        axis: Channel axis, if multipliers or limits differ per channel.
        first: See `operands`.
    """
    requantization = _requantization(node, operands, first)
    low, high = limits_along(node, acc, axis)
    zero_point = int(grid(node).zero_point)
    per_channel = axis if operands[first].numel() > 1 else None
    if per_channel is None:
        requantization = requantization.reshape()
    qmin, qmax = int(low.min()), int(high.max())
    codes = requantization.apply(acc, zero_point=zero_point, qmin=qmin, qmax=qmax, axis=per_channel)
    return _finish(node, codes.clamp(low, high) if low.dim() or high.dim() else codes)


def _factors(node: Node, operands: Sequence[Tensor], axis: int = 0) -> tuple[Tensor, Tensor]:
    """Input and weight in float64, zero points removed; `axis` is the output channel axis of the weight.

    Raises:
        GraphError: A sum of products might not be exact in float64.
    """
    x, weight = (steps(node, operands, index).to(torch.float64) for index in (0, 1))
    zero_point = int(grid(node, 0).zero_point)
    low, high = (limit - zero_point for limit in node.inputs[0].type.dtype.limits)
    if not exact_in_float64(weight, low, high, axis):
        raise GraphError("a sum of products may exceed float64", where=node.where, expected="less than 2^53")
    return x, weight


def _conv(rank: int, shape: _Shape, convolve: _Convolve, axis: int) -> tuple[Infer, Evaluate]:
    def infer(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
        result = shape(types[:3], attributes, rank)
        return (TensorType(check_requantized(types, attributes, 3, result[1]), result),)

    def evaluate(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        x, weight = _factors(node, operands, axis)
        acc = convolve(x, weight, None, node.attributes, rank).to(torch.int64)
        bias = operands[2].to(torch.int64).reshape(1, -1, *[1] * rank)
        return apply(node, operands, acc + bias, 1, 3)

    return infer, evaluate


def _infer_linear(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    shape = linear_shape(types[:3])
    return (TensorType(check_requantized(types, attributes, 3, shape[-1]), shape),)


def _linear(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, weight = _factors(node, operands)
    acc = functional.linear(x, weight).to(torch.int64) + operands[2].to(torch.int64)
    return apply(node, operands, acc, acc.dim() - 1, 3)


for _rank in (1, 2, 3):
    _infer, _evaluate = _conv(_rank, conv_shape, convolve, 0)
    register(
        OpDef(
            name=f"int_conv{_rank}d",
            operands=("x", "weight", "bias", "multiplier", "exponent?"),
            attributes={
                "stride": (1,) * _rank,
                "padding": (0,) * 2 * _rank,
                "dilation": (1,) * _rank,
                "groups": 1,
                **REQUANTIZED,
            },
            infer=_infer,
            evaluate=_evaluate,
            stages=INTEGER_ONLY,
            traits=REQUANTIZES | {Trait.WEIGHTED, Trait.CONVOLUTION},
            summary="requantize(sum (x - z_x)(w - z_w) + bias); padding adds nothing.",
        )
    )
    _infer, _evaluate = _conv(_rank, conv_transpose_shape, convolve_transposed, 1)
    register(
        OpDef(
            name=f"int_conv_transpose{_rank}d",
            operands=("x", "weight", "bias", "multiplier", "exponent?"),
            attributes={
                "stride": (1,) * _rank,
                "padding": (0,) * _rank,
                "output_padding": (0,) * _rank,
                "dilation": (1,) * _rank,
                "groups": 1,
                **REQUANTIZED,
            },
            infer=_infer,
            evaluate=_evaluate,
            stages=INTEGER_ONLY,
            traits=REQUANTIZES | {Trait.WEIGHTED, Trait.CONVOLUTION, Trait.TRANSPOSED},
            summary="requantize of a transposed convolution; weight [in, out / groups, kernel...].",
        )
    )
register(
    OpDef(
        name="int_linear",
        operands=("x", "weight", "bias", "multiplier", "exponent?"),
        attributes=REQUANTIZED,
        infer=_infer_linear,
        evaluate=_linear,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES | {Trait.WEIGHTED},
        summary="requantize(sum (x - z_x)(w - z_w) + bias).",
    )
)


def _infer_binary(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_integer(types)
    modes = (*RequantMode, ELEMENTWISE_FLOAT32)
    if attributes["mode"] not in modes:
        raise GraphError(f"the mode is {attributes['mode']!r}", expected="one of " + ", ".join(modes))
    return (TensorType(result_dtype(attributes), broadcast(types[0].shape, types[1].shape)),)


def _in_float32(node: Node, operands: Sequence[Tensor], operation: FloatOperation) -> tuple[Tensor, ...]:
    """The result of the mode `f32`, computed from the scales and zero points without a multiplier."""
    qmin, qmax = codes_limits(node)
    codes = [operand.to(torch.int64) for operand in operands]
    grids = [grid(node, 0), grid(node, 1)]
    return _finish(node, elementwise_float32(operation, codes, grids, grid(node), qmin=qmin, qmax=qmax))


def _scalar(attributes: Attributes, name: str) -> Requantization:
    """The multiplier `name` read from attributes."""
    mode = RequantMode(text(attributes, "mode"))
    wide = torch.float32 if mode is RequantMode.FLOAT32_RNE else torch.int32
    parts = {f"{name}_multiplier": wide, f"{name}_exponent": torch.int8}
    return Requantization.of(
        mode,
        [
            torch.tensor(number(attributes, part), dtype=dtype)
            for part, dtype in parts.items()
            if attributes[part] is not None
        ],
    )


def _float32(attributes: Attributes, name: str) -> Tensor | None:
    return None if attributes[name] is None else torch.tensor(number(attributes, name), dtype=torch.float32)


def _add(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    a = node.attributes
    if a["mode"] == ELEMENTWISE_FLOAT32:
        return _in_float32(node, operands, "sub" if a["subtract"] else "add")
    parameters = AddParameters(
        left=_scalar(a, "left"),
        right=_scalar(a, "right"),
        out=_scalar(a, "out") if (a["out_multiplier"], a["out_exponent"]) != (None, None) else None,
        left_zero_point=int(grid(node, 0).zero_point),
        right_zero_point=int(grid(node, 1).zero_point),
        out_zero_point=int(grid(node).zero_point),
        shift=integer(a, "shift"),
        offset=_float32(a, "offset"),
        scalar_left_offset=_float32(a, "scalar_left_offset"),
        subtract=flag(a, "subtract"),
    )
    qmin, qmax = codes_limits(node)
    left, right = (operand.to(torch.int64) for operand in operands)
    return _finish(node, add_codes(left, right, parameters, qmin=qmin, qmax=qmax))


def _mul(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if node.attributes["mode"] == ELEMENTWISE_FLOAT32:
        return _in_float32(node, operands, "mul")
    parameters = MulParameters(
        product=_scalar(node.attributes, "product"),
        left_zero_point=int(grid(node, 0).zero_point),
        right_zero_point=int(grid(node, 1).zero_point),
        out_zero_point=int(grid(node).zero_point),
    )
    qmin, qmax = codes_limits(node)
    left, right = (operand.to(torch.int64) for operand in operands)
    return _finish(node, mul_codes(left, right, parameters, qmin=qmin, qmax=qmax))


register(
    OpDef(
        name="int_add",
        operands=("a", "b"),
        attributes={
            **{f"{side}_{part}": REQUIRED for side in ("left", "right", "out") for part in ("multiplier", "exponent")},
            "shift": REQUIRED,
            "offset": REQUIRED,
            "scalar_left_offset": REQUIRED,
            "subtract": False,
            **REQUANTIZED,
        },
        infer=_infer_binary,
        evaluate=_add,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="Both operands on one scale, added or subtracted, requantized; or in float32 (mode f32).",
    )
)
register(
    OpDef(
        name="int_mul",
        operands=("a", "b"),
        attributes={"product_multiplier": REQUIRED, "product_exponent": REQUIRED, **REQUANTIZED},
        infer=_infer_binary,
        evaluate=_mul,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="requantize((a - z_a)(b - z_b)), or the product in float32 (mode f32).",
    )
)


def _infer_mean(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    if attributes["divisor"] is not None:
        check_rounding(attributes, AverageRounding)
        mode = text(attributes, "mode")
        if integer(attributes, "divisor") < 1 or (mode in set(RequantMode) and not RequantMode(mode).is_shift):
            raise GraphError(
                f"the divisor is {attributes['divisor']} for mode '{mode}'",
                expected="at least 1, with a multiplier that is a power of two",
            )
    return (TensorType(check_requantized(types, attributes, 1), mean_shape(types, attributes)),)


def _mean(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    divisor = node.integer("divisor") if node.given("divisor") else None
    rounding = AverageRounding(str(node.attributes["rounding"] or AverageRounding.NEAREST_EVEN))
    qmin, qmax = codes_limits(node)
    codes = global_average_codes(
        operands[0].to(torch.int64),
        node.integers("axes"),
        AverageParameters(_requantization(node, operands, 1).reshape(), divisor, rounding),
        in_zero_point=int(grid(node, 0).zero_point),
        out_zero_point=int(grid(node).zero_point),
        qmin=qmin,
        qmax=qmax,
        keepdim=node.flag("keepdim"),
    )
    return _finish(node, codes)


register(
    OpDef(
        name="int_mean",
        operands=("x", "multiplier", "exponent?"),
        attributes={"axes": REQUIRED, "keepdim": False, "divisor": None, "rounding": None, **REQUANTIZED},
        infer=_infer_mean,
        evaluate=_mean,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="requantize(sum (x - z_x)) with the division in the multiplier, or sum * 2^e / divisor, rounded once.",
    )
)


def window_counts(size: tuple[int, int], attributes: Attributes) -> Tensor:
    """The divisor of each window of an average pooling over an image of `size`: int64 [out_h, out_w]."""
    kernel, stride, padding = (integers(attributes, key) for key in ("kernel", "stride", "padding"))
    ceil = flag(attributes, "ceil_mode")
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    taps = functional.avg_pool2d(ones, kernel, stride, padding, ceil, True, 1)[0, 0]
    if attributes["divisor_override"] is not None:
        return torch.full(taps.shape, integer(attributes, "divisor_override"))
    # torch divides by the window clipped to the padded image; the mean of ones gives the ratio of the two counts.
    share = functional.avg_pool2d(ones, kernel, stride, padding, ceil, flag(attributes, "count_include_pad"))[0, 0]
    return (taps / share + 0.5).floor().to(torch.int64)


def window_sums(x: Tensor, attributes: Attributes) -> Tensor:
    """int64 sums of `x`: [N, C, H, W] over each window."""
    kernel, stride, padding = (integers(attributes, key) for key in ("kernel", "stride", "padding"))
    ceil = flag(attributes, "ceil_mode")
    return functional.avg_pool2d(x.to(torch.float64), kernel, stride, padding, ceil, True, 1).to(torch.int64)


def _check_one_grid(node: Node, what: str) -> None:
    """Check that input and result have one scale and zero point."""
    if node.inputs[0].type.quant != node.output.type.quant:
        raise GraphError(
            f"the result of {what} has another grid than the input",
            where=node.where,
            expected="one grid for input and result",
        )


def _infer_avg_pool2d(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_integer(types)
    check_rounding(attributes, AverageRounding)
    return (TensorType(result_dtype(attributes), pool_shape(types, attributes)),)


def _avg_pool2d(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    _check_one_grid(node, "average pooling")
    x = steps(node, operands, 0)
    height, width = x.shape[2:]
    qmin, qmax = codes_limits(node)
    codes = windowed_average_codes(
        window_sums(x, node.attributes),
        window_counts((height, width), node.attributes),
        AverageRounding(node.text("rounding")),
        zero_point=int(grid(node).zero_point),
        qmin=qmin,
        qmax=qmax,
    )
    return _finish(node, codes)


register(
    OpDef(
        name="int_avg_pool2d",
        operands=("x",),
        attributes={**AVG_POOL_ATTRIBUTES, "rounding": REQUIRED, **_RESULT},
        infer=_infer_avg_pool2d,
        evaluate=_avg_pool2d,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="divide(sum (x - z), n) + z over each window, on one grid.",
    )
)


def _infer_resample2d(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    x, rows, columns, divisor = types
    fits = x.rank == 4 and rows.rank == columns.rank == 2 and divisor.shape == (rows.shape[0], columns.shape[0])
    if not fits or (rows.shape[1], columns.shape[1]) != x.shape[2:]:
        raise GraphError(
            f"operands {', '.join(map(str, types))}", expected="[N, C, H, W], [out_h, H], [out_w, W], [out_h, out_w]"
        )
    check_integer(types)
    check_rounding(attributes, AverageRounding)
    return (TensorType(result_dtype(attributes), (*x.shape[:2], rows.shape[0], columns.shape[0])),)


def _resample2d(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    _check_one_grid(node, "resampling")
    x, rows, columns = (item.to(torch.float64) for item in (steps(node, operands, 0), *operands[1:3]))
    qmin, qmax = codes_limits(node)
    codes = windowed_average_codes(
        (rows @ x @ columns.T).to(torch.int64),
        operands[3].to(torch.int64),
        AverageRounding(node.text("rounding")),
        zero_point=int(grid(node).zero_point),
        qmin=qmin,
        qmax=qmax,
    )
    return _finish(node, codes)


register(
    OpDef(
        name="int_resample2d",
        operands=("x", "rows", "columns", "divisor"),
        attributes={"rounding": REQUIRED, "function": REQUIRED, "parameters": (), **_RESULT},
        infer=_infer_resample2d,
        evaluate=_resample2d,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="divide(R (x - z) C^T, D) + z: adaptive pooling and resizing, on one grid.",
    )
)


def _infer_lookup(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_integer(types)
    dtype, (x, table, *rows), axis = result_dtype(attributes), types, attributes["axis"]
    if axis is None:
        fits = table.rank == 1 and not rows
    else:
        channels = rows[0].shape if rows else table.shape[:1]
        fits = isinstance(axis, int) and 0 <= axis < x.rank and table.rank == 2 and channels == (x.shape[axis],)
    if not fits or table.dtype is not dtype:
        named = f"{table} with rows {rows[0]}" if rows else str(table)
        raise GraphError(
            f"the table is {named}, for {x} along axis {axis}",
            expected=f"{dtype}, one entry per code, and a row or row number per channel",
        )
    return (TensorType(dtype, x.shape),)


def _lookup(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, table, *chosen = operands
    index = x.to(torch.int64) - node.integer("offset")
    if not node.given("axis"):
        return _finish(node, table[index])
    rows = chosen[0].to(torch.int64) if chosen else torch.arange(table.shape[0], device=table.device)
    return _finish(node, table[along_axis(rows, x.dim(), node.integer("axis")), index])


register(
    OpDef(
        name="lookup",
        operands=("x", "table", "rows?"),
        attributes={"offset": REQUIRED, "function": REQUIRED, "parameters": (), "scales": (), "axis": None, **_RESULT},
        infer=_infer_lookup,
        evaluate=_lookup,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="table[x - offset]; with an axis, channel c uses row rows[c], or row c, of the table.",
    )
)


def _infer_rescale(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    return (TensorType(check_requantized(types, attributes, 1), types[0].shape),)


def _rescale(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return apply(node, operands, steps(node, operands, 0), 1, 1)


register(
    OpDef(
        name="rescale",
        operands=("x", "multiplier", "exponent?"),
        attributes=REQUANTIZED,
        infer=_infer_rescale,
        evaluate=_rescale,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="requantize(x - z_x) from one grid to another.",
    )
)


def _infer_clamp(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_integer(types)
    (x,), axis = types, integer(attributes, "axis")
    if not 0 < axis < x.rank:
        raise GraphError(f"the axis is {axis}", expected=f"1 to {x.rank - 1}, for {x}")
    return (TensorType(result_dtype(attributes, x.shape[axis]), x.shape),)


def _clamp(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    _check_one_grid(node, "a clamp of codes")
    codes = operands[0].to(torch.int64)
    return _finish(node, codes.clamp(*limits_along(node, codes, node.integer("axis"))))


register(
    OpDef(
        name="int_clamp",
        operands=("x",),
        attributes={"axis": REQUIRED, **_RESULT},
        infer=_infer_clamp,
        evaluate=_clamp,
        stages=INTEGER_ONLY,
        traits=REQUANTIZES,
        summary="min(max(x, qmin), qmax) on one grid with limits for each channel along `axis`.",
    )
)
