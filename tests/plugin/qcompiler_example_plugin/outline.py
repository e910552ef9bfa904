"""A back end of another distribution: the instructions of a program as lines of text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qcompiler.backends.base import Array, Backend, Bound, Files, Lowered
from qcompiler.backends.integer import Executor
from qcompiler.errors import UnsupportedError
from qcompiler.program.files import ProgramFiles
from qcompiler.targets import Target

FILE = "outline/model.txt"


class Outline(Backend):
    """One line for each instruction, then the program itself, so that the form can be run."""

    name = "outline"

    def emit(self, model: Lowered, target: Target) -> Files:
        """The text of a model without float islands."""
        program = model.program.program
        if program.islands:
            raise UnsupportedError("an outline has no float islands", where=next(iter(program.islands)))
        lines = [f"{item.output} = {item.op}({', '.join(item.inputs)})" for item in program.instructions]
        weights = model.program.weights().hex()
        content = "\n".join(
            [f"# {model.name} for {target.name}", *lines, json.dumps([model.program.program_json(), weights])]
        )
        return {FILE: content.encode()}

    def run(self, files: Files, inputs: Sequence[Array]) -> list[Array]:
        """Run the program in the last line."""
        text, weights = json.loads(files[FILE].decode().splitlines()[-1])
        return Executor(ProgramFiles.parse(text, bytes.fromhex(weights))).run(inputs)

    def bound(self, target: Target) -> Bound:
        """One step on one element in a thousand, as an example: the executor is exact."""
        del target
        return Bound(lsb=1, fraction=0.001)
