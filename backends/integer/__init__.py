"""The integer program: emitter, memory plan and executor."""

from collections.abc import Sequence

from qcompiler.backends.integer.emit import emit
from qcompiler.backends.integer.executor import Array, Executor, Sums
from qcompiler.backends.integer.memory import plan, plan_program, sum_of_tensors
from qcompiler.program.files import ProgramFiles

__all__ = [
    "Executor",
    "Sums",
    "emit",
    "plan",
    "plan_program",
    "run",
    "sum_of_tensors",
]


def run(files: ProgramFiles, inputs: Sequence[Array]) -> list[Array]:
    """Run a program on one batch; see `Executor.run`."""
    return Executor(files).run(inputs)
