"""Exact evaluation of quantizers: real numbers, codes of another grid, or what waits, to codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.errors import CalibrationError
from qcompiler.ir.attributes import Attribute
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table
from qcompiler.ops.quantization import spread_factors
from qcompiler.ops.quantizers import channel_limits, clamped_limits
from qcompiler.quant.affine import AffineParams, along_axis, quantize, quantize_bias
from qcompiler.quant.arithmetic import Arithmetic, rescale_codes, rescale_multiplier
from qcompiler.quant.spec import QuantSpec
from qcompiler.validation.exact.values import Codes, Exact, Pending, Rule, codes_of, real_of

exact: Table[Rule] = Table()


@exact("fake_quantize")
def fake_quantize(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """Codes on the grid of the quantizer."""
    x, scale, zero_point = operands[:3]
    spec = node.spec
    params = _params(node, scale, zero_point, spec)
    qmin = node.integer("qmin", spec.qmin)
    qmax = node.integer("qmax", spec.qmax)
    if isinstance(x, Tensor):
        factors = spread_factors(spec, x, [real_of(node, item) for item in operands[3:]])
        codes = quantize(x, params.scale, params.zero_point, spec, qmin, qmax, factors).to(torch.int64)
        if factors is None:
            return Codes(codes, params, qmin, qmax, spec.bits)
        # In sums of products, a weight counts as code times block factor.
        largest = int(factors.max())
        return Codes(codes * factors, params, qmin * largest, qmax * largest, spec.bits)
    x = waiting(node, x, arithmetic)
    low, high = clamped_limits(x.low, x.high, params, spec, qmin, qmax)
    if x.channels is None:
        return Codes(x.requantize(params, low, high), params, low, high, spec.bits)
    least, most, axis = x.channels
    limits = [torch.tensor(codes) for codes in channel_limits(least, most, params, spec, low, high)]
    low, high = int(limits[0].min()), int(limits[1].max())
    codes = x.requantize(params, low, high)
    limited = codes.clamp(*(along_axis(ends, codes.dim(), axis) for ends in limits))
    return Codes(limited, params, low, high, spec.bits)


@exact("fake_quantize_bias")
def fake_quantize_bias(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A bias in steps of the products."""
    bias, scale = real_of(node, operands[0]), real_of(node, operands[1])
    params = AffineParams(scale, torch.zeros_like(scale, dtype=torch.int32), 0 if scale.dim() else None)
    bits = node.integer("bits")
    limit = 2 ** (bits - 1)
    return Codes(quantize_bias(bias, scale, arithmetic.bias_rounding, bits), params, -limit, limit - 1, bits)


def waiting(node: Node, x: Exact, arithmetic: Arithmetic) -> Pending:
    """A result that waits for its grid: from integer arithmetic, or codes that change their grid.

    Raises:
        GraphError: `x` is real numbers.
    """
    return x if isinstance(x, Pending) else rescaled(codes_of(node, x), arithmetic)


def rescaled(x: Codes, arithmetic: Arithmetic) -> Pending:
    """Codes that wait for another grid."""
    computes = arithmetic.at("rescale", x.bits)

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        return rescale_codes(
            x.codes,
            rescale_multiplier(x.params, out, computes),
            in_zero_point=int(x.params.zero_point),
            out_zero_point=int(out.zero_point),
            qmin=qmin,
            qmax=qmax,
        )

    return Pending(requantize)


def _params(node: Node, scale: Exact, zero_point: Exact, spec: QuantSpec) -> AffineParams:
    s, z = real_of(node, scale), real_of(node, zero_point)
    if not bool(torch.isfinite(s).all()):
        raise CalibrationError("the quantizer has no range yet", where=node.where, fix="Run a calibration pass first.")
    return AffineParams(s.detach(), z.detach().to(torch.int32), spec.axis if s.dim() else None)


def _default(value: Attribute, default: int) -> Attribute:
    return default if value is None else value
