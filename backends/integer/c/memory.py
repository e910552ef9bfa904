"""The input and output tensors of the C program, and its memory plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qcompiler.errors import UnsupportedError
from qcompiler.program.program import Instruction, Program

CTYPES = {"i4": "int8_t", "u4": "uint8_t", "i8": "int8_t", "u8": "uint8_t", "i16": "int16_t", "u16": "uint16_t"}
CTYPES |= {"i32": "int32_t", "i64": "int64_t", "bool": "uint8_t"}
"""How C holds codes, those of four bits in a byte, and integers and booleans without a grid."""
NUMPY = {"int8_t": "i1", "uint8_t": "u1", "int16_t": "i2", "uint16_t": "u2", "int32_t": "i4", "int64_t": "i8"}
NUMPY |= {"float": "f4"}
SIZES = {name: np.dtype(code).itemsize for name, code in NUMPY.items()}
"""Bytes of an element."""


class Memory(Protocol):
    """A memory plan."""

    @property
    def batch(self) -> int:
        """Images in the arena at once."""

    @property
    def bytes(self) -> int:
        """Size of the arena."""

    @property
    def lower_bound(self) -> int:
        """The size that no plan can be below, in bytes."""

    @property
    def alignment(self) -> int:
        """Alignment of the arena and of every tensor, in bytes: a power of two."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """Offset of each tensor in the arena, in bytes."""


@dataclass(frozen=True)
class Ends:
    """The codes with which a program begins and ends.

    Args:
        inputs: For each input of the program the tensor that holds its codes; None for one that nothing reads.
        outputs: For each output the tensor that holds its codes.
    """

    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


def find_ends(program: Program) -> Ends:
    """The input and output tensors of the program.

    Raises:
        UnsupportedError: The program runs a float island, quantizes one input twice, or gives real numbers.
    """
    for item in program.instructions:
        if item.op == "call":
            island = item.attributes.get("graph")
            raise UnsupportedError(
                f"the program runs the float island @{island}, and C is written only for the integer core",
                where=f"%{item.output}",
                fix="Keep the model in integers, or split it into two programs around the island.",
            )
    # Inputs: codes as they are; the codes of the only quantizer of real numbers; None for an input without a reader.
    readers: dict[str, list[Instruction]] = {}
    for item in program.instructions:
        for name in dict.fromkeys(item.inputs):
            readers.setdefault(name, []).append(item)
    inputs: list[str | None] = []
    for name in program.inputs:
        quantizers = [item for item in readers.get(name, ()) if item.op == "quantize"]
        if len(quantizers) > 1:
            raise UnsupportedError(
                f"the input %{name} has {len(quantizers)} quantizers with different grids",
                expected="one grid for each input",
            )
        if quantizers:
            inputs.append(quantizers[0].output)
        elif program.tensors[name].dtype in CTYPES:
            inputs.append(name)
        elif name in readers or name in program.outputs:
            raise UnsupportedError(f"the input %{name} is read as real numbers", expected="codes")
        else:
            inputs.append(None)
    # Outputs: the codes before a dequantize.
    made = {item.output: item for item in program.instructions}
    outputs = []
    for name in program.outputs:
        codes = made[name].inputs[0] if name in made and made[name].op == "dequantize" else name
        if program.tensors[codes].dtype not in CTYPES:
            raise UnsupportedError(f"the output %{name} has real numbers", expected="codes of 4, 8 or 16 bits")
        outputs.append(codes)
    return Ends(tuple(inputs), tuple(outputs))
