"""Elementwise operators, tables and changes of grids in TensorFlow Lite."""

from __future__ import annotations

import numpy as np

from qcompiler.backends.tflite.schema import TYPES
from qcompiler.backends.tflite.writer import NHWC, Rule, Writer
from qcompiler.errors import UnsupportedError
from qcompiler.ir.table import Table
from qcompiler.program.program import Instruction

emits: Table[Rule] = Table()

FUNCTIONS = {"sigmoid": "LOGISTIC", "tanh": "TANH"}
"""Operators that have the table of a function."""


def _operands(writer: Writer, item: Instruction) -> list[int]:
    """Operands with as many axes as the result, so that they broadcast as stored."""
    rank = len(writer.declared(item.output).shape)
    found = []
    for name in item.inputs[:2]:
        tensor = writer.declared(name)
        if len(tensor.shape) == rank or rank != 4:
            found.append(writer.stored(name))
            continue
        shape = [1] * (rank - len(tensor.shape)) + list(tensor.shape)
        if name in writer.files.constants:
            array = writer.files.logical(name).reshape(shape).transpose(NHWC)
            found.append(writer.constant(name, array, tensor))
        else:
            place = writer.reshaped(writer.logical(name), shape, f"{name}.axes", tensor)
            found.append(writer.transposed(place, NHWC, f"{name}.nhwc", tensor))
    return found


@emits("int_add", "int_mul")
def arithmetic(writer: Writer, item: Instruction) -> None:
    """A sum, a difference or a product."""
    code = "MUL" if item.op == "int_mul" else "SUB" if item.attributes.get("subtract") else "ADD"
    operands = _operands(writer, item)

    def emit(result: int, activation: int) -> None:
        writer.operator(code, operands, [result], f"{code.capitalize()}Options", activation=activation)

    writer.limited(item, emit)


@emits("maximum", "minimum")
def extreme(writer: Writer, item: Instruction) -> None:
    """The larger or the smaller of two codes."""
    writer.operator(item.op.upper(), _operands(writer, item), [writer.result(item)], "MaximumMinimumOptions")


@emits("int_clamp")
def clamp(writer: Writer, item: Instruction) -> None:
    """Limits, of all codes or per channel."""
    if item.attributes.get("axis", 1) not in (1, None):
        raise UnsupportedError(
            "a TensorFlow Lite file has no limits along this axis", where=item.where, expected="channels"
        )
    writer.clamped(item, writer.stored(item.inputs[0]), item.attributes["qmin"], item.attributes["qmax"])


@emits("lookup")
def lookup(writer: Writer, item: Instruction) -> None:
    """A table: LOGISTIC and TANH where they have it, otherwise a gather from the table."""
    name, table_name = item.inputs[:2]
    function = str(item.attributes.get("function", ""))
    tensor = writer.declared(item.output)
    if item.attributes.get("axis") is not None or len(item.inputs) > 2:
        raise UnsupportedError(
            "a TensorFlow Lite file has no table per channel", where=item.where, expected="one table"
        )
    source = writer.stored(name)
    if function in FUNCTIONS:
        writer.operator(FUNCTIONS[function], [source], [writer.result(item)])
        return
    shape = writer.shape(source)
    wide = writer.new(f"{item.output}.index", "i32", shape)
    fields = {"from": TYPES[writer.declared(name).dtype], "to": TYPES["i32"]}
    writer.operator("CAST", [source], [wide], "CastOptions", **fields)
    offset = writer.constant("offset", np.array(-item.integer("offset"), np.int32))
    place = writer.new(f"{item.output}.place", "i32", shape)
    writer.operator("ADD", [wide, offset], [place], "AddOptions", activation=0)
    table = writer.constant(table_name, writer.files.logical(table_name), tensor)
    writer.operator("GATHER", [table, place], [writer.result(item)], "GatherOptions", axis=0)


@emits("rescale")
def rescale(writer: Writer, item: Instruction) -> None:
    """Another grid."""

    def emit(result: int, activation: int) -> None:
        del activation
        writer.operator("QUANTIZE", [writer.stored(item.inputs[0])], [result], "QuantizeOptions")

    writer.limited(item, emit, fused=False)


@emits("quantize")
def quantize(writer: Writer, item: Instruction) -> None:
    """Real numbers to codes."""
    if item.attributes.get("rounding", "rhaz") != "rhaz":
        raise UnsupportedError(
            f"a TensorFlow Lite file has no quantizer that rounds {item.attributes['rounding']}", where=item.where
        )

    def emit(result: int, activation: int) -> None:
        del activation
        writer.operator("QUANTIZE", [writer.stored(item.inputs[0])], [result], "QuantizeOptions")

    writer.limited(item, emit, fused=False)


@emits("dequantize")
def dequantize(writer: Writer, item: Instruction) -> None:
    """Codes to real numbers."""
    writer.operator("DEQUANTIZE", [writer.stored(item.inputs[0])], [writer.result(item)], "DequantizeOptions")
