"""Proves that under a memory plan every instruction reads the values written for it.

The arena is simulated byte by byte: each byte has the number of the step that wrote it. When a tensor is read, its
bytes must still have the step that wrote the tensor; otherwise it was overwritten too early.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompiler.backends.integer.c.memory import SIZES
from qcompiler.backends.integer.c.writer import Step, Writer
from qcompiler.errors import ArtifactError

Owners = npt.NDArray[np.int32]


def check_memory(writer: Writer, steps: Sequence[Step]) -> None:
    """Refuse a plan under which the program would compute wrong values.

    Raises:
        ArtifactError: A tensor has no place, is overwritten before it was read, or while it is read.
    """
    # For each byte the step that wrote it last, below -1 for the inputs; for each live tensor the expected owners.
    owners: Owners = np.full(max(writer.memory.bytes, 1), -1, np.int32)
    expected: dict[str, Owners] = {}
    constants, outputs = writer.files.constants, writer.ends.outputs
    last = {name: at for at, step in enumerate(steps) for name in step.item.inputs}
    for number, tensor in enumerate(dict.fromkeys(name for name in writer.ends.inputs if name is not None)):
        owners[writer.bytes_of(tensor)] = -2 - number
        expected[tensor] = owners[writer.bytes_of(tensor)].copy()
    for number, step in enumerate(steps):
        result = step.item.output
        span = writer.bytes_of(result)
        written = [span] if step.writes is None else step.writes
        for name in dict.fromkeys(step.item.inputs):
            if name in constants:
                continue
            if not np.array_equal(owners[writer.bytes_of(name)], expected[name]):
                raise ArtifactError(
                    f"the memory plan overwrites %{name} before %{result} has read it", where=f"%{name}"
                )
            if not _may_write(writer, step, name, writer.bytes_of(name), written):
                raise ArtifactError(f"the memory plan puts %{result} over %{name}, which it reads", where=f"%{result}")
        for part in written:
            owners[part] = number
        expected[result] = owners[span].copy()
        for name in (*step.item.inputs, result):
            if last.get(name, -1) <= number and name not in outputs:
                expected.pop(name, None)
    for name in outputs:
        if name not in constants and not np.array_equal(owners[writer.bytes_of(name)], expected[name]):
            raise ArtifactError("the memory plan overwrites an output", where=f"%{name}")


def _may_write(writer: Writer, step: Step, operand: str, read: slice, written: Sequence[slice]) -> bool:
    """Whether a step may write to a place while it reads an operand: a disjoint place, or elements already read."""
    if all(part.stop <= read.start or read.stop <= part.start for part in written):
        return True
    result = step.item.output
    same = writer.shapes[operand] == writer.shapes[result] and written[0].start == read.start
    return step.elementwise and same and SIZES[writer.ctype(result)] <= SIZES[writer.ctype(operand)]
