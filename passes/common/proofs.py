"""Proves from the real weights that a lowered layer cannot overflow; layers without a proof are refused by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.ir.graph import Node
from qcompiler.ir.registry import Trait
from qcompiler.quant.accumulator import accumulator_bounds, fits, folded_bias, partial_sum_bounds
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.requant import Requantization, prepare_requantization
from qcompiler.quant.requant_limits import requantization_misfit


@dataclass(frozen=True)
class Proofs:
    """The conditions that must hold for one node.

    Args:
        node: The node, for messages.
        arithmetic: Arithmetic of the target for the node.
        target: Name of the target.
    """

    node: Node
    arithmetic: Arithmetic
    target: str

    def prepared(self, real: Tensor) -> Requantization:
        """The integer multiplier for real multipliers.

        Raises:
            UnsupportedError: The mode has no such multiplier.
        """
        try:
            return prepare_requantization(real, self.arithmetic.requant)
        except InputError as error:
            raise UnsupportedError(error.found, where=self.node.where, expected=error.expected, fix=error.fix) from None

    def layer(self, codes: Tensor, bias: Tensor, steps: tuple[int, int], zero_point: int, item: Requantization) -> None:
        """Sums of products with the bias, and their requantization.

        Args:
            codes: int64 [out, ...], zero points removed.
            bias: int64 [out].
            steps: Smallest and largest input, zero point removed.
            zero_point: Zero point of the input.
            item: The multiplier.

        Raises:
            UnsupportedError: The accumulator, or the bias with the zero point folded into it, may overflow.
        """
        arithmetic = self.arithmetic
        kernel_bias, low, high = bias, *steps
        if arithmetic.zero_point_folding == "compiler":
            kernel_bias = folded_bias(codes, bias, zero_point)
            low, high = low + zero_point, high + zero_point
            if not fits(kernel_bias, kernel_bias, arithmetic.bias_bits):
                raise UnsupportedError(
                    f"a bias is {int(kernel_bias[kernel_bias.abs().argmax()])} including the zero point of the input",
                    where=self.node.where,
                    expected=f"a value that fits into the {arithmetic.bias_bits}-bit biases of {self.target}",
                    fix="Increase the weights of the channel, or the input range of the layer.",
                )
        if arithmetic.overflow == "saturate":
            self.sums(*partial_sum_bounds(codes, kernel_bias, low, high))
        elif arithmetic.overflow == "forbid":
            # Raw codes, because the bias includes the zero point: unfinished sums lack terms, so the range includes 0.
            self.sums(*accumulator_bounds(codes, kernel_bias, min(low, 0), max(high, 0)))
        self.sums(*accumulator_bounds(codes, bias, *steps), item)

    def sums(self, minimum: Tensor, maximum: Tensor, item: Requantization | None = None) -> None:
        """Check sums from minimum to maximum, one of each or one per channel.

        Raises:
            UnsupportedError: The accumulator may overflow; or see `requantization`.
        """
        bits = self.arithmetic.accumulator_bits
        if not fits(minimum, maximum, bits):
            extreme = max(int(maximum.max()), -int(minimum.min()))
            raise UnsupportedError(
                f"the accumulator can reach {extreme}",
                where=self.node.where,
                expected=f"at most {2 ** (bits - 1) - 1}: the accumulator of {self.target} has {bits} bits",
                fix=f"Use fewer bits for {self._operands()}.",
            )
        if item is not None:
            self.requantization(minimum, maximum, item)

    def _operands(self) -> str:
        if self.node.definition.has(Trait.CONTRACTION):
            return "one of the two operands, a setting of the layer that computes it"
        return "the input or the weight of this layer"

    def steps(self, steps: tuple[int, int], count: int, item: Requantization | None = None) -> None:
        """Check `sums` of up to `count` inputs, each from steps[0] <= 0 to steps[1] >= 0."""
        low, high = (torch.tensor(step * count) for step in steps)
        self.sums(low, high, item)

    def bounded(self, largest: int, *items: Requantization | None) -> None:
        """Check `requantization` of numbers from -largest to largest, and of their `sums`, by several multipliers."""
        bound = torch.tensor(largest)
        self.sums(-bound, bound)
        for item in items:
            if item is not None:
                self.requantization(-bound, bound, item)

    def requantization(self, minimum: Tensor, maximum: Tensor, item: Requantization) -> None:
        """Check the requantization from an accumulator to a code.

        Raises:
            UnsupportedError: The multiplier is out of the hardware's range, or a product leaves its register.
        """
        found = requantization_misfit(item, self.arithmetic.requant, minimum, maximum)
        if found:
            raise UnsupportedError(
                found,
                where=self.node.where,
                expected=f"numbers that requantization mode '{item.mode}' of {self.target} can hold",
                fix="Use fewer bits for the input of this layer, or more for its output.",
            )
