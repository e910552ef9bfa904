"""Exact evaluation of sums and products of two values, and of activations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import Trait
from qcompiler.ir.table import Table
from qcompiler.ops.quantizers import activation_bounds
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.arithmetic import (
    Arithmetic,
    FloatOperation,
    add_codes,
    add_parameters,
    elementwise_float32,
    mul_codes,
    mul_parameters,
)
from qcompiler.validation.exact.quantizers import waiting
from qcompiler.validation.exact.values import Codes, Exact, Pending, Rule, codes_of, real_of

exact: Table[Rule] = Table()


@exact("add")
def add(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A sum of codes."""
    return _sum(node, operands, arithmetic, "add")


@exact("sub")
def sub(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A difference of codes."""
    return _sum(node, operands, arithmetic, "sub")


def _sum(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic, operation: Literal["add", "sub"]) -> Pending:
    a, b = (codes_of(node, item) for item in operands)
    computes = arithmetic.at(node.op, max(a.bits, b.bits))
    if computes.elementwise == "f32":
        return _in_float32(operation, a, b)
    largest, subtract = max(a.largest_step(), b.largest_step()), operation == "sub"

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        sums = add_parameters(a.params, b.params, out, computes, largest=largest, subtract=subtract)
        return add_codes(a.codes, b.codes, sums, qmin=qmin, qmax=qmax)

    return Pending(requantize)


@exact("mul")
def mul(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A product of codes."""
    a, b = (codes_of(node, item) for item in operands)
    computes = arithmetic.at(node.op, max(a.bits, b.bits))
    if computes.elementwise == "f32":
        return _in_float32("mul", a, b)

    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        products = mul_parameters(a.params, b.params, out, computes)
        return mul_codes(a.codes, b.codes, products, qmin=qmin, qmax=qmax)

    return Pending(requantize)


def _in_float32(operation: FloatOperation, a: Codes, b: Codes) -> Pending:
    def requantize(out: AffineParams, qmin: int, qmax: int) -> Tensor:
        return elementwise_float32(operation, (a.codes, b.codes), (a.params, b.params), out, qmin=qmin, qmax=qmax)

    return Pending(requantize)


@exact(Trait.ACTIVATION)
def activation(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A tighter clamp of what waits."""
    pending = waiting(node, operands[0], arithmetic)
    low, high = activation_bounds(node)
    # clamp(clamp(x, a, b), c, d) clamps a and b as well.
    low, high = min(max(pending.low, low), high), max(min(pending.high, high), low)
    return dataclasses.replace(pending, low=low, high=high)


@exact("clamp_channels")
def clamp_channels(node: Node, operands: Sequence[Exact], arithmetic: Arithmetic) -> Exact:
    """A clamp of what waits, with a pair of bounds per channel."""
    pending = waiting(node, operands[0], arithmetic)
    axis = node.integer("axis")
    low, high = (real_of(node, item) for item in operands[1:])
    before = (torch.full_like(low, -math.inf), torch.full_like(low, math.inf))
    if pending.channels is not None:
        before = pending.channels[:2]
        if pending.channels[2] != axis:
            raise GraphError("channels are clamped along two axes", where=node.where, expected="a quantizer in between")
    # Order: bounds per channel, bounds of the whole tensor, then these bounds.
    ends = [bound.clamp(pending.low, pending.high).clamp(low, high) for bound in before]
    return Pending(pending.requantize, channels=(ends[0], ends[1], axis))
