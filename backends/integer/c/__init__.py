"""Portable C99 for an integer program: written, built and run."""

from qcompiler.backends.integer.c.build import Binary, Trace, find_compiler, run, why_it_cannot_build
from qcompiler.backends.integer.c.emit import emit
from qcompiler.backends.integer.c.memory import Memory
from qcompiler.backends.integer.c.names import model_identifier
from qcompiler.backends.integer.c.vectors import VECTOR_FILES, Vector, record

__all__ = [
    "VECTOR_FILES",
    "Binary",
    "Memory",
    "Trace",
    "Vector",
    "emit",
    "find_compiler",
    "model_identifier",
    "record",
    "run",
    "why_it_cannot_build",
]
