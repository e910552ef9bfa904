"""The writer that the rules of instructions use for constants, kernels and calls."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from qcompiler.backends.integer.c.library import Library
from qcompiler.backends.integer.c.memory import CTYPES, NUMPY, SIZES, Ends, Memory
from qcompiler.backends.integer.c.names import Names
from qcompiler.backends.integer.c.shapes import Shape, physical_axes, steps_of
from qcompiler.backends.integer.c.text import Value, comment, sizes, structure
from qcompiler.errors import ArtifactError, UnsupportedError
from qcompiler.program.files import ProgramFiles
from qcompiler.program.kernels import Call
from qcompiler.program.program import Array, Instruction


@dataclass(frozen=True)
class Constant:
    """An array of weights.c.

    Args:
        symbol: Name of the constant in C.
        ctype: Element type.
        array: Elements in memory order.
        note: Comment on the constant.
    """

    symbol: str
    ctype: str
    array: Array
    note: str


@dataclass
class Step:
    """The C of one instruction.

    Args:
        item: The instruction.
        structures: Constants that its calls take.
        lines: Statements.
        notes: Comments in addition to the shapes.
        writes: The bytes of the arena that it writes; None for all of the result.
        elementwise: Whether it computes from front to back, each element from that of each operand at the same place,
            so that the result may lie where an operand of its sizes does.
    """

    item: Instruction
    structures: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    writes: list[slice] | None = None
    elementwise: bool = False


class Writer:
    """Collects the C of one program.

    Args:
        files: The program.
        name: Prefix of everything that other files see.
        memory: Memory plan of the tensors.
        shapes: Sizes of all tensors.
        ends: Input and output tensors.
    """

    def __init__(self, files: ProgramFiles, name: str, memory: Memory, shapes: Mapping[str, Shape], ends: Ends) -> None:
        self.files, self.program, self.name, self.memory, self.ends = files, files.program, name, memory, ends
        self.shapes = shapes
        self.library = Library(name)
        self.names = Names()
        self.constants: dict[tuple[str, bytes], Constant] = {}
        self.placed: dict[str, str] = {}
        """Variable of each tensor in the arena, in the order of first use."""
        self._symbols = Names()
        self._uses: dict[str, int] = {}

    @property
    def layout(self) -> str:
        """Order of images in memory."""
        return self.program.layout

    def call_of(self, item: Instruction) -> Call:
        """The instruction with the types around it, sizes those of the batch."""
        tensors = self.program.tensors
        operands = [tensors[name].model_copy(update={"shape": self.shapes[name]}) for name in item.inputs]
        result = tensors[item.output].model_copy(update={"shape": self.shapes[item.output]})
        return Call(item, tuple(operands), result)

    def ctype(self, tensor: str) -> str:
        """Element type of C of a tensor of codes.

        Raises:
            UnsupportedError: It holds something else.
        """
        dtype = self.program.tensors[tensor].dtype
        if dtype not in CTYPES:
            raise UnsupportedError(f"%{tensor} is {dtype}", expected="codes of 4, 8 or 16 bits")
        return CTYPES[dtype]

    def steps(self, tensor: str) -> tuple[int, ...]:
        """Distance in memory of neighbours along each axis, in the order of the graph."""
        return steps_of(self.shapes[tensor], self.layout)

    def bytes_of(self, tensor: str, first: int = 0, elements: int | None = None) -> slice:
        """The bytes of a tensor in the arena.

        Args:
            tensor: Codes that are not constant.
            first: First element, where only some are meant.
            elements: How many.

        Raises:
            ArtifactError: It has no place, leaves the arena, or is not aligned as its elements need.
        """
        if tensor not in self.memory.offsets:
            raise ArtifactError("the memory plan has no place for a tensor", where=f"%{tensor}")
        begin, size = self.memory.offsets[tensor], SIZES[self.ctype(tensor)]
        end = begin + math.prod(self.shapes[tensor]) * size
        if begin < 0 or end > self.memory.bytes or begin % size:
            raise ArtifactError(
                f"the memory plan places a tensor at {begin} to {end}",
                where=f"%{tensor}",
                expected=f"a place in {self.memory.bytes} bytes, aligned to {size}",
            )
        if elements is None:
            return slice(begin, end)
        return slice(begin + first * size, begin + (first + elements) * size)

    def same_place(self, a: str, b: str, a_first: int = 0, b_first: int = 0) -> bool:
        """Whether element `a_first` of a tensor has the same place as element `b_first` of another tensor."""
        if a in self.files.constants or b in self.files.constants:
            return False
        return self.bytes_of(a, a_first, 1) == self.bytes_of(b, b_first, 1)

    def pointer(self, tensor: str) -> str:
        """The expression of C for the first element of a tensor of codes."""
        if tensor in self.files.constants:
            array = self.files.logical(tensor)
            axes = physical_axes(array.ndim, self.layout)
            note = f"codes {sizes(array.shape)} of %{tensor}"
            return self.constant(tensor, array.transpose(axes), self.ctype(tensor), note)
        return self.placed.setdefault(tensor, f"t_{self.names(tensor)}")

    def constant(self, source: str, array: Array, ctype: str, note: str) -> str:
        """The symbol of an array; one that is there already serves again.

        Args:
            source: The tensor of the program that it is made from, which gives it its name.
            array: Elements in the order of memory.
            ctype: Element type in C, which holds them all.
            note: Comment on the constant.
        """
        packed = np.asarray(array, order="C").astype(NUMPY[ctype])
        key = (ctype, hashlib.sha256(repr(packed.shape).encode() + packed.tobytes()).digest())
        if key not in self.constants:
            self._uses[source] = uses = self._uses.get(source, 0) + 1
            symbol = self._symbols(source if uses == 1 else f"{source}#{uses}")
            self.constants[key] = Constant(f"{self.name}_{symbol}", ctype, packed, comment(note))
        return self.constants[key].symbol

    def operand(self, item: Instruction, index: int) -> Array:
        """A constant operand in the logical order of its axes.

        Raises:
            UnsupportedError: It is computed.
            ArtifactError: There is none.
        """
        if index >= len(item.inputs):
            raise ArtifactError(f"{item.op} lacks operand {index}", where=f"%{item.output}")
        name = item.inputs[index]
        if name not in self.files.constants:
            raise UnsupportedError(
                f"operand {index} of {item.op}, %{name}, is computed", where=f"%{item.output}", expected="a constant"
            )
        return self.files.logical(name)

    def channel_box(self, tensor: str, axis: int) -> dict[str, Value]:
        """Sizes in memory before, along and after an axis."""
        shape = self.shapes[tensor]
        order = physical_axes(len(shape), self.layout)
        at = order.index(axis)
        return {
            "outer": math.prod(shape[a] for a in order[:at]),
            "channels": shape[axis],
            "inner": math.prod(shape[a] for a in order[at + 1 :]),
        }

    def emit(
        self,
        step: Step,
        template: str,
        types: Mapping[str, str],
        operands: Sequence[str],
        members: Mapping[str, Value],
        extra: Sequence[str] = (),
    ) -> None:
        """Add a call of a kernel.

        Args:
            step: The instruction that it belongs to.
            template: Template of the kernel.
            types: Parameters of the template.
            operands: Tensors that it reads.
            members: Members of the kernel's structure.
            extra: Expressions of C that it takes after the operands.
        """
        function = self.library.use(template, **types)
        suffix = f"_{len(step.structures)}" if step.structures else ""
        name = f"c_{self.names(step.item.output + suffix.replace('_', '#'))}"
        step.structures.append(structure(f"{function}_t", name, members))
        arguments = [*(self.pointer(tensor) for tensor in (step.item.output, *operands)), *extra]
        step.lines.append(f"{function}({', '.join(arguments)}, &{name});")


Rule: TypeAlias = Callable[[Writer, Step], None]
"""Writes the C of an instruction: constants and kernels into the writer, calls and notes into the step."""
