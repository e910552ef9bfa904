"""The self-test of the folder: input codes, expected output codes, and the program that compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.backends.integer.c.ends import End
from qcompiler.backends.integer.c.frames import fill
from qcompiler.backends.integer.c.memory import NUMPY
from qcompiler.backends.integer.c.shapes import physical_axes
from qcompiler.backends.integer.c.text import elements, sizes
from qcompiler.backends.integer.executor import Executor
from qcompiler.errors import InputError
from qcompiler.program.files import ProgramFiles
from qcompiler.program.program import Array

VECTOR_FILES = ("vectors.h", "vectors.c", "selftest.c")
"""Files that depend on the vectors."""


@dataclass(frozen=True)
class Vector:
    """Codes that go in, and those that must come out, in the order of the graph.

    Args:
        inputs: For each input of the program; the batch is that of the memory plan.
        outputs: For each output.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]


def record(files: ProgramFiles, codes: Sequence[Sequence[Array]]) -> list[Vector]:
    """The results of the program's executor for each of `codes`.

    Args:
        files: The program.
        codes: For each vector the codes of every input, see `Executor.run_integer`.
    """
    executor = Executor(files)
    return [Vector(tuple(item), tuple(executor.run_integer(item))) for item in codes]


def vector_files(name: str, layout: str, ends: Sequence[End], vectors: Sequence[Vector]) -> dict[str, str]:
    """`vectors.h`, `vectors.c` and `selftest.c`.

    Raises:
        InputError: A vector does not fit the program.
    """
    upper = name.upper()
    declarations, definitions, feeds, checks = [], [], [], []
    for end in ends if vectors else ():
        rows = [_row(end, vector, layout) for vector in vectors]
        symbol, size = f"{name}_vector_{end.label}", f"{upper}_{end.label.upper()}_SIZE"
        declarations.append(f"extern const {end.ctype} {symbol}[{upper}_VECTORS][{end.elements}];\n")
        body = "".join(f"    {{\n{elements(row)}    }},\n" for row in rows)
        definitions.append(f"const {end.ctype} {symbol}[{upper}_VECTORS][{end.elements}] = {{\n{body}}};\n")
        loop = f"        for (int32_t i = 0; i < {size}; ++i) {{\n            "
        if end.kind == "input":
            feeds.append(f"{loop}{name}_{end.label}()[i] = {symbol}[vector][i];\n        }}\n")
        else:
            checks.append(f"{loop}differing += {name}_{end.label}()[i] != {symbol}[vector][i];\n        }}\n")
            checks.append(f"        compared += {size};\n")
    return {
        "vectors.h": fill("vectors.h", n=name, N=upper, count=len(vectors), declarations="".join(declarations)),
        "vectors.c": fill("vectors.c", n=name, definitions="\n".join(definitions)),
        "selftest.c": fill("selftest.c", n=name, N=upper, inputs="".join(feeds), outputs="".join(checks)),
    }


def _row(end: End, vector: Vector, layout: str) -> Array:
    arrays = vector.inputs if end.kind == "input" else vector.outputs
    found = arrays[end.index].shape if end.index < len(arrays) else None
    if found != end.shape:
        raise InputError(
            f"a vector holds {'nothing' if found is None else sizes(found)} for {end.kind} {end.index}",
            expected=sizes(end.shape),
        )
    array = np.asarray(arrays[end.index]).transpose(physical_axes(len(end.shape), layout))
    return array.reshape(-1).astype(NUMPY[end.ctype])
