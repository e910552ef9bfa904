"""Exact evaluation of means over axes and windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table
from qcompiler.ops.integer import window_counts, window_sums
from qcompiler.ops.quantizers import with_zero
from qcompiler.ops.resampling import resampling_weights
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.arithmetic import Arithmetic, average_parameters, global_average_codes, windowed_average_codes
from qcompiler.validation.exact.values import Codes, Exact, Pending, Rule, codes_of

exact: Table[Rule] = Table()


@exact("mean")
def mean(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A mean over axes."""
    x = codes_of(node, operands[0])
    axes = node.integers("axes")
    count = math.prod(x.codes.shape[axis] for axis in axes)

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        return global_average_codes(
            x.codes,
            axes,
            average_parameters(x.params.scale, out.scale, count, arithmetic.at(node.op, x.bits)),
            in_zero_point=int(x.params.zero_point),
            out_zero_point=int(out.zero_point),
            qmin=qmin,
            qmax=qmax,
            keepdim=node.flag("keepdim"),
        )

    return Pending(requantize)


@exact("avg_pool2d")
def avg_pool2d(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """Means of windows, on the grid of the operand."""
    x = codes_of(node, operands[0])
    height, width = x.codes.shape[2:]
    total = window_sums(x.steps(), node.attributes)
    count = window_counts((height, width), node.attributes)
    qmin, qmax = with_zero(node, x.params, (x.qmin, x.qmax))
    average = windowed_average_codes(
        total,
        count,
        arithmetic.at(node.op, x.bits).average_rounding,
        zero_point=int(x.params.zero_point),
        qmin=qmin,
        qmax=qmax,
    )
    return Codes(average, x.params, qmin, qmax, x.bits)


@exact("adaptive_avg_pool2d", "resize")
def resample(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """Weighted means along both axes of an image, on the grid of the operand."""
    x = codes_of(node, operands[0])
    divisor = resampling_weights(node)[2]
    # The float64 means of torch times the divisor are integers up to a relative error of 1e-10.
    means = node.definition.evaluate(node, [x.steps().to(torch.float64)])[0]
    total = (means * divisor + 0.5).floor().to(torch.int64)
    average = windowed_average_codes(
        total,
        divisor,
        arithmetic.at(node.op, x.bits).average_rounding,
        zero_point=int(x.params.zero_point),
        qmin=x.qmin,
        qmax=x.qmax,
    )
    return Codes(average, x.params, x.qmin, x.qmax, x.bits)
