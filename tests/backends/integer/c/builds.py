"""Emit, build, run and compare in a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.backends.integer import Executor, c
from qcompiler.program.files import ProgramFiles
from tests.backends.integer.c.plans import separate

Array = np.ndarray[Any, Any]

STRICT = ("-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror")
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def differing(
    files: ProgramFiles,
    inputs: Sequence[Array],
    work: Path,
    cflags: Sequence[str] = ("-O0", *STRICT),
    batch: int = 1,
    plan: c.Memory | None = None,
    cc: str | None = None,
) -> dict[str, int]:
    """Elements of each result that the C of a program gives otherwise than its executor, where there are any.

    Args:
        files: The program.
        inputs: Codes.
        work: Folder of the build.
        cflags: Flags of the compiler.
        batch: Images in the arena at once.
        plan: Memory plan; None: a separate place for each tensor.
        cc: The compiler; the usual one where there is none.
    """
    binary = c.Binary(c.emit(files, "model", plan or separate(files, batch)), work, cc=cc, cflags=cflags, trace=True)
    trace = binary.run(inputs)
    expected = codes_of(files, inputs)
    assert set(trace.codes) == set(expected)
    assert all(array.dtype == expected[name].dtype for name, array in trace.codes.items())
    assert all(array.shape == expected[name].shape for name, array in trace.codes.items())
    counts = {name: int((array != expected[name]).sum()) for name, array in trace.codes.items()}
    for index, (old, new) in enumerate(zip(Executor(files).run_integer(inputs), trace.outputs, strict=True)):
        counts[f"output {index}"] = int((old.reshape(new.shape) != new).sum())
    return {name: count for name, count in counts.items() if count}


def codes_of(files: ProgramFiles, inputs: Sequence[Array]) -> dict[str, Array]:
    """The codes of each tensor of the integer core, fed with codes."""
    program = files.program
    quantized = {item.inputs[0]: item.output for item in program.instructions if item.op == "quantize"}
    given = {quantized.get(name, name): array for name, array in zip(program.inputs, inputs, strict=True)}
    stand_ins = [
        np.zeros(array.shape, np.float32) if name in quantized else array
        for name, array in zip(program.inputs, inputs, strict=True)
    ]
    found = dict(given)
    real = {item.output for item in program.instructions if item.op == "dequantize"}

    def observe(name: str, array: Array) -> None:
        if name not in real and name not in given:
            found[name] = array

    Executor(files).run(stand_ins, observe, given.get)
    return found


def random_codes(files: ProgramFiles, images: int, seed: int = 0) -> list[Array]:
    """Codes over the whole range of each input, as its quantizer limits them."""
    generator = np.random.default_rng(seed)
    program = files.program
    found = []
    for name in program.inputs:
        item = next(item for item in program.instructions if item.op == "quantize" and item.inputs[0] == name)
        tensor = program.tensors[item.output]
        shape = [images if size == -1 else size for size in tensor.shape]
        low, high = item.attributes["qmin"], item.attributes["qmax"]
        dtype = {"i8": np.int8, "u8": np.uint8, "i16": np.int16, "u16": np.uint16}[tensor.dtype]
        found.append(generator.integers(low, high, shape, dtype, endpoint=True))  # type: ignore[arg-type]  # integers
    return found
