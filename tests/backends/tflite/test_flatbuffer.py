"""Tables of a FlatBuffer, read back by the library's own reader."""

from __future__ import annotations

import struct

import numpy as np
from flatbuffers import encode, number_types, packer
from flatbuffers.table import Table as Reader

from qcompiler.backends.tflite.flatbuffer import ALIGNMENT, Field, serialized


def root(data: bytes) -> Reader:
    return Reader(data, encode.Get(packer.uoffset, data, 0))


def test_scalars_and_texts() -> None:
    data = serialized({0: Field("i32", -7), 2: Field("text", "name"), 3: Field("bool", True)}, b"TEST")
    assert data[4:8] == b"TEST"
    table = root(data)
    assert table.Get(number_types.Int32Flags, table.Pos + table.Offset(4)) == -7
    assert table.Offset(6) == 0  # an absent field
    assert table.String(table.Offset(8) + table.Pos) == b"name"
    assert table.Get(number_types.BoolFlags, table.Pos + table.Offset(10))


def test_numbers_and_tables() -> None:
    inner = {0: Field("f32s", [0.5, 2.0])}
    data = serialized({0: Field("tables", [inner, {1: Field("u8", 3)}]), 1: Field("i64s", [2**40])}, b"TEST")
    table = root(data)
    assert table.VectorLen(table.Offset(4)) == 2
    first = Reader(data, table.Indirect(table.Vector(table.Offset(4))))
    assert first.GetVectorAsNumpy(number_types.Float32Flags, first.Offset(4)).tolist() == [0.5, 2.0]
    second = Reader(data, table.Indirect(table.Vector(table.Offset(4)) + 4))
    assert second.Get(number_types.Uint8Flags, second.Pos + second.Offset(6)) == 3
    assert table.GetVectorAsNumpy(number_types.Int64Flags, table.Offset(6)).tolist() == [2**40]


def test_bytes_are_aligned() -> None:
    for size in (1, 5, 16, 33):
        content = bytes(range(size))
        data = serialized({0: Field("text", "x" * size), 1: Field("bytes", content)}, b"TEST")
        table = root(data)
        begin = table.Vector(table.Offset(6))
        assert data[begin : begin + size] == content
        assert struct.unpack("<I", data[begin - 4 : begin])[0] == size
        assert begin % ALIGNMENT == 0


def test_the_same_tables_give_the_same_bytes() -> None:
    table = {0: Field("i32s", np.arange(9)), 1: Field("table", {0: Field("f32", 1.5)})}
    assert serialized(table, b"TEST") == serialized(table, b"TEST")
