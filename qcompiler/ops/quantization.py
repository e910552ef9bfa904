"""Quantizers: fake quantization in a float graph, and conversion at the boundaries of an integer program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.attributes import Attributes, integer
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import REQUIRED, OpDef, Trait, register
from qcompiler.ir.types import DType, TensorType
from qcompiler.ops.common import (
    INTEGER_ONLY,
    QUANTIZED_ONLY,
    check_float,
    check_integer,
    check_rounding,
    code_limits,
    like_first,
)
from qcompiler.quant import affine
from qcompiler.quant.blocks import block_axis, block_count, expand_factors
from qcompiler.quant.rounding import Rounding, round_float
from qcompiler.quant.spec import QuantSpec


def _infer_fake_quantize(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types[:1])
    spec, rank = attributes["spec"], types[0].rank
    if not isinstance(spec, QuantSpec):
        raise GraphError(f"the specification is {spec!r}", expected="a QuantSpec")
    if spec.axis is not None and not -rank <= spec.axis < rank:
        raise GraphError(f"a quantizer {spec} of {types[0]}", expected=f"an axis from {-rank} to {rank - 1}")
    code_limits(attributes, spec.qmin, spec.qmax)
    channels = () if spec.axis is None else (types[0].shape[spec.axis],)
    for type in types[1:3]:
        if type.shape != channels:
            raise GraphError(f"the quantizer {spec} of {types[0]} has a parameter {type}", expected=f"shape {channels}")
    _check_factors(types, spec)
    return (types[0],)


def _check_factors(types: Sequence[TensorType], spec: QuantSpec) -> None:
    """Check that a grid with blocks has a factor per block, and that a grid without blocks has no factors."""
    found = [str(type) for type in types[3:]]
    if spec.block is None:
        if found:
            raise GraphError(f"a quantizer {spec} has factors {found[0]}", expected="none without blocks")
        return
    x = types[0]
    possible = spec.signed and spec.symmetric and spec.axis in (0, 1) and x.rank > 1
    size = x.shape[block_axis(spec.axis or 0)] if possible else None
    if not isinstance(size, int) or not isinstance(x.shape[spec.axis or 0], int):
        raise GraphError(
            f"a quantizer {spec} of {x}",
            expected="a signed symmetric one, channels and inputs on the first two axes",
        )
    expected = f"u8[{x.shape[spec.axis or 0]}, {block_count(size, spec.block)}]"
    if found != [expected]:
        raise GraphError(f"a quantizer {spec} of {x} has factors {', '.join(found) or 'nowhere'}", expected=expected)


def _fake_quantize(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    x, scale, zero_point = operands[:3]
    if not is_calibrated(scale):
        return (x,)
    spec = node.spec
    qmin, qmax = node.integer("qmin", spec.qmin), node.integer("qmax", spec.qmax)
    factors = spread_factors(spec, x, operands[3:])
    return (affine.fake_quantize(x, scale, zero_point, spec, qmin, qmax, factors),)


def spread_factors(spec: QuantSpec, x: Tensor, factors: Sequence[Tensor]) -> Tensor | None:
    """A factor for each element of `x`, int32; None for a grid without blocks.

    Args:
        spec: Specification of the quantizer.
        x: Tensor to quantize.
        factors: One tensor [C, blocks], or an empty sequence.
    """
    if spec.block is None or spec.axis is None:
        return None
    return expand_factors(factors[0].to(torch.int32), x.shape, spec.axis, spec.block)


def is_calibrated(scale: Tensor) -> bool:
    """Whether a scale has been found: NaN stands for "not yet"."""
    return bool(torch.isfinite(scale).all())


register(
    OpDef(
        name="fake_quantize",
        operands=("x", "scale", "zero_point", "factors?"),
        attributes={"spec": REQUIRED, "qmin": None, "qmax": None},
        infer=_infer_fake_quantize,
        evaluate=_fake_quantize,
        stages=QUANTIZED_ONLY,
        traits=frozenset({Trait.QUANTIZER}),
        summary="x rounded to a grid with steps of scale, or of scale * factor; the identity while the scale is NaN.",
    )
)


def _infer_fake_quantize_bias(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types[:1])
    check_rounding(attributes)
    if not 2 <= integer(attributes, "bits") <= 64:
        raise GraphError(f"a bias of {attributes['bits']} bits", expected="2 to 64")
    if types[1].shape not in ((), types[0].shape):
        raise GraphError(f"the bias is {types[0]} and its scale {types[1]}", expected="one scale, or one per element")
    return (types[0],)


def _fake_quantize_bias(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    bias, scale = operands
    if not is_calibrated(scale):
        return (bias,)
    # float64 holds every 32-bit step; both operands have straight-through gradients.
    wide = scale.detach().to(torch.float64)
    steps = round_float(bias.detach().to(torch.float64) / wide, Rounding(node.text("rounding")))
    return (bias + ((steps * wide).to(bias.dtype) - bias).detach(),)


register(
    OpDef(
        name="fake_quantize_bias",
        operands=("bias", "scale"),
        attributes={"rounding": REQUIRED, "bits": 32},
        infer=_infer_fake_quantize_bias,
        evaluate=_fake_quantize_bias,
        stages=QUANTIZED_ONLY,
        traits=frozenset({Trait.BIAS_QUANTIZER}),
        summary="A bias in steps of input scale x weight scale; the identity while the scale is NaN.",
    )
)


def _infer_scale_product(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    if types[0].rank and types[1].rank and types[0].shape != types[1].shape:
        raise GraphError(f"the scales are {types[0]} and {types[1]}", expected="equal numbers of elements, or one")
    return (types[0] if types[0].rank else types[1],)


register(
    OpDef(
        name="scale_product",
        operands=("a", "b"),
        infer=_infer_scale_product,
        evaluate=lambda node, operands: (operands[0] * operands[1],),
        stages=QUANTIZED_ONLY,
        summary="The float32 product of two scales.",
    )
)


def codes_limits(node: Node) -> tuple[int, int]:
    """Lowest and highest code of the result of an integer op."""
    return code_limits(node.attributes, *node.output.type.dtype.limits)


def grid(node: Node, operand: int | None = None) -> affine.AffineParams:
    """Scale and zero point of the result, or of an operand.

    Raises:
        GraphError: The value is not quantized.
    """
    value = node.output if operand is None else node.inputs[operand]
    quant = value.type.quant
    if quant is None:
        raise GraphError(f"%{value.name} is {value.type}", where=node.where, expected="codes with a grid")
    return affine.AffineParams(quant.scale_tensor(), quant.zero_point_tensor(), quant.axis)


def _infer_quantize(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_float(types)
    check_rounding(attributes)
    return like_first(types, attributes)


def _quantize(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    params, dtype = grid(node), node.output.type.dtype
    spec = QuantSpec(bits=dtype.bits, signed=dtype.limits[0] < 0, rounding=Rounding(node.text("rounding")))
    codes = affine.quantize(operands[0], params.scale, params.zero_point, spec, *codes_limits(node))
    return (codes.to(dtype.torch),)


register(
    OpDef(
        name="quantize",
        operands=("x",),
        attributes={"rounding": REQUIRED, "dtype": REQUIRED, "qmin": None, "qmax": None},
        infer=_infer_quantize,
        evaluate=_quantize,
        stages=INTEGER_ONLY,
        traits=frozenset({Trait.REQUANTIZES}),
        summary="clamp(round(x / scale) + zero_point, qmin, qmax).",
    )
)


def _infer_dequantize(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_integer(types)
    return (TensorType(DType.F32, types[0].shape),)


def _dequantize(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    params = grid(node, 0)
    return (affine.dequantize(operands[0].to(torch.int32), params.scale, params.zero_point, params.axis),)


def _infer_expand_blocks(types: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    check_integer(types)
    (x, factors), axis, block = types, integer(attributes, "axis"), integer(attributes, "block")
    size = x.shape[block_axis(axis)] if axis in (0, 1) and x.rank > 1 else None
    if block < 1 or not isinstance(size, int) or factors.shape != (x.shape[axis], block_count(size, block)):
        raise GraphError(f"{factors} for blocks of {block} of {x} along axis {axis}", expected="[channels, blocks]")
    return (TensorType(DType.I16, x.shape),)


def _expand_blocks(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    codes, factors = (operand.to(torch.int16) for operand in operands)
    axis, block = node.integer("axis"), node.integer("block")
    return (codes * expand_factors(factors, codes.shape, axis, block),)


register(
    OpDef(
        name="expand_blocks",
        operands=("codes", "factors"),
        attributes={"axis": REQUIRED, "block": REQUIRED},
        infer=_infer_expand_blocks,
        evaluate=_expand_blocks,
        stages=INTEGER_ONLY,
        traits=frozenset({Trait.REQUANTIZES}),
        summary="codes * factor of their block: the weight of a layer; programs store both separately.",
    )
)

register(
    OpDef(
        name="dequantize",
        operands=("x",),
        infer=_infer_dequantize,
        evaluate=_dequantize,
        stages=INTEGER_ONLY,
        summary="scale * (code - zero_point).",
    )
)
