"""Where tensors lie in the arena, and the proof that none is overwritten before it was read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qcompiler.backends.integer.c.shapes import Shape, reshaped
from qcompiler.backends.integer.program import Instruction, Program
from qcompiler.errors import ArtifactError, UnsupportedError

CTYPES = {"i4": "int8_t", "u4": "uint8_t", "i8": "int8_t", "u8": "uint8_t", "i16": "int16_t", "u16": "uint16_t"}
"""How C holds codes; those of four bits take a byte."""
NUMPY = {"int8_t": "i1", "uint8_t": "u1", "int16_t": "i2", "uint16_t": "u2", "int32_t": "i4", "int64_t": "i8"}
NUMPY |= {"float": "f4"}
SIZES = {name: np.dtype(code).itemsize for name, code in NUMPY.items()}
"""Bytes of an element."""

ELEMENTWISE = ("int_add", "int_mul", "rescale", "lookup", "int_clamp")
"""Instructions whose result may lie exactly where an operand does that nothing reads any more."""


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
        """Of the arena and of every tensor, in bytes: a power of two."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """Where each tensor begins, in bytes."""


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
    """Where codes go in and come out.

    Raises:
        UnsupportedError: The program runs a float island, quantizes one input twice, or gives real numbers.
    """
    for item in program.instructions:
        if item.op == "call":
            island = item.attributes.get("graph")
            raise UnsupportedError(
                f"the program runs the float island @{island}, and C is written for the integer core alone",
                where=f"%{item.output}",
                fix="Keep the model in integers, or run the island between two programs.",
            )
    readers: dict[str, list[Instruction]] = {}
    for item in program.instructions:
        for name in dict.fromkeys(item.inputs):
            readers.setdefault(name, []).append(item)
    inputs: list[str | None] = []
    for name in program.inputs:
        quantizers = [item for item in readers.get(name, ()) if item.op == "quantize"]
        if len(quantizers) > 1:
            raise UnsupportedError(
                f"the input %{name} is quantized on {len(quantizers)} grids", expected="one grid for each input"
            )
        if quantizers:
            inputs.append(quantizers[0].output)
        elif program.tensors[name].dtype in CTYPES:
            inputs.append(name)
        elif name in readers or name in program.outputs:
            raise UnsupportedError(f"the input %{name} is read as real numbers", expected="codes")
        else:
            inputs.append(None)
    made = {item.output: item for item in program.instructions}
    outputs = []
    for name in program.outputs:
        item = made.get(name)
        codes = item.inputs[0] if item is not None and item.op == "dequantize" else name
        if program.tensors[codes].dtype not in CTYPES:
            raise UnsupportedError(f"the output %{name} is real numbers", expected="codes of 4, 8 or 16 bits")
        outputs.append(codes)
    return Ends(tuple(inputs), tuple(outputs))


def moves_nothing(item: Instruction, shapes: Mapping[str, Shape], layout: str) -> bool:
    """Whether a `reshape` gives the codes as memory holds them already, so that it may lie where its operand does."""
    if item.op != "reshape":
        return False
    box = reshaped(shapes[item.inputs[0]], shapes[item.output], layout)
    return box is not None and all(x_step == y_step for _, x_step, y_step in box)


def check_memory(program: Program, ends: Ends, memory: Memory, shapes: Mapping[str, Shape]) -> None:
    """Refuse a plan under which the program would not compute what it says.

    Raises:
        ArtifactError: A tensor has no place, leaves the arena, is not aligned, or is overwritten while it is needed.
    """
    codes = {name for name in ends.inputs if name is not None}
    codes |= {i.output for i in program.instructions if i.op not in ("quantize", "dequantize")}
    spans: dict[str, tuple[int, int]] = {}
    for name in (name for name in program.tensors if name in codes):
        begin = memory.offsets.get(name)
        if begin is None:
            raise ArtifactError("the memory plan has no place for a tensor", where=f"%{name}")
        size = SIZES[CTYPES[program.tensors[name].dtype]]
        end = begin + math.prod(shapes[name]) * size
        if begin < 0 or end > memory.bytes or begin % size:
            raise ArtifactError(
                f"the memory plan puts a tensor at {begin} to {end}",
                where=f"%{name}",
                expected=f"a place in {memory.bytes} bytes, aligned to {size}",
            )
        spans[name] = (begin, end)
    _check_lifetimes(program, ends, shapes, spans)


def _check_lifetimes(
    program: Program, ends: Ends, shapes: Mapping[str, Shape], spans: Mapping[str, tuple[int, int]]
) -> None:
    last = {name: at for at, item in enumerate(program.instructions) for name in item.inputs}
    last |= dict.fromkeys(ends.outputs, len(program.instructions))
    alive: dict[str, tuple[int, int]] = {}

    def admit(name: str, allowed: tuple[str, ...]) -> None:
        begin, end = spans[name]
        for other, (first, behind) in alive.items():
            if begin < behind and first < end and not (other in allowed and first == begin and end <= behind):
                raise ArtifactError(
                    f"the memory plan puts %{name} over %{other}, which is still needed", where=f"%{name}"
                )
        alive[name] = spans[name]

    for name in dict.fromkeys(ends.inputs):
        if name is not None:
            admit(name, ())
    alive = {name: span for name, span in alive.items() if name in last}
    for at, item in enumerate(program.instructions):
        if item.op in ("quantize", "dequantize"):
            continue
        free = item.op in ELEMENTWISE or moves_nothing(item, shapes, program.layout)
        dying = tuple(
            name
            for name in item.inputs
            if free and last[name] == at and (item.op == "reshape" or shapes.get(name) == shapes[item.output])
        )
        admit(item.output, dying)
        for name in (*item.inputs, item.output):
            if last.get(name, at) <= at:
                alive.pop(name, None)
