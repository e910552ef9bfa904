"""Exact evaluation of layer normalization."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table
from qcompiler.ops.normalization import normalized_axes
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.layer_norm import layer_norm_codes, layer_norm_parameters
from qcompiler.validation.exact.values import Exact, Pending, Rule, codes_of, real_of

exact: Table[Rule] = Table()


@exact("layer_norm")
def layer_norm(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A layer normalization in integers."""
    x = codes_of(node, operands[0])
    computes = arithmetic.at(node.op, x.bits)
    weight, bias = (real_of(node, item) for item in operands[1:])
    eps, axes = node.number("eps"), normalized_axes(node)
    count = math.prod(x.codes.shape[axis] for axis in axes)

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        try:
            constants = layer_norm_parameters(
                x.params, weight, bias, eps, out, computes, largest=x.largest_step(), count=count
            )
        except InputError as error:
            raise UnsupportedError(error.found, where=node.where, expected=error.expected, fix=error.fix) from None
        return layer_norm_codes(
            x.steps(),
            constants,
            len(axes),
            centered=node.flag("centered"),
            out_zero_point=int(out.zero_point),
            qmin=qmin,
            qmax=qmax,
        )

    return Pending(requantize)
