"""The form C of a compiled model: written for its program, built and compared by the verifier."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qcompiler.backends.integer import Executor, c
from qcompiler.backends.integer.c.ends import CONTRACT
from qcompiler.backends.integer.c.memory import NUMPY
from qcompiler.errors import QCompilerError, ToolchainError, UnsupportedError
from qcompiler.program.files import ProgramFiles
from qcompiler.program.liveness import core_of

Array = npt.NDArray[np.generic]

FOLDER = "c"
"""Name of the form in an artifact."""
LONGEST_NAME = 100
"""Longest name of a model whose C is built here: the name is part of file names."""
LARGEST = 32 * 2**20
"""Bytes of constants up to which C is written: as text they take four times as much, and a compiler a minute."""


def write_c(files: ProgramFiles, name: str, samples: Sequence[Array], seed: int) -> tuple[dict[str, bytes], str]:
    """The folder of C for a program.

    Its self-test gets two vectors: the first of `samples`, and random codes over the whole range of each input.

    Args:
        files: The program.
        name: Name of the model.
        samples: Real numbers for each input.
        seed: Seed for the random codes.

    Returns:
        The files, and why there are none.
    """
    plan = files.program.memory
    if plan is None:
        return {}, "the program has no memory plan"
    size = sum(array.nbytes for array in files.constants.values())
    if size > LARGEST:
        reason = f"its constants have {size / 2**20:.0f} MiB, and C is written up to {LARGEST // 2**20} MiB"
        return {}, f"{reason}; qcompiler.backends.integer.c.emit writes it all the same"
    try:
        return c.emit(files, c.model_identifier(name), plan, _vectors(files, samples, plan.batch, seed)), ""
    except UnsupportedError as error:
        return {}, error.found


def _vectors(files: ProgramFiles, samples: Sequence[Array], batch: int, seed: int) -> list[c.Vector]:
    program, core = files.program, core_of(files.program)
    # What something beside a quantizer reads too, such as an island, the caller gives in real numbers.
    quantizers = {item.output: item for item in core.entry}
    codes: dict[str, Array] = {}
    real = [
        array[:batch] if -1 in program.tensors[name].shape[:1] else array
        for name, array in zip(program.inputs, samples, strict=True)
    ]
    Executor(files).run(real, codes.__setitem__)
    first = [codes[inner] if inner in quantizers else array for inner, array in zip(core.given, real, strict=True)]
    generator = np.random.default_rng(seed)
    second = []
    for inner, array in zip(core.given, first, strict=True):
        if inner in quantizers:
            low, high = (quantizers[inner].attributes[end] for end in ("qmin", "qmax"))
            array = generator.integers(low, high, array.shape, array.dtype, endpoint=True)  # type: ignore[arg-type]
        second.append(array)
    return c.record(files, [first, second])


def why_not_ours(files: ProgramFiles, folder: Mapping[str, bytes]) -> str:
    """The difference between a folder of C and the C written here for a program; empty without a difference.

    What came from elsewhere is never built and run. The vectors of its self-test may be any.
    """
    plan = files.program.memory
    try:
        if plan is None:
            return "the program has no memory plan"
        name = str(json.loads(folder[CONTRACT])["name"])
        if len(name) > LONGEST_NAME:
            return f"{FOLDER}/{CONTRACT} names a model of {len(name)} characters"
        expected = c.emit(files, name, plan)
    except (QCompilerError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        return f"{FOLDER}/{CONTRACT} does not belong to the program: {error}"
    for name, content in expected.items():
        if name not in c.VECTOR_FILES and folder.get(name) != content:
            return f"{FOLDER}/{name} is not what this version writes for the program, and is not run"
    return ""


def codes_of_inputs(binary: c.Binary, real: Sequence[Array], codes: Mapping[str, Array]) -> list[Array]:
    """The inputs of a program in codes.

    Args:
        binary: The program.
        real: Inputs of the program as real numbers; inputs that the program does not read are kept.
        codes: By tensor.
    """
    inputs = list(real)
    for end in binary.contract["inputs"]:
        if end["tensor"] in codes:
            inputs[end["index"]] = codes[end["tensor"]].astype(NUMPY[end["type"]])
    return inputs


def why_not_run() -> str:
    """Why no C can be built and run here; empty where it can."""
    try:
        command = c.find_compiler()
    except ToolchainError as error:
        return error.found
    reason = c.why_it_cannot_build(tuple(command))
    return f"the C compiler builds no programs here: {reason}" if reason else ""


@contextmanager
def built(files: Mapping[str, bytes], macs: int) -> Iterator[c.Binary]:
    """The program of a folder of C, which gives the result of every step.

    Args:
        files: The folder.
        macs: Multiply-accumulates that it will do: few of them are done sooner than a compiler optimizes.
    """
    level = next((option for most, option in _LEVELS if macs < most), "-O3")
    with tempfile.TemporaryDirectory() as work:
        yield c.Binary(files, Path(work), cflags=(level,), trace=True, together=True)


_LEVELS = ((10**8, "-O0"), (4 * 10**9, "-O1"))
"""Measured: a network of twelve instructions compiles in 0.1 s, 0.15 s and 1.5 s with -O0, -O1 and -O3, and then does
0.4, 2 and 15 multiply-accumulates per nanosecond."""
