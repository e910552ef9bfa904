"""NAME_dump.c: writes the inputs and the result of every step to a file, for `qcompiler compare`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qcompiler.backends.integer.c.ends import End
from qcompiler.backends.integer.c.frames import fill
from qcompiler.backends.integer.c.memory import NUMPY, SIZES
from qcompiler.backends.integer.c.shapes import Shape, physical_axes
from qcompiler.backends.integer.c.text import quoted
from qcompiler.backends.integer.c.writer import Step, Writer

__all__ = ["dump_files"]

MAGIC = b"\x93NUMPY\x01\x00"
"""Begin of an array in NumPy's format, version 1.0."""
ALIGNMENT = 64
"""Multiple of bytes that a header takes."""


def dump_files(writer: Writer, ends: Sequence[End], steps: Sequence[Step]) -> dict[str, str]:
    """The source and the header, by name of file.

    Args:
        writer: Writer of the model.
        ends: Inputs and outputs.
        steps: Instructions.
    """
    n, upper = writer.name, writer.name.upper()
    inputs = [end for end in ends if end.kind == "input"]
    tensors = [_tensor(writer, name) for name in (*(end.tensor for end in inputs), *(s.item.output for s in steps))]
    given = [f"        add({place}, {n}_{end.label}());\n" for place, end in enumerate(inputs)]
    source = fill(
        "dump.c",
        n=n,
        N=upper,
        inputs=len(inputs),
        steps=len(steps),
        tensors="".join(tensors),
        given="".join(given),
    )
    return {f"{n}_dump.c": source, f"{n}_dump.h": fill("dump.h", n=n, N=upper)}


def _tensor(writer: Writer, name: str) -> str:
    """The description of one tensor."""
    ctype, shape = writer.ctype(name), writer.shapes[name]
    outer, channels, pixels = _order(shape, writer.layout)
    header = _header(ctype, shape)
    parts = (header[at : at + ALIGNMENT] for at in range(0, len(header), ALIGNMENT))
    text = "".join(f"\n        {quoted(part)}" for part in parts)
    numbers = ", ".join(map(str, (len(header), SIZES[ctype], outer, channels, pixels)))
    return f"    {{{quoted(f'{name}.npy'.encode())},{text},\n        {numbers}}},\n"


def _order(shape: Shape, layout: str) -> tuple[int, int, int]:
    """Sizes [outer, channels, pixels] of a tensor, whose memory is [outer, pixels, channels]."""
    axes = physical_axes(len(shape), layout)
    if list(axes) == list(range(len(shape))):
        return math.prod(shape), 1, 1
    return shape[0], shape[1], math.prod(shape[2:])


def _header(ctype: str, shape: Shape) -> bytes:
    sizes = "".join(f"{size}, " for size in shape)
    kind = NUMPY[ctype]
    kind = f"|{kind}" if kind.endswith("1") else f"<{kind}"
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({sizes}), }}"
    length = -(-(len(MAGIC) + 2 + len(text) + 1) // ALIGNMENT) * ALIGNMENT
    padded = text.ljust(length - len(MAGIC) - 3) + "\n"
    return MAGIC + len(padded).to_bytes(2, "little") + padded.encode()
