"""The core of a program, which runs inside the arena from codes to codes: tensors, sizes and lifetimes.

Time is counted in instructions of the core: the caller writes the inputs at time -1, instruction t reads and writes at
time t, and after the last instruction, at time n, the caller reads the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.errors import ArtifactError, UnsupportedError

if TYPE_CHECKING:
    from qcompiler.program.program import Instruction, Program

NUMPY_TYPES = {"i4": "i1", "u4": "u1", "i8": "i1", "u8": "u1", "i16": "i2", "u16": "u2", "i32": "i4", "f32": "f4"}
NUMPY_TYPES |= {"i64": "i8", "f16": "f2", "f64": "f8", "bool": "?"}  # of islands
"""NumPy types of stored elements; 4-bit codes take one byte."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Core:
    """The part of a program that runs inside the arena.

    Args:
        given: For each input of the program, the tensor that the caller writes: its codes, or the input itself if its
            reader is not a single `quantize`.
        taken: For each output of the program, the tensor that the caller reads: its codes, or the output itself if its
            producer is not a `dequantize`.
        instructions: Instructions in order, without the `quantize` of inputs and the `dequantize` of outputs.
        entry: The `quantize` instructions of the inputs.
        exit: The `dequantize` instructions of the outputs.
    """

    given: tuple[str, ...]
    taken: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    entry: tuple[Instruction, ...]
    exit: tuple[Instruction, ...]

    def lives(self) -> dict[str, tuple[int, int]]:
        """Lifetime of each tensor: first and last time. Constants are not included."""
        first = dict.fromkeys(self.given, -1)
        last = dict(first)
        for time, instruction in enumerate(self.instructions):
            last.update((name, time) for name in instruction.inputs if name in first)
            for name in instruction.outputs:
                first[name] = last[name] = time
        last.update((name, len(self.instructions)) for name in self.taken if name in first)
        return {name: (time, last[name]) for name, time in first.items()}


def core_of(program: Program) -> Core:
    """Find the core of `program`."""
    readers: dict[str, list[Instruction]] = {}
    makers: dict[str, Instruction] = {}
    for instruction in program.instructions:
        for name in dict.fromkeys(instruction.inputs):
            readers.setdefault(name, []).append(instruction)
        makers.update((name, instruction) for name in instruction.outputs)
    entry = {
        name: readers[name][0]
        for name in program.inputs
        if [item.op for item in readers.get(name, ())] == ["quantize"] and name not in program.outputs
    }
    real = {name: makers[name] for name in program.outputs if name in makers and makers[name].op == "dequantize"}
    leaving = {name: item for name, item in real.items() if name not in readers}
    outside = {item.output for item in (*entry.values(), *leaving.values())}
    return Core(
        given=tuple(entry[name].output if name in entry else name for name in program.inputs),
        taken=tuple(real[name].inputs[0] if name in real else name for name in program.outputs),
        instructions=tuple(item for item in program.instructions if item.output not in outside),
        entry=tuple(entry.values()),
        exit=tuple(leaving.values()),
    )


class Tensors:
    """The tensors of the core for a number of images: shape, strides and size in memory.

    Args:
        program: Program of the tensors.
        batch: Number of images processed together.

    Raises:
        ArtifactError: An element type is unknown, or an island cannot be read.
        UnsupportedError: A size has no value for that batch.
    """

    def __init__(self, program: Program, batch: int) -> None:
        self.program = program
        self.batch = batch
        self.core = core_of(program)
        self.constants = frozenset(program.constants)
        self.shapes: dict[str, Shape] = {}
        self.item_bytes: dict[str, int] = {}
        for name in self.core.given:
            self._enter(name, tuple(batch if size == -1 else size for size in program.tensors[name].shape))
        for instruction in self.core.instructions:
            for name, shape in zip(instruction.outputs, self._result_shapes(instruction), strict=True):
                self._enter(name, shape)

    def bytes(self, name: str) -> int:
        """Size of a tensor."""
        return self.item_bytes[name] * math.prod(self.shapes[name])

    def shape(self, name: str) -> Shape:
        """Logical sizes of a tensor or constant."""
        return self.shapes[name] if name in self.shapes else self.program.tensors[name].shape

    def axes(self, rank: int) -> tuple[int, ...]:
        """Logical axes in the order in which they lie in memory, the outermost first."""
        return (0, 2, 3, 1) if rank == 4 and self.program.layout == "NHWC" else tuple(range(rank))

    def strides(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Elements from one index to the next along each logical axis."""
        result = [1] * len(shape)
        step = 1
        for axis in reversed(self.axes(len(shape))):
            result[axis] = step
            step *= shape[axis]
        return tuple(result)

    def _enter(self, name: str, shape: Shape) -> None:
        dtype = self.program.tensors[name].dtype
        if dtype not in NUMPY_TYPES:
            raise ArtifactError(f"the element type {dtype!r} is unknown", where=name)
        self.shapes[name] = shape
        self.item_bytes[name] = np.dtype(NUMPY_TYPES[dtype]).itemsize

    def _result_shapes(self, instruction: Instruction) -> list[Shape]:
        declared = [self.program.tensors[name].shape for name in instruction.outputs]
        if all(-1 not in shape for shape in declared):
            return declared
        if instruction.op == "call":
            from qcompiler.program import islands  # needs torch, and imports this module

            operands = [self.shape(name) for name in instruction.inputs]
            return islands.result_shapes(self.program, instruction.text("graph"), operands)
        size = self._free_size(instruction, declared[0])
        return [tuple(size if old == -1 else old for old in declared[0])]

    def _free_size(self, instruction: Instruction, declared: Shape) -> int:
        """The size of the result along the axis that depends on the batch."""
        place = declared.index(-1)
        shapes = [self.shape(name) for name in instruction.inputs]
        if instruction.op == "reshape":
            size, rest = divmod(math.prod(shapes[0]), -math.prod(declared))
            if rest or not size:
                raise UnsupportedError(
                    f"{list(shapes[0])} cannot be reshaped to {list(declared)}",
                    where=instruction.output,
                    expected=f"a model with a batch of {self.batch}",
                )
            return size
        if instruction.op == "concat" and instruction.attributes["axis"] == place:
            return sum(shape[place] for shape in shapes)
        if instruction.op == "pad":
            amounts = _integers(instruction.attributes["pad"])
            return shapes[0][place] + amounts[place] + amounts[place + len(declared)]
        found = [
            size
            for name in instruction.inputs
            for size, old in zip(self.shape(name), self.program.tensors[name].shape, strict=True)
            if old == -1
        ]
        if not found:
            raise UnsupportedError("its size does not follow from its operands", where=instruction.output)
        return max(found)


def _integers(value: object) -> tuple[int, ...]:
    assert isinstance(value, tuple)
    return value


def rooms(tensors: Tensors, alignment: int) -> Mapping[str, int]:
    """Bytes of each tensor up to the next multiple of `alignment`."""
    return {name: -(-tensors.bytes(name) // alignment) * alignment for name in tensors.shapes}
