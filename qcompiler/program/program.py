"""The integer program: a list of instructions over named tensors.

Images are stored physically in the order that `layout` names; sizes, axes and attributes are written in the logical
order N, C, H, W. A size of -1 is the batch.

`memory` says where in one array each tensor lies while the program runs; see `backends.integer.memory`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from qcompiler.ir.attributes import Attributed

SCHEMA = "qcompiler.program/2"
NIBBLES = ("i4", "u4")
"""Element types of which a byte may hold two."""
ISLAND_TENSOR = "/"
"""Separator between the names of island and tensor in the name of a constant."""
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


class Constant(_Model):
    """The use and the storage of a constant."""

    role: str
    """`weight`, `bias`, `multiplier`, `exponent`, `divisor`, `table`, `rows` or `columns`: the operand that it is.
    `factors`: of the blocks of a weight. `island`: tensor of a float island. `value`: read like an activation."""
    order: tuple[int, ...]
    """Physical order: axis `order[i]` of the tensor is axis i of the stored array."""


class Instruction(_Model, Attributed):
    """One operation. Its first result is also its name."""

    op: str
    inputs: tuple[str, ...]
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    attributes: dict[str, Scalar | tuple[int, ...]] = {}

    @property
    def output(self) -> str:
        """The first result, the only one except for the call of an island."""
        return self.outputs[0]

    @property
    def where(self) -> str:
        """The name of the instruction, for messages."""
        return f"%{self.output}"


class Memory(_Model):
    """The memory plan: offsets of all tensors in the arena of the core, which runs from codes to codes."""

    batch: Annotated[int, Field(ge=1)]
    """Number of images of the plan."""
    bytes: Annotated[int, Field(ge=0)]
    """Size of the arena."""
    lower_bound: Annotated[int, Field(ge=0)]
    """Largest number of bytes that are alive at once in this order of instructions: a lower bound for every plan."""
    alignment: Annotated[int, Field(ge=1)]
    """Alignment of every offset in bytes. Each tensor owns the arena up to the next multiple after its end."""
    offsets: dict[str, int]
    """First byte of every tensor that an instruction writes or the caller supplies. Constants have no offset, nor have
    tensors outside the core: real numbers read only by a `quantize`, and results of a `dequantize` read only by the
    caller; the codes after and before these are the inputs and outputs of the core."""


class Body(_Model):
    """The part of a program that both versions of the schema have."""

    layout: Literal["NHWC", "NCHW"]
    packing: Literal["none", "low_nibble_first", "high_nibble_first"] = "none"
    """Storage of 4-bit constants in files: one per byte, or two, row-major, padded with a zero after an odd number."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, Tensor]
    islands: dict[str, str] = {}
    """Float graphs that the instruction `call` runs, as text; their tensors are constants called `island/tensor`."""
    instructions: tuple[Instruction, ...]
    memory: Memory | None = None


class Program(Body):
    """The whole program except the numbers of its constants."""

    schema_version: Annotated[Literal["qcompiler.program/2"], Field(alias="schema")] = "qcompiler.program/2"
    constants: dict[str, Constant]


class FirstProgram(Body):
    """A program of the schema `qcompiler.program/1`, which gave names of constants only."""

    schema_version: Annotated[Literal["qcompiler.program/1"], Field(alias="schema")]
    weight_layout: Literal["OHWI", "OIHW"]
    """Physical order of the weights of two-dimensional convolutions."""
    constants: tuple[str, ...]
