"""Exact evaluation of sums of products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.table import Table
from qcompiler.ops.layers import Layer
from qcompiler.quant.accumulator import exact_in_float64
from qcompiler.quant.affine import AffineParams, along_axis
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.requant import factored_scale, prepare_requantization, real_multiplier
from qcompiler.validation.exact.values import Exact, Pending, Rule, codes_of

exact: Table[Rule] = Table()


@exact(Trait.WEIGHTED)
def mac(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """Sums of products of codes; the accumulator waits for its quantizer."""
    x, weight = codes_of(node, operands[0]), codes_of(node, operands[1])
    layer, computes = Layer(node), arithmetic.at(node.op, x.bits)
    low, high = (code - int(x.params.zero_point) for code in (x.qmin, x.qmax))
    if not exact_in_float64(weight.steps(), low, high, int(layer.transposed)):
        raise GraphError("a sum of products may exceed float64", where=node.where, expected="less than 2^53")
    terms = [x.steps().to(torch.float64), weight.steps().to(torch.float64)]
    acc = node.definition.evaluate(node, terms)[0].to(torch.int64)
    axis = layer.output_axis
    for bias in operands[2:]:
        acc = acc + along_axis(codes_of(node, bias).codes, acc.dim(), axis)
    per_channel = weight.params.axis is not None

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        real = real_multiplier(x.params.scale, weight.params.scale, out.scale, computes.requant)
        multiplier = prepare_requantization(real, computes.requant)
        zero_point = int(out.zero_point)
        return multiplier.apply(acc, zero_point=zero_point, qmin=qmin, qmax=qmax, axis=axis if per_channel else None)

    return Pending(requantize)


@exact(Trait.CONTRACTION)
def contraction(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """Sums of products of the codes of two activations; the accumulator waits for its quantizer."""
    a, b = codes_of(node, operands[0]), codes_of(node, operands[1])
    computes = arithmetic.at(node.op, max(a.bits, b.bits))
    if a.codes.shape[-1] * a.largest_step() * b.largest_step() >= 2**53:
        raise GraphError("a sum of products may exceed float64", where=node.where, expected="less than 2^53")
    terms = [a.steps().to(torch.float64), b.steps().to(torch.float64)]
    acc = torch.matmul(*terms).to(torch.int64)

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        real = real_multiplier(
            factored_scale(a.params.scale, node.number("factor")), b.params.scale, out.scale, computes.requant
        )
        multiplier = prepare_requantization(real, computes.requant)
        return multiplier.apply(acc, zero_point=int(out.zero_point), qmin=qmin, qmax=qmax, axis=None)

    return Pending(requantize)
