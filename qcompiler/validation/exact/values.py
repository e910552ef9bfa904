"""The values of exact evaluation: real numbers, codes, and accumulators that wait for their quantizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from qcompiler.errors import GraphError
from qcompiler.ir.graph import Node
from qcompiler.quant.affine import AffineParams, along_axis, dequantize
from qcompiler.quant.arithmetic import Arithmetic

Requantize: TypeAlias = Callable[[AffineParams, int, int], Tensor]


@dataclass(frozen=True)
class Codes:
    """int64 codes with scale and zero point, code limits and width."""

    codes: Tensor
    params: AffineParams
    qmin: int
    qmax: int
    bits: int

    def real(self) -> Tensor:
        """float32 values."""
        return dequantize(self.codes, self.params.scale, self.params.zero_point, self.params.axis)

    def steps(self) -> Tensor:
        """int64 codes with the zero point removed."""
        return self.codes - along_axis(self.params.zero_point, self.codes.dim(), self.params.axis)

    def largest_step(self) -> int:
        """Largest magnitude of a code within the limits, zero point removed. Per tensor."""
        zero = int(self.params.zero_point)
        return max(abs(self.qmin - zero), abs(self.qmax - zero))


@dataclass(frozen=True)
class Pending:
    """Arithmetic that waits for the scale and zero point of its output.

    Args:
        requantize: Function from output grid and code limits to int64 codes.
        low: Real lower bound of an activation in between.
        high: Real upper bound.
        channels: Real bounds of a clamp per channel in between, [C] each, and the channel axis; applied before `low`
            and `high`.
    """

    requantize: Requantize
    low: float = -math.inf
    high: float = math.inf
    channels: tuple[Tensor, Tensor, int] | None = None


Exact: TypeAlias = "Tensor | Codes | Pending"
Rule: TypeAlias = Callable[[Node, Sequence[Exact], Arithmetic], Exact]
"""(node, its operands, arithmetic of the target) -> its result. Not all of the operands are real numbers, except those
of a quantizer."""


def codes_of(node: Node, item: Exact) -> Codes:
    """`item` as codes.

    Raises:
        GraphError: It is something else.
    """
    if isinstance(item, Codes):
        return item
    kind = "real numbers" if isinstance(item, Tensor) else "an accumulator"
    raise GraphError(f"{node.op} reads {kind}", where=node.where, expected="a quantizer before it")


def real_of(node: Node, item: Exact) -> Tensor:
    """`item` as real numbers.

    Raises:
        GraphError: It is something else.
    """
    if isinstance(item, Tensor):
        return item
    raise GraphError(f"{node.op} is given codes", where=node.where, expected="real numbers")
