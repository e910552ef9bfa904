"""Tables of a FlatBuffer from plain data.

A table is a mapping from slots to values with their kinds. The order of the fields of a table in the schema gives the
slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import flatbuffers
import numpy as np

__all__ = ["Field", "Kind", "Table", "serialized"]

Kind: TypeAlias = Literal[
    "i8", "u8", "i32", "u32", "bool", "f32", "text", "table", "tables", "bytes", "i32s", "i64s", "f32s"
]
ALIGNMENT = 16
"""Alignment of bytes, as the schema demands for buffers."""
_SCALARS = {"i8": "Int8", "u8": "Uint8", "i32": "Int32", "u32": "Uint32", "bool": "Bool", "f32": "Float32"}
_ARRAYS = {"i32s": np.int32, "i64s": np.int64, "f32s": np.float32}


@dataclass(frozen=True)
class Field:
    """A value of a table.

    Args:
        kind: Kind of the value.
        value: A number, a text, bytes, numbers, a table or tables.
    """

    kind: Kind
    value: Any


Table: TypeAlias = Mapping[int, Field]
"""Fields by slot."""


def serialized(root: Table, identifier: bytes) -> bytes:
    """The bytes of a file.

    Args:
        root: The outermost table.
        identifier: Four bytes that name the schema.
    """
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(_table(builder, root), identifier)
    return bytes(builder.Output())


def _table(builder: flatbuffers.Builder, table: Table) -> int:
    """Write a table; what it refers to comes before it."""
    offsets = {slot: _offset(builder, field) for slot, field in table.items() if field.kind not in _SCALARS}
    builder.StartObject(max(table, default=-1) + 1)
    for slot, field in table.items():
        if slot in offsets:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
        else:
            getattr(builder, f"Prepend{_SCALARS[field.kind]}Slot")(slot, field.value, None)
    return int(builder.EndObject())


def _offset(builder: flatbuffers.Builder, field: Field) -> int:
    if field.kind == "text":
        return int(builder.CreateString(field.value))
    if field.kind == "table":
        return _table(builder, field.value)
    if field.kind == "tables":
        return _vector(builder, [_table(builder, item) for item in field.value])
    if field.kind == "bytes":
        return _aligned(builder, field.value)
    array = np.asarray(field.value, _ARRAYS[field.kind])
    return int(builder.CreateNumpyVector(array))


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _aligned(builder: flatbuffers.Builder, data: bytes) -> int:
    """Bytes whose first one lies at a multiple of `ALIGNMENT` from the end of the file."""
    builder.StartVector(1, len(data), ALIGNMENT)
    builder.head = builder.Head() - len(data)
    builder.Bytes[builder.Head() : builder.Head() + len(data)] = data
    return int(builder.EndVector())
