"""Types of values (element type, shape, quantization parameters) and the four stages of a graph."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch

from qcompiler.errors import GraphError
from qcompiler.ir.dims import Shape, as_dim, format_dim

TorchType = torch.dtype  # inside DType, the name `torch` is a property


class Stage(StrEnum):
    """Stage of lowering of a graph. Each op declares the stages at which it is legal."""

    FLOAT = "float"
    CANONICAL = "canonical"
    QUANTIZED = "quantized"
    INTEGER = "integer"


class DType(StrEnum):
    """Element types. The 4-bit types are held one per byte in memory and packed only in files."""

    I4 = "i4"
    U4 = "u4"
    I8 = "i8"
    U8 = "u8"
    I16 = "i16"
    U16 = "u16"
    I32 = "i32"
    I64 = "i64"
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"
    BOOL = "bool"

    @property
    def torch(self) -> TorchType:
        """The torch type of the elements."""
        return _TORCH[self]

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy type of the elements.

        Raises:
            GraphError: The type is bf16, which numpy lacks.
        """
        if self is DType.BF16:
            raise GraphError("bf16 has no numpy type")
        return np.dtype(_NUMPY[self])

    @property
    def is_float(self) -> bool:
        """Whether values are floating point."""
        return self in (DType.F16, DType.BF16, DType.F32, DType.F64)

    @property
    def bits(self) -> int:
        """Width of one element in bits."""
        return {"bool": 8, "bf16": 16}.get(self.value) or int(self.value[1:])

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value of an integer type."""
        if self.value[0] == "u":
            return 0, 2**self.bits - 1
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    @classmethod
    def of(cls, dtype: TorchType) -> DType:
        """The element type of a torch dtype.

        Raises:
            GraphError: the torch type has no counterpart in the graph.
        """
        for member, candidate in _TORCH.items():
            if candidate == dtype and member not in (cls.I4, cls.U4):
                return member
        raise GraphError(f"the graph has no element type for {dtype}", expected="one of " + ", ".join(cls))


_TORCH = {
    DType.I4: torch.int8,
    DType.U4: torch.uint8,
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.I16: torch.int16,
    DType.U16: torch.uint16,
    DType.I32: torch.int32,
    DType.I64: torch.int64,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.F32: torch.float32,
    DType.F64: torch.float64,
    DType.BOOL: torch.bool,
}
_NUMPY = {
    DType.I4: "i1",
    DType.U4: "u1",
    DType.I8: "i1",
    DType.U8: "u1",
    DType.I16: "i2",
    DType.U16: "u2",
    DType.I32: "i4",
    DType.I64: "i8",
    DType.F16: "f2",
    DType.F32: "f4",
    DType.F64: "f8",
    DType.BOOL: "?",
}


@dataclass(frozen=True)
class QuantParams:
    """real = scale * (code - zero_point), per tensor or along `axis`.

    Args:
        scale: float32 values, one per tensor or one per channel.
        zero_point: As many integer zero points.
        axis: The channel axis, None for per-tensor.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.zero_point) or (self.axis is None and len(self.scale) != 1):
            raise GraphError(
                f"{len(self.scale)} scales and {len(self.zero_point)} zero points on axis {self.axis}",
                expected="equal numbers of scales and zero points, and one of each without an axis",
            )

    @classmethod
    def of(cls, scale: torch.Tensor, zero_point: torch.Tensor, axis: int | None) -> QuantParams:
        """From float32 and integer tensors of one element, or of one element per channel."""
        scales = scale.detach().reshape(-1).to(torch.float32).tolist()
        points = zero_point.detach().reshape(-1).to(torch.int64).tolist()
        return cls(tuple(scales), tuple(points), axis)

    def scale_tensor(self) -> torch.Tensor:
        """float32, 0-D or [C]."""
        tensor = torch.tensor(self.scale, dtype=torch.float32)
        return tensor[0] if self.axis is None else tensor

    def zero_point_tensor(self) -> torch.Tensor:
        """int32, 0-D or [C]."""
        tensor = torch.tensor(self.zero_point, dtype=torch.int32)
        return tensor[0] if self.axis is None else tensor

    def __str__(self) -> str:
        pairs = " ".join(f"{s!r}:{z}" for s, z in zip(self.scale, self.zero_point, strict=True))
        return f"q({pairs})" if self.axis is None else f"q({pairs} axis={self.axis})"


@dataclass(frozen=True)
class TensorType:
    """The type of a value.

    Args:
        dtype: Element type.
        shape: Logical sizes (NCHW order for images); normalized by `as_dim`.
        quant: Scale and zero point, for integers that represent real numbers.
    """

    dtype: DType
    shape: Shape
    quant: QuantParams | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(as_dim, self.shape)))

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape in numbers.

        Raises:
            GraphError: A size is symbolic.
        """
        return tuple(map(self.size, range(self.rank)))

    def size(self, axis: int) -> int:
        """The number of elements along `axis`.

        Raises:
            GraphError: The size is symbolic.
        """
        size = self.shape[axis]
        if not isinstance(size, int):
            raise GraphError(f"the size of axis {axis} of {self} is {format_dim(size)}", expected="a known size")
        return size

    def with_shape(self, shape: Shape) -> TensorType:
        """The same type with another shape."""
        return dataclasses.replace(self, shape=shape)

    def __str__(self) -> str:
        text = f"{self.dtype}[{', '.join(format_dim(d) for d in self.shape)}]"
        return text if self.quant is None else f"{text} {self.quant}"
