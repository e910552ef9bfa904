"""Exact evaluation of functions of one number by lookup tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qcompiler.ir.graph import Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.table import Table
from qcompiler.ops import SCALED, UNARY, prelu_function, unary_of
from qcompiler.quant.affine import AffineParams, along_axis
from qcompiler.quant.arithmetic import Arithmetic, RealFunction, lookup_table
from qcompiler.validation.exact.values import Codes, Exact, Pending, Rule, codes_of, real_of

exact: Table[Rule] = Table()


@exact(Trait.UNARY)
def table(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """One table for all channels."""
    x = codes_of(node, operands[0])
    return _tables(x, [UNARY[node.op].table(node)], torch.tensor(0), 1, arithmetic.at(node.op, x.bits))


@exact("prelu")
def prelu(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A table for each slope."""
    x, slopes = codes_of(node, operands[0]), real_of(node, operands[1])
    rows = torch.arange(len(slopes)) if len(slopes) > 1 else torch.tensor(0)
    return _tables(x, [prelu_function(float(slope)) for slope in slopes], rows, 1, arithmetic.at(node.op, x.bits))


@exact(SCALED)
def scaled_unary(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A table for each different scale of a channel."""
    x, scales, function = codes_of(node, operands[0]), real_of(node, operands[1]), unary_of(node)
    different, rows = scales.unique(return_inverse=True)
    functions = [function.table(node, float(scale)) for scale in different]
    axis = node.integer("axis")
    return _tables(x, functions, rows, axis, arithmetic.at(node.op, x.bits))


def _tables(x: Codes, functions: Sequence[RealFunction], rows: Tensor, axis: int, computes: Arithmetic) -> Pending:
    """Function `rows[c]` for channel c; one function for all channels if `rows` is one number."""

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        limits = {"in_qmin": x.qmin, "in_qmax": x.qmax, "out_qmin": qmin, "out_qmax": qmax}
        tables = torch.stack([lookup_table(item, x.params, out, computes, **limits) for item in functions])
        return tables[along_axis(rows, x.codes.dim(), axis), x.codes - x.qmin]

    return Pending(requantize)
