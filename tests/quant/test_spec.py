"""Grids: limits, storage types, text form, refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import InputError, ParseError
from qcompiler.quant.rounding import Rounding
from qcompiler.quant.spec import QuantSpec, ScaleKind


@st.composite
def specs(draw: st.DrawFn) -> QuantSpec:
    signed = draw(st.booleans())
    axis = draw(st.none() | st.integers(-4, 4))
    return QuantSpec(
        bits=draw(st.integers(2, 32 if signed else 16)),
        signed=signed,
        symmetric=draw(st.booleans()),
        narrow=signed and draw(st.booleans()),
        axis=axis,
        block=None if axis is None else draw(st.none() | st.integers(1, 256)),
        scale_kind=draw(st.sampled_from(ScaleKind)),
        rounding=draw(st.sampled_from(Rounding)),
    )


@given(spec=specs())
def test_text_form_round_trips(spec: QuantSpec) -> None:
    assert QuantSpec.parse(str(spec)) == spec


def test_text_form_is_compact() -> None:
    assert str(QuantSpec(8, signed=False)) == "u8"
    assert str(QuantSpec(8, symmetric=True, narrow=True, axis=0)) == "s8 symmetric narrow axis=0"
    text = "s4 axis=1 block=32 scale=pow2 rounding=rhaz"
    assert str(QuantSpec.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "qmin", "qmax", "dtype"),
    [
        ("s2", -2, 1, "i4"),
        ("s4 narrow", -7, 7, "i4"),
        ("u4", 0, 15, "u4"),
        ("s5", -16, 15, "i8"),
        ("s8", -128, 127, "i8"),
        ("s8 narrow", -127, 127, "i8"),
        ("u8", 0, 255, "u8"),
        ("u9", 0, 511, "u16"),
        ("s16", -32768, 32767, "i16"),
        ("s17", -65536, 65535, "i32"),
        ("s32", -(2**31), 2**31 - 1, "i32"),
    ],
)
def test_limits_and_storage(text: str, qmin: int, qmax: int, dtype: str) -> None:
    spec = QuantSpec.parse(text)
    assert (spec.qmin, spec.qmax, spec.dtype) == (qmin, qmax, dtype)
    assert not spec.per_channel and QuantSpec.parse(f"{text} axis=0").per_channel


def test_contradictory_grids_are_refused() -> None:
    with pytest.raises(InputError, match="1 bits"):
        QuantSpec(1)
    with pytest.raises(InputError, match="unsigned quantizer of 17 bits"):
        QuantSpec(17, signed=False)
    with pytest.raises(InputError, match="narrow unsigned"):
        QuantSpec(8, signed=False, narrow=True)
    with pytest.raises(InputError, match="without an axis"):
        QuantSpec(8, block=32)
    with pytest.raises(InputError, match="block=0"):
        QuantSpec(8, axis=0, block=0)
    with pytest.raises(InputError, match="factor_bits=9"):
        QuantSpec(4, axis=0, block=32, factor_bits=9)
    assert str(QuantSpec.parse("s4 symmetric axis=0 block=32 factor=8")) == "s4 symmetric axis=0 block=32 factor=8"


@pytest.mark.parametrize(
    "text",
    ["", "8", "i8", "s8 wide", "s8 axis=x", "s8 narrow narrow", "s8 narrow=1", "s99", "u8 narrow", "s8 rounding=up"],
)
def test_text_that_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        QuantSpec.parse(text)
