"""The back end C: portable C99 for the integer program, in the folder `c/` of an artifact."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qcompiler.backends.base import Array, Backend, Files, Lowered, Results, Way
from qcompiler.backends.integer import Executor, c
from qcompiler.backends.integer.c.ends import CONTRACT
from qcompiler.backends.integer.c.memory import NUMPY
from qcompiler.errors import QCompilerError, ToolchainError, UnsupportedError
from qcompiler.program import aliases, liveness
from qcompiler.program.files import ProgramFiles
from qcompiler.program.liveness import core_of
from qcompiler.program.products import products
from qcompiler.targets import Target

FOLDER = "c/"
"""Place of the files in an artifact."""
LONGEST_NAME = 100
"""Longest name of a model whose C is built here: the name is part of file names."""
LARGEST = 32 * 2**20
"""Bytes of constants up to which C is written: as text they take four times as much, and a compiler a minute."""


class CSource(Backend):
    """Portable C99, built with the installed C compiler."""

    name = "C"

    def emit(self, model: Lowered, target: Target) -> Files:
        """The folder of C. Its self-test has two vectors: the first sample, and random codes over the whole range."""
        del target
        files, plan = model.program, model.program.program.memory
        if plan is None:
            raise UnsupportedError("the program has no memory plan")
        size = sum(array.nbytes for array in files.constants.values())
        if size > LARGEST:
            reason = f"its constants have {size / 2**20:.0f} MiB, but C is written only up to {LARGEST // 2**20} MiB"
            raise UnsupportedError(f"{reason}; qcompiler.backends.integer.c.emit writes it in any case")
        vectors = _vectors(files, model.samples, plan.batch, model.seed) if model.samples else ()
        folder = c.emit(files, c.model_identifier(model.name), plan, vectors)
        return {f"{FOLDER}{name}": data for name, data in folder.items()}

    def run(self, files: Files, inputs: Sequence[Array]) -> list[Array]:
        """Build the folder and run it."""
        with _built(folder_of(files), "-O1") as binary:
            return binary.run(inputs, real=True).outputs

    def available(self) -> str | None:
        """The reason why no C can be built here, such as a missing compiler."""
        try:
            command = c.find_compiler()
        except ToolchainError as error:
            return error.found
        reason = c.why_it_cannot_build(tuple(command))
        return f"the C compiler cannot build programs: {reason}" if reason else None

    def why_foreign(self, files: Files, program: ProgramFiles) -> str | None:
        """The first difference from the C that is written here for `program`; the self-test may have any vectors."""
        folder, plan = folder_of(files), program.program.memory
        try:
            if plan is None:
                return "the program has no memory plan"
            name = str(json.loads(folder[CONTRACT])["name"])
            if len(name) > LONGEST_NAME:
                return f"{FOLDER}{CONTRACT} has a model name of {len(name)} characters"
            expected = c.emit(program, name, plan)
        except (QCompilerError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            return f"{FOLDER}{CONTRACT} does not belong to the program: {error}"
        for name, content in expected.items():
            if name not in c.VECTOR_FILES and folder.get(name) != content:
                return f"{FOLDER}{name} differs from the file that this version writes, and is not run"
        return None

    def ways(self, files: Files, program: ProgramFiles, target: Target, samples: int) -> Generator[Way, None, None]:
        """One way: the binary, which gives the result of every step."""
        del target
        macs = 2 * samples * sum(products(program).values())
        level = next((option for most, option in _LEVELS if macs < most), "-O3")
        with _built(folder_of(files), level, trace=True) as binary:
            steps = [step["tensor"] for step in binary.contract["steps"]]
            views = _views(program)

            def run(inputs: Sequence[Array]) -> Results:
                found = binary.run(inputs, real=True)
                return Results(found.outputs, found.codes)

            def run_layers(inputs: Sequence[Array], codes: Mapping[str, Array]) -> dict[str, Array]:
                # A view shares the bytes of another tensor: replacing that tensor replaces the view.
                given = {name: array for name, array in codes.items() if name not in views}
                found = binary.run(_codes_of_inputs(binary, inputs, given), given)
                return {name: found.codes[name] for name in steps}

            yield Way(self.name, run, run_layers)


def folder_of(files: Files) -> dict[str, bytes]:
    """The files of the folder `c/` by their names in it."""
    return {name.removeprefix(FOLDER): data for name, data in files.items()}


def _views(files: ProgramFiles) -> frozenset[str]:
    """Results that lie where their operand does."""
    plan = files.program.memory
    if plan is None:
        return frozenset()
    tensors = liveness.Tensors(files.program, plan.batch)
    return aliases.shown(tensors, aliases.find_homes(tensors, plan.alignment))


def _vectors(files: ProgramFiles, samples: Sequence[Array], batch: int, seed: int) -> list[c.Vector]:
    program, core = files.program, core_of(files.program)
    # The caller gives real numbers for an input that is read by more than its quantizer, such as by an island.
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


def _codes_of_inputs(binary: c.Binary, real: Sequence[Array], codes: Mapping[str, Array]) -> list[Array]:
    """The inputs of a program in codes; inputs that the program does not read stay real numbers."""
    inputs = list(real)
    for end in binary.contract["inputs"]:
        if end["tensor"] in codes:
            inputs[end["index"]] = codes[end["tensor"]].astype(NUMPY[end["type"]])
    return inputs


@contextmanager
def _built(folder: Mapping[str, bytes], level: str, *, trace: bool = False) -> Iterator[c.Binary]:
    """The program of a folder, built at an optimization level of the C compiler."""
    with tempfile.TemporaryDirectory() as work:
        yield c.Binary(folder, Path(work), cflags=(level,), trace=trace, together=True)


_LEVELS = ((10**8, "-O0"), (4 * 10**9, "-O1"))
"""Optimization level by number of multiply-accumulates. Measured: a network of twelve instructions compiles in 0.1 s,
0.15 s and 1.5 s with -O0, -O1 and -O3, and then does 0.4, 2 and 15 multiply-accumulates per nanosecond."""
