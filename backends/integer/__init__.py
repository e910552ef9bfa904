"""The integer program: format, emitter and executor."""

from collections.abc import Sequence

from qcompiler.backends.integer.emit import emit
from qcompiler.backends.integer.executor import Array, Executor
from qcompiler.backends.integer.program import Program, ProgramFiles

__all__ = ["Executor", "Program", "ProgramFiles", "emit", "run"]


def run(files: ProgramFiles, inputs: Sequence[Array]) -> list[Array]:
    """Run a program on one batch; see `Executor.run`."""
    return Executor(files).run(inputs)
