"""A program with its constants, as files: `program.json` and `weights.safetensors`.

`program.json` holds everything except bulk numbers, which `weights.safetensors` holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from qcompiler.errors import ArtifactError
from qcompiler.program.aliases import check_memory
from qcompiler.program.check import check_program
from qcompiler.program.constants import constants_of, stored_shape
from qcompiler.program.program import NIBBLES, Array, Body, FirstProgram, Program
from qcompiler.storage.reading import parse_json

FIRST = "qcompiler.program/1"
"""The schema of older programs, which are translated on reading."""


@dataclass(frozen=True)
class ProgramFiles:
    """A program with its constants."""

    program: Program
    constants: Mapping[str, Array]

    def __repr__(self) -> str:
        stored = sum(array.nbytes for array in self.constants.values())
        return f"<{len(self.program.instructions)} instructions, {len(self.constants)} constants of {stored:,} bytes>"

    def __post_init__(self) -> None:
        check_references(self.program, self.constants)
        if self.program.memory is not None:
            check_memory(self.program, self.program.memory)

    def logical(self, name: str) -> Array:
        """A view of a constant in the logical order of its axes."""
        return self.constants[name].transpose(np.argsort(self.program.constants[name].order))

    def program_json(self) -> str:
        """Text of `program.json`; the same program gives the same bytes."""
        data = self.program.model_dump(mode="json", by_alias=True)
        return json.dumps(data, sort_keys=True, indent=1) + "\n"

    def weights(self) -> bytes:
        """Bytes of `weights.safetensors`."""
        # Not `ascontiguousarray`, which adds an axis to a 0-D tensor.
        arrays = {name: np.asarray(self.constants[name], order="C") for name in sorted(self.constants)}
        if self.program.packing != "none":
            arrays = {name: self._packed(name, array) for name, array in arrays.items()}
        return save(arrays)

    def _packed(self, name: str, array: Array) -> Array:
        if self.program.tensors[name].dtype not in NIBBLES:
            return array
        codes = array.reshape(-1).view(np.uint8) & 0xF
        pairs = np.append(codes, np.zeros(codes.size % 2, np.uint8)).reshape(-1, 2).astype(np.uint8)
        low, high = (0, 1) if self.program.packing == "low_nibble_first" else (1, 0)
        packed: Array = pairs[:, low] | pairs[:, high] << 4
        return packed

    @classmethod
    def parse(cls, program_json: str, weights: bytes) -> ProgramFiles:
        """Read what `program_json` and `weights` wrote.

        Raises:
            ArtifactError: The files are damaged, do not belong together, or are of another version.
        """
        # Refuses what pydantic accepts: duplicate keys, NaN, deep nesting.
        plain = parse_json(program_json, "program.json")
        first = isinstance(plain, dict) and plain.get("schema") == FIRST
        try:
            kind = FirstProgram if first else Program
            found = kind.model_validate_json(program_json, strict=True)
        except ValidationError as error:
            finding = error.errors()[0]
            place = ".".join(str(part) for part in finding["loc"])
            raise ArtifactError(f"not an integer program: {finding['msg']}", where=f"program.json, {place}") from None
        program = _translated(found) if isinstance(found, FirstProgram) else found
        try:
            constants = load(weights)
        except (SafetensorError, KeyError, ValueError) as error:  # KeyError: an element type that NumPy lacks
            raise ArtifactError(f"the constants cannot be read: {error}", where="weights.safetensors") from None
        if program.packing != "none":
            constants = {name: _unpacked(program, name, array) for name, array in constants.items()}
        check_references(program, constants)
        check_program(program, constants)
        return cls(program, constants)


def _translated(first: FirstProgram) -> Program:
    """A program of the first schema in the current one."""
    constants = constants_of(first.constants, first.tensors, first.instructions, first.weight_layout)
    fields = {name: getattr(first, name) for name in Body.model_fields}
    return Program(constants=constants, **fields)


def check_references(program: Program, constants: Mapping[str, Array]) -> None:
    """Check that every tensor is declared, written once, and written before it is read.

    Raises:
        ArtifactError: A tensor is not, or a constant or an island is missing.
    """
    known = {*program.inputs, *program.constants}
    for name in program.constants:
        if name not in constants:
            raise ArtifactError(f"the constant {name!r} is missing", where="weights.safetensors")
    for instruction in program.instructions:
        for name in instruction.inputs:
            if name not in known:
                raise ArtifactError(f"{name!r} is read before it is written", where=f"instruction {instruction.output}")
        if instruction.op == "call" and instruction.attributes.get("graph") not in program.islands:
            raise ArtifactError("the island is missing", where=f"instruction {instruction.output}")
        for name in instruction.outputs:
            if name in known:
                raise ArtifactError(f"{name!r} is written twice", where=f"instruction {instruction.output}")
            known.add(name)
    for name in (*known, *program.outputs):
        if name not in program.tensors or name not in known:
            raise ArtifactError(f"the tensor {name!r} is not declared or never written", where="program.json")


def _unpacked(program: Program, name: str, array: Array) -> Array:
    """The inverse of `ProgramFiles._packed`, in the order in which the constant is stored.

    Raises:
        ArtifactError: The number of codes differs from the number of elements.
    """
    tensor = program.tensors.get(name)
    if tensor is None or tensor.dtype not in NIBBLES or name not in program.constants:
        return array
    shape = stored_shape(program, name)
    packed = array.reshape(-1).astype(np.uint8)
    halves = [packed & 0xF, packed >> 4]
    codes = np.stack(halves if program.packing == "low_nibble_first" else halves[::-1], 1).reshape(-1)
    count = math.prod(shape)
    if codes.size != count + count % 2:
        raise ArtifactError(f"{codes.size} codes for {count} elements", where=f"weights.safetensors, {name}")
    codes = codes[:count].reshape(shape)
    if tensor.dtype == "u4":
        return codes
    signed: Array = ((codes ^ 8).astype(np.int8) - np.int8(8)).astype(np.int8)
    return signed
