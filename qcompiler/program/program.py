"""The integer program: a list of instructions over named tensors, with its constants beside it.

`program.json` holds everything but numbers in bulk, `weights.safetensors` those. Images are stored physically in the
order that `layout` names; sizes, axes and attributes are written in the logical order N, C, H, W. A size of -1 is the
batch.

`memory` says where in one array each tensor lies while the program runs; see `backends.integer.memory`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from qcompiler.errors import ArtifactError
from qcompiler.program.aliases import check_memory
from qcompiler.program.check import check_program
from qcompiler.storage.reading import parse_json

SCHEMA = "qcompiler.program/1"
NIBBLES = ("i4", "u4")
"""Element types of which a byte may hold two."""
ISLAND_TENSOR = "/"
"""Between the name of an island and that of its tensor, in the name of a constant."""
Array = npt.NDArray[np.generic]
Scalar = bool | int | float | str | None


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tensor(_Model):
    """One tensor: element type, logical sizes, grid."""

    dtype: str
    shape: tuple[int, ...]
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int | None = None


class Instruction(_Model):
    """One operation. Its first result is also its name."""

    op: str
    inputs: tuple[str, ...]
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    attributes: dict[str, Scalar | tuple[int, ...]] = {}

    @property
    def output(self) -> str:
        """The first result, which all but the call of an island have alone."""
        return self.outputs[0]


class Memory(_Model):
    """Where in one array of bytes each tensor lies while the core of the program runs, from codes to codes."""

    batch: Annotated[int, Field(ge=1)]
    """Images that it is planned for."""
    bytes: Annotated[int, Field(ge=0)]
    """Size of the array."""
    lower_bound: Annotated[int, Field(ge=0)]
    """Largest number of bytes that are alive at once in this order of instructions: no plan can do with less."""
    alignment: Annotated[int, Field(ge=1)]
    """Of every offset, bytes. Each tensor has the array to itself up to the next multiple behind its end."""
    offsets: dict[str, int]
    """First byte of every tensor that an instruction writes or the caller gives. Constants have none, nor has what lies
    outside of the core: real numbers that nothing but a `quantize` reads, and results that only the caller reads of a
    `dequantize`; the codes behind and in front of those are the inputs and outputs of the core."""


class Program(_Model):
    """The whole program but its constants."""

    schema_version: Annotated[Literal["qcompiler.program/1"], Field(alias="schema")] = "qcompiler.program/1"
    layout: Literal["NHWC", "NCHW"]
    weight_layout: Literal["OHWI", "OIHW"]
    packing: Literal["none", "low_nibble_first", "high_nibble_first"] = "none"
    """How constants of four bits are held in files: one in a byte, or two, row-major, a zero behind an odd number."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, Tensor]
    constants: tuple[str, ...]
    islands: dict[str, str] = {}
    """Float graphs that the instruction `call` runs, as text; their tensors are constants called `island/tensor`."""
    instructions: tuple[Instruction, ...]
    memory: Memory | None = None


@dataclass(frozen=True)
class ProgramFiles:
    """A program with its constants."""

    program: Program
    constants: Mapping[str, Array]

    def __post_init__(self) -> None:
        check_references(self.program, self.constants)
        if self.program.memory is not None:
            check_memory(self.program, self.program.memory)

    def program_json(self) -> str:
        """Text of `program.json`; the same program gives the same bytes."""
        data = self.program.model_dump(mode="json", by_alias=True)
        return json.dumps(data, sort_keys=True, indent=1) + "\n"

    def weights(self) -> bytes:
        """Bytes of `weights.safetensors`."""
        # Not `ascontiguousarray`, which gives a tensor without axes one.
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
        parse_json(program_json, "program.json")  # which refuses what pydantic takes: keys twice, NaN, depth
        try:
            program = Program.model_validate_json(program_json, strict=True)
        except ValidationError as error:
            finding = error.errors()[0]
            place = ".".join(str(part) for part in finding["loc"])
            raise ArtifactError(f"not an integer program: {finding['msg']}", where=f"program.json, {place}") from None
        try:
            constants = load(weights)
        except (SafetensorError, KeyError, ValueError) as error:  # KeyError: an element type that NumPy has not
            raise ArtifactError(f"the constants cannot be read: {error}", where="weights.safetensors") from None
        if program.packing != "none":
            constants = {name: _unpacked(program, name, array) for name, array in constants.items()}
        check_references(program, constants)
        check_program(program, constants)
        return cls(program, constants)


def check_references(program: Program, constants: Mapping[str, Array]) -> None:
    """Check that every tensor is declared, written once, and written before it is read.

    Raises:
        ArtifactError: One is not, or a constant or an island is missing.
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
        ArtifactError: There are not as many codes as the tensor has elements.
    """
    tensor = program.tensors.get(name)
    if tensor is None or tensor.dtype not in NIBBLES:
        return array
    shape = tensor.shape
    is_kernel = any(i.op == "int_conv2d" and i.inputs[1] == name for i in program.instructions)
    if len(shape) == 4 and is_kernel and program.weight_layout == "OHWI":
        shape = (shape[0], *shape[2:], shape[1])
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
