"""Write an integer program as a folder of C."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qcompiler.backends.integer.c.dump import dump_files
from qcompiler.backends.integer.c.ends import CONTRACT, contract, inputs_and_outputs, model_header
from qcompiler.backends.integer.c.frames import fill
from qcompiler.backends.integer.c.memory import Memory, find_ends
from qcompiler.backends.integer.c.model import model_source, weights_header, weights_source
from qcompiler.backends.integer.c.overlaps import check_memory
from qcompiler.backends.integer.c.real import float_header, float_source
from qcompiler.backends.integer.c.rules import ENDS, RULES, WITHOUT_C
from qcompiler.backends.integer.c.shapes import shapes_for_batch
from qcompiler.backends.integer.c.text import comment
from qcompiler.backends.integer.c.vectors import Vector, vector_files
from qcompiler.backends.integer.c.writer import Step, Writer
from qcompiler.errors import InputError, UnsupportedError
from qcompiler.program.files import ProgramFiles


def emit(files: ProgramFiles, name: str, memory: Memory, vectors: Sequence[Vector] = ()) -> dict[str, bytes]:
    """The folder of C for a program.

    Args:
        files: The program.
        name: Prefix of everything that is exported: an identifier of C, see `model_identifier`.
        memory: The memory plan; its batch is that of the C.
        vectors: Inputs and outputs of the self-test.

    Returns:
        Content by name of file. The same arguments give the same bytes.

    Raises:
        UnsupportedError: The program runs a float island, gives real numbers, or has what C has no kernel for.
        ArtifactError: The memory plan does not fit the program.
        InputError: The name is no identifier, or a vector does not fit.
    """
    if not (name.isidentifier() and name.isascii()) or name.startswith("_"):
        raise InputError(f"the name {name!r} is not a C identifier", fix="Create one with model_identifier.")
    for item in files.program.instructions:
        if item.op not in (*RULES, *ENDS, *WITHOUT_C):
            raise UnsupportedError(f"C has no kernel for {item.op!r}", where=f"%{item.output}")
    ends = find_ends(files.program)
    shapes = shapes_for_batch(files, memory.batch)
    if max(memory.bytes, *(math.prod(shape) for shape in shapes.values())) >= 2**31:
        raise UnsupportedError("a tensor or the arena needs 2^31 bytes or more", expected="sizes below 2^31")
    writer = Writer(files, name, memory, shapes, ends)
    described = inputs_and_outputs(writer)
    for end in described:
        writer.pointer(end.tensor)
    steps = []
    for item in files.program.instructions:
        if item.op in RULES:
            step = Step(item)
            RULES[item.op](writer, step)
            steps.append(step)
    check_memory(writer, steps)
    title = comment(f"{name}: an integer program of {len(steps)} instructions.")
    constants = list(writer.constants.values())
    texts = {
        f"{name}.h": model_header(writer, described, title),
        "model.c": model_source(writer, described, steps, title),
        "kernels.h": writer.library.header(),
        "kernels.c": writer.library.source(),
        "weights.h": weights_header(name, constants),
        "weights.c": weights_source(name, constants),
        f"{name}_float.h": float_header(name, described),
        f"{name}_float.c": float_source(name, described),
        **dump_files(writer, described, steps),
        **vector_files(name, writer.layout, described, vectors),
        "Makefile": fill("Makefile", n=name),
        "CMakeLists.txt": fill("CMakeLists.txt", n=name),
        CONTRACT: contract(writer, described, steps),
    }
    return {file: text.encode() for file, text in texts.items()}
