"""Exact evaluation of operators that move codes unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import GraphError
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.table import Table
from qcompiler.ops.borders import border
from qcompiler.ops.quantizers import border_code
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.validation.exact.values import Codes, Exact, Pending, Rule, codes_of, real_of

exact: Table[Rule] = Table()


@exact(Trait.GUIDED)
def guided(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """The codes of the first operand, at places that exact operands name."""
    x = operands[0]
    others = [item.codes if isinstance(item, Codes) else real_of(node, item) for item in operands[1:]]
    if isinstance(x, Tensor):
        return _move(node, [x, *others])
    x = codes_of(node, x)
    if node.op == "masked":
        zero_point = int(x.params.zero_point)
        codes = torch.where(others[0], x.codes, zero_point)
        return dataclasses.replace(x, codes=codes, qmin=min(x.qmin, zero_point), qmax=max(x.qmax, zero_point))
    return dataclasses.replace(x, codes=_move(node, [x.codes, *others]))


@exact(Trait.MOVEMENT)
def movement(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """The codes of the operands in another order."""
    if len(operands) == 1 and isinstance(operands[0], Pending):
        inner = _per_tensor(node, operands[0])

        def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
            return _move(node, [inner.requantize(out, qmin, qmax)])

        return Pending(requantize, inner.low, inner.high)
    items = [codes_of(node, item) for item in operands]
    first = items[0]
    for item in items[1:]:
        if not (
            torch.equal(item.params.scale, first.params.scale)
            and torch.equal(item.params.zero_point, first.params.zero_point)
        ):
            raise GraphError(f"the operands of {node.op} are on different grids", where=node.where)
    codes = _move(node, [item.codes for item in items])
    low, high = min(i.qmin for i in items), max(i.qmax for i in items)
    return Codes(codes, first.params, low, high, max(i.bits for i in items))


def _move(node: Node, codes: list[Tensor]) -> Tensor:
    return node.definition.evaluate(node, codes)[0]


@exact("pad")
def pad(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A border of one code."""
    x = operands[0]
    pad = node.integers("pad")
    half = len(pad) // 2
    torch_pad = [size for axis in reversed(range(half)) for size in (pad[axis], pad[half + axis])]
    if isinstance(x, Codes):
        code = border_code(node, x.params, (x.qmin, x.qmax))
        qmin, qmax = (min(x.qmin, code), max(x.qmax, code)) if border(node) is not None else (x.qmin, x.qmax)
        return dataclasses.replace(x, codes=functional.pad(x.codes, torch_pad, value=code), qmin=qmin, qmax=qmax)
    raise GraphError(f"{node.op} reads an accumulator", where=node.where, expected="a quantizer before it")


def _per_tensor(node: Node, x: Pending) -> Pending:
    if x.channels is not None:
        raise GraphError(f"{node.op} moves what is clamped per channel", where=node.where, expected="a quantizer first")
    return x
