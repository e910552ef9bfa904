"""Exact evaluation of softmax and its logarithm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.log_softmax import log_softmax_codes, log_softmax_parameters
from qcompiler.quant.softmax import softmax_codes, softmax_parameters
from qcompiler.validation.exact.values import Exact, Pending, Rule, codes_of, real_of

exact: Table[Rule] = Table()


@exact("softmax")
def softmax(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A softmax in integers; the mask is exact."""
    x, axis = codes_of(node, operands[0]), node.integer("axis")
    mask = real_of(node, operands[1]) if len(operands) > 1 else None

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        bits = 16 if max(abs(qmin), abs(qmax)) > 255 else 8
        mode = arithmetic.softmax_mode(max(bits, x.bits))
        try:
            constants = softmax_parameters(
                x.params, out, mode, count=x.codes.shape[axis], distance=x.qmax - x.qmin, bits=bits
            )
        except InputError as error:
            raise UnsupportedError(error.found, where=node.where, expected=error.expected, fix=error.fix) from None
        return softmax_codes(x.codes, axis, constants, mask, out_zero_point=int(out.zero_point), qmin=qmin, qmax=qmax)

    return Pending(requantize)


@exact("log_softmax")
def log_softmax(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """The logarithm of a softmax, rounded once."""
    x, axis = codes_of(node, operands[0]), node.integer("axis")

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        try:
            constants = log_softmax_parameters(x.params, out, distance=x.qmax - x.qmin)
        except InputError as error:
            raise UnsupportedError(error.found, where=node.where, expected=error.expected, fix=error.fix) from None
        return log_softmax_codes(x.codes, axis, constants, out_zero_point=int(out.zero_point), qmin=qmin, qmax=qmax)

    return Pending(requantize)
