"""Writes an integer program as a TensorFlow Lite file."""

from __future__ import annotations

from typing import Literal

from qcompiler.backends.tflite.rules import RULES
from qcompiler.backends.tflite.schema import TYPES
from qcompiler.backends.tflite.writer import Writer, stored
from qcompiler.errors import UnsupportedError
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Instruction

__all__ = ["emit"]

Io = Literal["float", "uint8", "int8"]


def emit(files: ProgramFiles, name: str, io: Io = "float") -> bytes:
    """The file.

    Args:
        files: Program with constants.
        name: Name of the graph in the file.
        io: Type at inputs and outputs: real numbers, or codes.

    Raises:
        UnsupportedError: The program has an operator, a width or an order of axes that TensorFlow Lite lacks.
    """
    program, writer = files.program, Writer(files, name)
    wide = next((item for item, tensor in program.tensors.items() if tensor.dtype not in TYPES), None)
    if wide is not None:
        raise UnsupportedError(
            f"a TensorFlow Lite file has no {program.tensors[wide].dtype}", where=f"%{wide}", expected=", ".join(TYPES)
        )
    ends = _Ends(writer, io)
    inputs = {item: ends.input(item) for item in program.inputs}
    for item in program.instructions:
        if ends.is_written(item):
            continue
        rule = RULES.get(item.op)
        if rule is None:
            raise UnsupportedError(f"a TensorFlow Lite file has no {item.op}", where=item.where)
        rule(writer, item)
    outputs = {f"output_{index}": ends.output(item) for index, item in enumerate(program.outputs)}
    return writer.finish(inputs, outputs)


class _Ends:
    """Inputs and outputs: real numbers, or codes in place of the quantizers there.

    Args:
        writer: Collects the operators.
        io: Type at both ends.
    """

    def __init__(self, writer: Writer, io: Io) -> None:
        self.writer, self.io = writer, io
        program = writer.files.program
        self.first = {item.inputs[0]: item for item in program.instructions if item.op == "quantize"}
        self.last = {item.output: item for item in program.instructions if item.op == "dequantize"}

    def input(self, name: str) -> int:
        """The tensor of an input."""
        writer = self.writer
        tensor = writer.declared(name)
        if self.io == "float" or name not in self.first:
            writer.places[name] = writer.new(name, tensor.dtype, stored(tensor.shape), tensor)
            return writer.places[name]
        codes = self.first[name].output
        grid = writer.declared(codes)
        writer.places[codes] = writer.new(name, grid.dtype, stored(grid.shape), grid)
        return writer.places[codes]

    def is_written(self, item: Instruction) -> bool:
        """Whether codes at an end stand for a quantizer."""
        if self.io == "float":
            return False
        outputs = self.writer.files.program.outputs
        return item.output in self.writer.places or (item.op == "dequantize" and item.output in outputs)

    def output(self, name: str) -> int:
        """The tensor of an output."""
        writer = self.writer
        if self.io == "float" or name not in self.last:
            return writer.stored(name)
        return writer.stored(self.last[name].inputs[0])
