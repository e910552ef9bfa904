"""The integer program: format, emitter and executor."""

from qcompiler.backends.integer.emit import emit
from qcompiler.backends.integer.executor import Executor
from qcompiler.backends.integer.program import Program, ProgramFiles

__all__ = ["Executor", "Program", "ProgramFiles", "emit"]
