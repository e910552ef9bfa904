"""An instruction with the types around it: the argument of every kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qcompiler.ir.types import DType
from qcompiler.program.arithmetic import Int, requantize
from qcompiler.program.program import Instruction, Tensor

FLOAT32_EXACT, FLOAT64_EXACT = 2**24, 2**53
Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Call:
    """An instruction and the types around it."""

    instruction: Instruction
    inputs: tuple[Tensor, ...]
    output: Tensor

    def __getitem__(self, name: str) -> Any:
        return self.instruction.attributes[name]

    def get(self, name: str) -> Any:
        """An attribute, None when it is absent."""
        return self.instruction.attributes.get(name)

    def zero_point(self, index: int) -> int:
        """Zero point of an operand."""
        return self.inputs[index].zero_point[0]

    @property
    def limits(self) -> tuple[Any, Any]:
        """Lowest and highest code of the result: integers, or tuples with one per channel."""
        low, high = limits_of(self.output.dtype)
        return (low if self.get("qmin") is None else self["qmin"], high if self.get("qmax") is None else self["qmax"])

    def requantize(self, acc: Int, multiplier: Array | None, exponent: Array | None) -> Int:
        """Accumulators, channels last, to codes."""
        low, high = (np.asarray(codes, np.int64) for codes in self.limits)
        return requantize(acc, multiplier, exponent, self["mode"], self.output.zero_point[0], low, high)


def limits_of(dtype: str) -> tuple[int, int]:
    """Lowest and highest code of an element type."""
    return DType(dtype).limits


def steps_of(call: Call, arrays: Sequence[Array], index: int) -> Int:
    """Codes of an operand with the zero point removed."""
    result: Int = arrays[index].astype(np.int64) - call.zero_point(index)
    return result


def largest_step(tensor: Tensor) -> int:
    """Largest magnitude of a code of a tensor, zero point removed."""
    low, high = limits_of(tensor.dtype)
    return max(high - tensor.zero_point[0], tensor.zero_point[0] - low)


def multiplier_of(arrays: Sequence[Array], first: int) -> tuple[Array | None, Array | None]:
    """Multiplier and exponent: shift modes have only an exponent, float modes only a multiplier."""
    if arrays[first].dtype == np.int8:
        return None, arrays[first]
    return arrays[first], arrays[first + 1] if len(arrays) > first + 1 else None


def scalar_multiplier_of(arrays: Sequence[Array], first: int) -> tuple[Array | None, Array | None]:
    """The same for one multiplier per tensor, which need not broadcast with the last axis."""
    multiplier, exponent = (None if part is None else part[0] for part in multiplier_of(arrays, first))
    return multiplier, exponent


Run: TypeAlias = Callable[[Call, Sequence[Array]], Array]
"""(instruction, operands in logical order) -> the result in logical order."""
Sums: TypeAlias = Callable[[Call, Sequence[Array]], Int]
"""(instruction, operands) -> accumulators of a layer, bias included and channels last."""


@dataclass(frozen=True)
class Kernel:
    """An instruction that a program may hold.

    Args:
        run: Function that computes the result.
        steps: Positions of operands whose zero point is removed; each of them has one zero point.
        requantizes: Whether the computation reads one scale and zero point of the result.
        in_place: Positions of operands whose place the result may take if their sizes agree; the instruction runs from
            the first to the last element.
        moves: Whether each code of the result is a code of an operand or of an attribute.
    """

    run: Run
    steps: tuple[int, ...] = ()
    requantizes: bool = False
    in_place: tuple[int, ...] = ()
    moves: bool = False

    def __call__(self, call: Call, arrays: Sequence[Array]) -> Array:
        """The result of an instruction in logical order."""
        return self.run(call, arrays)


class Kernels(dict[str, Kernel]):
    """The kernels of one family of operators, by name of the instruction."""

    def __call__(
        self,
        *names: str,
        steps: tuple[int, ...] = (),
        requantizes: bool = False,
        in_place: tuple[int, ...] = (),
        moves: bool = False,
    ) -> Callable[[Run], Run]:
        """A decorator that enters a computation under `names`; see `Kernel`."""

        def enter(run: Run) -> Run:
            self.update(dict.fromkeys(names, Kernel(run, steps, requantizes, in_place, moves)))
            return run

        return enter
