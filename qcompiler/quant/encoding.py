"""Encodings: grids of named tensors, in the form that quantization tools exchange.

An encoding counts codes from 0, for signed and unsigned storage types alike:

    real = scale * (q - zero_point),   q in 0 .. 2^bits - 1

A signed code c is q - 2^(bits - 1), so a symmetric signed grid has the zero point 2^(bits - 1). Files of the
versions below 2 write `offset = -zero_point`; files of version 2 write the zero point of the stored type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qcompiler.errors import EncodingsError
from qcompiler.quant.affine import SMALLEST_SCALE
from qcompiler.quant.spec import QuantSpec, ScaleKind

__all__ = ["BIAS_BITS", "Encoding", "Encodings"]

BIAS_BITS = 32
"""Width of a bias, which has the scale of the accumulator."""


@dataclass(frozen=True)
class Encoding:
    """The grid of one tensor.

    Args:
        name: Name of the tensor.
        bits: Width of a code.
        scale: One per tensor or per channel, positive.
        zero_point: As many zero points, counted from the lowest code.
        symmetric: Whether the grid was chosen symmetric about zero.
        signed: Whether codes are stored in two's complement, `zero_point` moved accordingly.
        per_channel: Whether there is one scale per index of `axis`.
        axis: The channel axis; None for one scale, or if the file does not state the axis.
        narrow: Whether the lowest code is unused.
        is_parameter: Whether the tensor belongs to the model; None if the file does not state it.
        block: Inputs per block of a weight in blocks; 0 without blocks.
        factors: Whole numbers by which the scales of the channels are multiplied in each block, channel by channel.
    """

    name: str
    bits: int
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    symmetric: bool = False
    signed: bool = False
    per_channel: bool = False
    axis: int | None = None
    narrow: bool = False
    is_parameter: bool | None = None
    block: int = 0
    factors: tuple[int, ...] = ()

    @property
    def half(self) -> int:
        """Difference between codes counted from the lowest code and codes in two's complement."""
        return 1 << (self.bits - 1)

    @property
    def offset(self) -> tuple[int, ...]:
        """The zero points as files below version 2 write them: negated."""
        return tuple(-zero for zero in self.zero_point)

    @property
    def stored_zero_point(self) -> tuple[int, ...]:
        """The zero points of the stored type."""
        return tuple(zero - self.half if self.signed else zero for zero in self.zero_point)

    def same_grid(self, other: Encoding) -> bool:
        """Whether both grids represent the same real numbers."""
        mine, theirs = (
            (item.bits, _float32(item.scale), item.zero_point, item.narrow, item.block, item.factors)
            for item in (self, other)
        )
        return mine == theirs

    def factors_on(self, spec: QuantSpec, shape: tuple[int, int], owner: str) -> Tensor:
        """The factors of the blocks of a weight, uint8 [channels, blocks]; all 1 for an encoding without blocks.

        Args:
            spec: Specification of the quantizer, with blocks.
            shape: Channels and blocks.
            owner: See `on`.

        Raises:
            EncodingsError: The blocks have another size or number, or a factor is too large.
        """
        if not self.block:
            return torch.ones(shape, dtype=torch.uint8)
        if self.block != spec.block:
            raise self.misfit(f"blocks of {self.block} inputs", f"blocks of {spec.block}, as in {owner}")
        if len(self.factors) != shape[0] * shape[1]:
            raise self.misfit(f"factors of {len(self.factors)} blocks", f"{shape[1]} for each of {shape[0]} channels")
        most = (1 << spec.factor_bits) - 1
        if not 1 <= min(self.factors) <= max(self.factors) <= most:
            raise self.misfit(f"factors from {min(self.factors)} to {max(self.factors)}", f"1 to {most}, as in {owner}")
        return torch.tensor(self.factors, dtype=torch.uint8).reshape(shape)

    def on(self, spec: QuantSpec, channels: int | None, owner: str) -> tuple[Tensor, Tensor]:
        """Scale and zero point for a quantizer.

        Args:
            spec: Specification of the quantizer, with the same width.
            channels: Number of channels along the axis of the quantizer; None without an axis.
            owner: Owner of the quantizer's grid, such as the name of a target, for messages.

        Returns:
            scale (float32) and zero point (int32): no dimension, or [channels].

        Raises:
            EncodingsError: `spec` cannot hold the encoding: width, channels, symmetry, scale or zero point differ.
        """
        if self.block and not spec.block:
            raise self.misfit(f"blocks of {self.block} inputs", f"one scale, or one for each channel, as in {owner}")
        if self.bits != spec.bits:
            raise self.misfit(f"{self.bits} bits", f"{spec.bits} bits, the width of {owner} there")
        count = 1 if channels is None else channels
        if self.per_channel and channels is None:
            raise self.misfit(f"{len(self.scale)} scales, one per channel", f"one scale, as in {owner}")
        if len(self.scale) not in {1, count} or (self.per_channel and len(self.scale) != count):
            raise self.misfit(f"{len(self.scale)} scales", f"one scale, or one for each of {count} channels")
        if self.axis is not None and spec.axis is not None and self.axis != spec.axis:
            raise self.misfit(f"scales along axis {self.axis}", f"axis {spec.axis}, the axis of the output channels")
        scale = torch.tensor(_float32(self.scale), dtype=torch.float32)
        if not bool((torch.isfinite(scale) & (scale >= SMALLEST_SCALE)).all()):
            raise self.misfit(f"the scale {_worst(self.scale)}", f"float32 numbers of at least {SMALLEST_SCALE:.3g}")
        if spec.scale_kind is ScaleKind.POW2 and bool((torch.frexp(scale).mantissa != 0.5).any()):
            odd = float(scale[torch.frexp(scale).mantissa != 0.5][0])
            raise self.misfit(f"the scale {odd!r}", f"powers of two, as in {owner}")
        zero = [point - self.half if spec.signed else point for point in self.zero_point]
        low = -self.half if spec.signed else 0
        high = low + 2 * self.half - 1
        outside = [point for point in zero if not low <= point <= high]
        if outside:
            raise self.misfit(f"the zero point {outside[0]}", f"one of the codes of {owner}, {low} to {high}")
        if spec.symmetric and any(zero):
            found = f"the zero point {next(filter(None, zero))} of an asymmetric grid"
            raise self.misfit(found, f"0, because {owner} is symmetric there")
        zero_point = torch.tensor(zero, dtype=torch.int32)
        if channels is None:
            return scale[0], zero_point[0]
        return scale.expand(count).contiguous(), zero_point.expand(count).contiguous()

    def misfit(self, found: str, expected: str, fix: str | None = None) -> EncodingsError:
        """The error for an encoding that the quantizer cannot hold."""
        return EncodingsError(f"the encoding of {self.name!r} has {found}", expected=expected, fix=fix)


