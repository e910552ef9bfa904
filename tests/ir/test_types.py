"""Element types, quantization parameters and tensor types."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import GraphError
from qcompiler.ir.dims import symbol
from qcompiler.ir.types import DType, QuantParams, TensorType

INTEGERS = [dtype for dtype in DType if not dtype.is_float and dtype is not DType.BOOL]


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype not in (DType.I4, DType.U4)])
def test_an_element_type_is_that_of_its_torch_type(dtype: DType) -> None:
    assert DType.of(dtype.torch) is dtype
    assert dtype.torch.is_floating_point is dtype.is_float
    assert dtype.bits == dtype.torch.itemsize * 8


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.BF16])
def test_numpy_and_torch_hold_an_element_type_alike(dtype: DType) -> None:
    assert torch.zeros(1, dtype=dtype.torch).numpy().dtype == dtype.numpy


@pytest.mark.parametrize("dtype", INTEGERS)
def test_limits_are_those_of_the_bits(dtype: DType) -> None:
    low, high = dtype.limits
    assert high - low == 2**dtype.bits - 1
    assert low == (0 if dtype.value.startswith("u") else -high - 1)
    if dtype not in (DType.I4, DType.U4):
        info = torch.iinfo(dtype.torch)
        assert (low, high) == (info.min, info.max)


def test_four_bits_are_held_in_a_byte() -> None:
    assert (DType.I4.torch, DType.U4.torch) == (torch.int8, torch.uint8)
    assert (DType.I4.bits, DType.U4.bits) == (4, 4)
    assert DType.of(torch.int8) is DType.I8


def test_types_without_a_counterpart_are_refused() -> None:
    with pytest.raises(GraphError, match=r"no element type for torch.complex64.*i4, u4"):
        DType.of(torch.complex64)
    with pytest.raises(GraphError, match="bf16 has no numpy type"):
        _ = DType.BF16.numpy


@pytest.mark.parametrize(
    ("scale", "zero_point", "axis"), [((0.1, 0.2), (0,), 0), ((0.1, 0.2), (0, 0), None), ((), (), None)]
)
def test_quantization_parameters_are_consistent(
    scale: tuple[float, ...], zero_point: tuple[int, ...], axis: int | None
) -> None:
    with pytest.raises(GraphError, match=f"{len(scale)} scales and {len(zero_point)} zero points on axis {axis}"):
        QuantParams(scale, zero_point, axis)


@pytest.mark.parametrize("axis", [None, 1])
def test_quantization_parameters_keep_every_bit(axis: int | None) -> None:
    scale = torch.tensor([0.1, 1e-30, 3.4e38][: 1 if axis is None else 3])
    zero_point = torch.tensor([-128, 0, 65535][: len(scale)], dtype=torch.int32)
    params = QuantParams.of(scale, zero_point, axis)
    shape = [] if axis is None else [3]
    assert torch.equal(params.scale_tensor(), scale.reshape(shape))
    assert torch.equal(params.zero_point_tensor(), zero_point.reshape(shape))
    assert params.scale_tensor().dtype is torch.float32
    assert params.zero_point_tensor().dtype is torch.int32


def test_types_are_written_shortly() -> None:
    params = QuantParams((0.5,), (-3,))
    channels = QuantParams((0.5, 0.25), (0, 1), axis=0)
    assert str(TensorType(DType.F32, ())) == "f32[]"
    assert str(TensorType(DType.U8, (symbol("N"), 3), params)) == "u8[N, 3] q(0.5:-3)"
    assert str(TensorType(DType.I8, (2, 3), channels)) == "i8[2, 3] q(0.5:0 0.25:1 axis=0)"


def test_another_shape_leaves_the_rest() -> None:
    type = TensorType(DType.I8, (2, 3), QuantParams((0.5,), (0,)))
    changed = type.with_shape((symbol("N"),))
    assert (changed.rank, type.rank) == (1, 2)
    assert (changed.dtype, changed.quant) == (type.dtype, type.quant)
