"""The inputs and outputs of a program in C: the contract, in readable and in machine-readable form."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np

from qcompiler.backends.integer.c.frames import fill
from qcompiler.backends.integer.c.memory import NUMPY, SIZES
from qcompiler.backends.integer.c.shapes import Shape, physical_axes
from qcompiler.backends.integer.c.text import comment, dimensions, integer, real, sizes
from qcompiler.backends.integer.c.writer import Step, Writer
from qcompiler.program.program import Instruction

SCHEMA = "qcompiler.c/1"
CONTRACT = "contract.json"
"""The same for programs that the header says to people."""


@dataclass(frozen=True)
class End:
    """An input or output that holds codes.

    Args:
        kind: `input` or `output`.
        index: Among all of its kind.
        name: Name of the graph's value.
        tensor: That holds the codes.
        ctype: Element type in C.
        shape: Sizes in the order of the graph.
        low: Smallest code that may go in, or comes out.
        high: Largest.
        scale: Scale of the value; 0 for a value without a scale.
        zero_point: Zero point of the value.
        rounding: Rounding of an input's quantizer; empty for a value without one.
    """

    kind: str
    index: int
    name: str
    tensor: str
    ctype: str
    shape: Shape
    low: int
    high: int
    scale: float
    zero_point: int
    rounding: str

    @property
    def label(self) -> str:
        """`input_0`."""
        return f"{self.kind}_{self.index}"

    @property
    def constant(self) -> str:
        """`const ` where the codes are for reading."""
        return "const " if self.kind == "output" else ""

    @property
    def elements(self) -> int:
        """How many codes."""
        return math.prod(self.shape)


def inputs_and_outputs(writer: Writer) -> list[End]:
    """All that hold codes, inputs first; inputs that nothing reads are left out."""
    made = {item.output: item for item in writer.program.instructions}
    found = []
    for index, (name, codes) in enumerate(zip(writer.program.inputs, writer.ends.inputs, strict=True)):
        if codes is not None:
            found.append(_end(writer, "input", index, name, codes, made.get(codes)))
    for index, (name, codes) in enumerate(zip(writer.program.outputs, writer.ends.outputs, strict=True)):
        found.append(_end(writer, "output", index, name, codes, made.get(codes)))
    return found


def _end(writer: Writer, kind: str, index: int, name: str, codes: str, maker: Instruction | None) -> End:
    declared, ctype = writer.program.tensors[codes], writer.ctype(codes)
    low, high = int(np.iinfo(NUMPY[ctype]).min), int(np.iinfo(NUMPY[ctype]).max)
    if declared.dtype == "bool":
        low, high = 0, 1
    elif maker is not None:
        least, most = writer.call_of(maker).limits
        low, high = int(np.min(least)), int(np.max(most))
    # A program may give its quantized input back: codes that it reads as an input are not quantized as an output.
    quantizes = kind == "input" and maker is not None and maker.op == "quantize"
    rounding = maker.text("rounding") if maker is not None and quantizes else ""
    scale = declared.scale[0] if declared.scale else 0.0
    zero_point = declared.zero_point[0] if declared.zero_point else 0
    return End(kind, index, name, codes, ctype, writer.shapes[codes], low, high, scale, zero_point, rounding)


def batch_axis(writer: Writer, tensor: str) -> int | None:
    """The axis along which images lie side by side, None where there is none."""
    shape = writer.program.tensors[tensor].shape
    return shape.index(-1) if -1 in shape else None


def model_header(writer: Writer, ends: list[End], title: str) -> str:
    """The public header."""
    n, upper = writer.name, writer.name.upper()
    unread = [
        comment(f"   Input {index}, {name}, is unused.") + "\n"
        for index, (name, codes) in enumerate(zip(writer.program.inputs, writer.ends.inputs, strict=True))
        if codes is None
    ]
    parts = []
    for end in ends:
        stem = f"{upper}_{end.label.upper()}"
        axes = physical_axes(len(end.shape), writer.layout)
        order = f", {writer.layout}" if len(end.shape) == 4 else ""
        what = comment(f"{end.kind.capitalize()} {end.index}, {end.name}: {sizes(end.shape)}")
        parts.append(
            f"/* {what}.\n   {end.ctype}{dimensions([end.shape[axis] for axis in axes])} in memory{order};"
            f" codes from {end.low} to {end.high}. */\n"
            f"#define {stem}_SIZE {end.elements}\n"
            f"#define {stem}_SCALE {real(end.scale)}\n"
            f"#define {stem}_ZERO_POINT {_bracketed(end.zero_point)}\n"
            f"#define {stem}_LOW {_bracketed(end.low)}\n"
            f"#define {stem}_HIGH {_bracketed(end.high)}\n"
            f"{end.constant}{end.ctype} *{n}_{end.label}(void);\n\n"
        )
    return fill(
        "model.h",
        n=n,
        N=upper,
        title=title,
        unread="".join(unread),
        ends="".join(parts),
        alignment=writer.memory.alignment,
        arena=max(writer.memory.bytes, 1),
        constants=sum(SIZES[item.ctype] * item.array.size for item in writer.constants.values()),
    )


def _bracketed(value: int) -> str:
    return f"({integer(value)})" if value < 0 else integer(value)


def accessors(writer: Writer, ends: list[End]) -> str:
    """The functions that say where codes go in and come out."""
    return "\n".join(
        f"{end.constant}{end.ctype} *{writer.name}_{end.label}(void)\n"
        f"{{\n    return {writer.pointer(end.tensor)};\n}}\n"
        for end in ends
    )


def contract(writer: Writer, ends: list[End], steps: list[Step]) -> str:
    """`contract.json`."""

    def described(end: End) -> dict[str, object]:
        return {
            "index": end.index,
            "name": end.name,
            "tensor": end.tensor,
            "type": end.ctype,
            "shape": list(end.shape),
            "batch_axis": batch_axis(writer, end.tensor),
            "codes": [end.low, end.high],
            "quantized": bool(end.rounding),
            "scale": end.scale,
            "zero_point": end.zero_point,
        }

    data = {
        "schema": SCHEMA,
        "name": writer.name,
        "layout": writer.layout,
        "batch": writer.memory.batch,
        "arena_bytes": writer.memory.bytes,
        "alignment": writer.memory.alignment,
        "program_inputs": len(writer.program.inputs),
        "inputs": [described(end) for end in ends if end.kind == "input"],
        "outputs": [described(end) for end in ends if end.kind == "output"],
        "steps": [
            {
                "tensor": step.item.output,
                "type": writer.ctype(step.item.output),
                "shape": list(writer.shapes[step.item.output]),
                "batch_axis": batch_axis(writer, step.item.output),
                "is_view": step.writes is not None,
            }
            for step in steps
        ],
        "constants": [
            {"symbol": item.symbol, "type": item.ctype, "elements": item.array.size}
            for item in writer.constants.values()
        ],
    }
    return json.dumps(data, indent=1, sort_keys=True) + "\n"