@dataclass(frozen=True)
class Encodings:
    """Content of a file of encodings.

    Args:
        tensors: One encoding per tensor, in the order of the file.
        version: Version of the file format.
        excluded: Layers and nodes that stay in float.
        quantizer_args: Default settings with which the encodings were found, for information only.
        producer: Software that wrote the file: `package`, `version`, and for this package the `pipeline`.
        own: Whether these are the quantizers of the model itself, which has been quantized already.
    """

    tensors: tuple[Encoding, ...]
    version: str
    excluded: tuple[str, ...] = ()
    quantizer_args: Mapping[str, object] = field(default_factory=dict)
    producer: Mapping[str, str] = field(default_factory=dict)
    own: bool = False

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for item in self.tensors:
            if item.name in seen:
                raise EncodingsError(f"the tensor {item.name!r} has two encodings", expected="one per tensor")
            seen.add(item.name)

    @property
    def by_name(self) -> dict[str, Encoding]:
        """The encodings by the name of their tensor."""
        return {item.name: item for item in self.tensors}


def _float32(values: tuple[float, ...]) -> tuple[float, ...]:
    numbers: list[float] = torch.tensor(values, dtype=torch.float64).to(torch.float32).tolist()
    return tuple(numbers)


def _worst(scales: tuple[float, ...]) -> float:
    return next(
        (scale for scale, small in zip(scales, _float32(scales), strict=True) if not SMALLEST_SCALE <= small < 1e39),
        scales[0],
    )
