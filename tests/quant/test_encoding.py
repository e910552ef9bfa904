"""A grid of a file on a quantizer of a target: what holds it, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import EncodingsError
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.encoding import Encoding, Encodings
from qcompiler.quant.spec import QuantSpec

ASYMMETRIC = Encoding("x", 8, (0.25,), (131,))
SYMMETRIC = Encoding("w", 8, (0.25, 0.5), (128, 128), symmetric=True, signed=True, per_channel=True, axis=0)


def test_a_code_is_counted_from_the_lowest() -> None:
    scale, zero_point = ASYMMETRIC.on(QuantSpec.parse("s8"), None, "chip")
    assert (float(scale), int(zero_point)) == (0.25, 3)
    assert int(ASYMMETRIC.on(QuantSpec.parse("u8"), None, "chip")[1]) == 131
    assert ASYMMETRIC.offset == (-131,)


def test_channels_have_their_scales_and_one_scale_serves_all() -> None:
    spec = QuantSpec.parse("s8 symmetric narrow axis=0")
    scale, zero_point = SYMMETRIC.on(spec, 2, "chip")
    assert (scale.tolist(), zero_point.tolist()) == ([0.25, 0.5], [0, 0])
    one = Encoding("w", 8, (0.25,), (128,), symmetric=True)
    assert one.on(spec, 3, "chip")[0].tolist() == [0.25] * 3


REFUSED = {
    "another width": (ASYMMETRIC, "s4", None, "'x' has 8 bits; expected 4 bits, the width of chip there"),
    "channels on one scale": (SYMMETRIC, "s8 symmetric", None, "2 scales, one per channel; expected one scale"),
    "other channels": (
        SYMMETRIC,
        "s8 symmetric axis=0",
        3,
        "2 scales; expected one scale, or one for each of 3 channels",
    ),
    "another axis": (SYMMETRIC, "s8 symmetric axis=1", 2, "scales along axis 0; expected axis 1"),
    "an asymmetric grid": (ASYMMETRIC, "s8 symmetric", None, "zero point 3 of an asymmetric grid; expected 0"),
    "a zero point on no code": (
        Encoding("x", 8, (1.0,), (256,)),
        "s8",
        None,
        "the zero point 128; expected one of the codes of chip, -128 to 127",
    ),
    "a zero point below": (Encoding("x", 8, (1.0,), (-1,)), "u8", None, "the zero point -1; expected .* 0 to 255"),
    "a scale that float32 cannot hold": (
        Encoding("x", 8, (1e39,), (0,)),
        "u8",
        None,
        "the scale 1e.39; expected float32",
    ),
    "a scale that vanishes": (Encoding("x", 8, (1e-30,), (0,)), "u8", None, "the scale 1e-30; expected float32"),
    "no power of two": (Encoding("x", 8, (0.3,), (0,)), "u8 scale=pow2", None, "the scale 0.3.*powers of two"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_grid_that_the_quantizer_has_not_is_refused(case: str) -> None:
    item, spec, channels, message = REFUSED[case]
    with pytest.raises(EncodingsError, match=message):
        item.on(QuantSpec.parse(spec), channels, "chip")


@given(
    low=st.floats(-100, 0, width=32),
    high=st.floats(0.5, 100, width=32),
    bits=st.integers(2, 16),
    signed=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_a_calibrated_grid_comes_back_bit_for_bit(low: float, high: float, bits: int, signed: bool) -> None:
    spec = QuantSpec(bits, signed=signed)
    scale, zero_point = qparams_from_range(low, high, spec)
    shift = 2 ** (bits - 1) if signed else 0
    item = Encoding("x", bits, (float(scale),), (int(zero_point) + shift,), signed=signed)
    again = item.on(spec, None, "chip")
    assert torch.equal(again[0], scale)
    assert torch.equal(again[1], zero_point)
    other = dataclasses.replace(item, signed=not signed)
    assert other.same_grid(item), "the storage of codes is not part of the grid"


def test_a_tensor_has_one_encoding() -> None:
    with pytest.raises(EncodingsError, match="the tensor 'x' has two encodings"):
        Encodings((ASYMMETRIC, ASYMMETRIC), "1.0.0")
