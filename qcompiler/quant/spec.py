"""The integer grid of a quantizer without its scale: bits, sign, symmetry, granularity, rounding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from qcompiler.errors import InputError, ParseError
from qcompiler.quant.modes import Rounding

__all__ = ["QuantSpec", "ScaleKind"]

_Word = TypeVar("_Word", bound=StrEnum)

_STORAGE_BITS = {True: (4, 8, 16, 32), False: (4, 8, 16)}
"""Widths of the integer types that hold codes, by sign."""

_GRID = re.compile(r"(?P<sign>[su])(?P<bits>\d+)")
_SYNTAX = (
    "text such as 's8 symmetric narrow axis=0 block=32 scale=pow2 rounding=rhaz', where only the first word is required"
)


class ScaleKind(StrEnum):
    """The set of allowed scales."""

    FLOAT = "float"
    """Any positive float32."""
    POW2 = "pow2"
    """Powers of two only, so that rescaling is a shift."""


@dataclass(frozen=True)
class QuantSpec:
    """The integer grid of one quantizer: real = scale * (q - zero_point), q in qmin..qmax.

    Example:
        >>> str(QuantSpec(8, symmetric=True, narrow=True, axis=0))
        's8 symmetric narrow axis=0'
        >>> QuantSpec.parse("u8").qmax
        255

    Args:
        bits: Width of a code: 2..32, unsigned at most 16.
        signed: Whether codes begin at -2^(bits-1) rather than 0.
        symmetric: Whether the zero point is always 0.
        narrow: Whether the lowest code is dropped, so that a signed grid is symmetric about 0.
        axis: Channel axis, with one scale per index; None for one scale per tensor. Negative axes count from the end.
        block: Number of inputs of a channel, along the other of the first two axes, that share an integer factor of the
            channel's scale; None without factors. For signed symmetric grids with the channels on axis 0 or 1.
        scale_kind: The set of allowed scales.
        rounding: Rounding of x / scale.
        factor_bits: Width of the unsigned factors, if there are blocks.

    Raises:
        InputError: The fields do not define a grid.
    """

    bits: int
    signed: bool = True
    symmetric: bool = False
    narrow: bool = False
    axis: int | None = None
    block: int | None = None
    scale_kind: ScaleKind = ScaleKind.FLOAT
    rounding: Rounding = Rounding.NEAREST_EVEN
    factor_bits: int = 4

    def __post_init__(self) -> None:
        highest = _STORAGE_BITS[self.signed][-1]
        if not 2 <= self.bits <= highest:
            kind = "a signed" if self.signed else "an unsigned"
            raise InputError(f"{kind} quantizer of {self.bits} bits", expected=f"2..{highest} bits")
        if self.narrow and not self.signed:
            raise InputError(
                "a narrow unsigned quantizer",
                expected="narrow only with signed codes",
                fix="Set signed=True or narrow=False",
            )
        if self.block is not None and self.axis is None:
            raise InputError(
                f"block={self.block} without an axis",
                expected="an axis that is divided into blocks",
                fix="Set axis as well",
            )
        if self.block is not None and self.block < 1:
            raise InputError(f"block={self.block}", expected="a positive block size")
        if not 1 <= self.factor_bits <= 8:
            raise InputError(f"factor_bits={self.factor_bits}", expected="1..8")
        # Accepting the plain strings keeps files and calls short; but the fields always hold enum members.
        object.__setattr__(self, "scale_kind", _member(ScaleKind, self.scale_kind))
        object.__setattr__(self, "rounding", _member(Rounding, self.rounding))

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return -(1 << (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The highest code."""
        return (1 << (self.bits - int(self.signed))) - 1

    @property
    def dtype(self) -> str:
        """Name of the smallest integer type that holds a code: "i4", "u4", "i8", "u8", "i16", "u16" or "i32"."""
        width = next(width for width in _STORAGE_BITS[self.signed] if width >= self.bits)
        return f"{'i' if self.signed else 'u'}{width}"

    @property
    def per_channel(self) -> bool:
        """Whether there is one scale per index of an axis."""
        return self.axis is not None

    def __str__(self) -> str:
        words = [f"{'s' if self.signed else 'u'}{self.bits}"]
        words += ["symmetric"] * self.symmetric + ["narrow"] * self.narrow
        words += [f"{key}={value}" for key, value in (("axis", self.axis), ("block", self.block)) if value is not None]
        if self.block is not None and self.factor_bits != 4:
            words.append(f"factor={self.factor_bits}")
        if self.scale_kind is not ScaleKind.FLOAT:
            words.append(f"scale={self.scale_kind}")
        if self.rounding is not Rounding.NEAREST_EVEN:
            words.append(f"rounding={self.rounding}")
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> QuantSpec:
        """Parse the text form of `str`.

        Args:
            text: For example "u8" or "s4 symmetric axis=1 block=32".

        Returns:
            The specification.

        Raises:
            ParseError: The text does not follow the syntax or does not define a grid.
        """
        words = text.split()
        grid = _GRID.fullmatch(words[0]) if words else None
        if grid is None:
            raise ParseError(f"'{text}' is not a quantizer", expected=_SYNTAX)
        flags: set[str] = set()
        settings: dict[str, str] = {}
        for word in words[1:]:
            key, separator, value = word.partition("=")
            known = (
                key in ("axis", "block", "factor", "scale", "rounding") if separator else key in ("symmetric", "narrow")
            )
            if not known or key in flags or key in settings:
                raise ParseError(f"unknown or repeated word '{word}'", where=f"quantizer '{text}'", expected=_SYNTAX)
            if separator:
                settings[key] = value
            else:
                flags.add(key)
        try:
            return cls(
                bits=int(grid["bits"]),
                signed=grid["sign"] == "s",
                symmetric="symmetric" in flags,
                narrow="narrow" in flags,
                axis=int(settings["axis"]) if "axis" in settings else None,
                block=int(settings["block"]) if "block" in settings else None,
                factor_bits=int(settings.get("factor", 4)),
                scale_kind=_member(ScaleKind, settings.get("scale", ScaleKind.FLOAT)),
                rounding=_member(Rounding, settings.get("rounding", Rounding.NEAREST_EVEN)),
            )
        except (InputError, ValueError) as error:
            raise ParseError(f"'{text}' is not a quantizer: {error}", expected=_SYNTAX) from error


def _member(kind: type[_Word], value: str) -> _Word:
    """The enum member with a value; the error for an unknown value lists all members."""
    try:
        return kind(value)
    except ValueError:
        words = ", ".join(f"'{member}'" for member in kind)
        raise InputError(f"{kind.__name__} '{value}'", expected=f"one of {words}") from None
