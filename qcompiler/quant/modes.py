"""The modes of integer arithmetic: rounding, averages, requantization. Imports no numerics.

Targets refer to modes, so that reading a target needs neither torch nor NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypeAlias

from qcompiler.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "ALIASES",
    "MAX_EXPONENT",
    "MIN_EXPONENT",
    "AverageRounding",
    "Form",
    "Precision",
    "RequantMode",
    "RequantSpec",
    "Rounding",
    "SoftmaxMode",
]

MIN_EXPONENT = -31
MAX_EXPONENT = 30
"""Range of exponents of 31-bit significands: a multiplier below becomes 0, a multiplier above saturates."""

Precision: TypeAlias = Literal["float64", "float32"]
"""Float type in which a real multiplier is computed."""


class Rounding(StrEnum):
    """Rounding of a real number to an integer; the modes differ only on ties, except the last two."""

    NEAREST_EVEN = "rne"
    """To the nearest, ties to the even neighbour (the IEEE 754 default; ONNX)."""
    HALF_AWAY = "rhaz"
    """To the nearest, ties away from zero (C `round`; TFLite quantize, gemmlowp RoundingDivideByPOT)."""
    HALF_UP = "rhup"
    """To the nearest, ties toward plus infinity: floor(x + 1/2) (add-and-shift hardware)."""
    FLOOR = "floor"
    """Toward minus infinity (a plain arithmetic right shift)."""
    TRUNCATE = "trunc"
    """Toward zero (C integer division)."""


class SoftmaxMode(StrEnum):
    """Arithmetic of a softmax on codes; `quant.softmax` has the formulas."""

    TABLE = "table"
    """A table of exponentials with up to 20 fractional bits, integer sum and division, for any grid of the result."""
    FLOAT32 = "f32"
    """A table, the sum in order and the division in float32: ONNX Runtime's QLinearSoftmax, in 8 bits."""
    GEMMLOWP = "gemmlowp"
    """Fixed-point exponentials, and a reciprocal by Newton steps: TensorFlow Lite's kernel for 8 bits."""
    LUT16 = "lut16"
    """Exponentials and reciprocal interpolated between 513 entries: TensorFlow Lite's kernel for 16 bits."""


class AverageRounding(StrEnum):
    """Rounding of an average of codes to a code.

    Averages are rounded after the zero point is subtracted, in the modes of `Rounding`, except in the last mode. Only
    modes that treat the two sides of zero, or even and odd numbers, differently depend on that.
    """

    NEAREST_EVEN = "rne"
    """To the nearest, ties to the code an even number of steps from the zero point."""
    HALF_AWAY = "rhaz"
    """To the nearest, ties away from the zero point."""
    HALF_UP = "rhup"
    """To the nearest, ties up."""
    FLOOR = "floor"
    """Down."""
    TRUNCATE = "trunc"
    """Toward the zero point."""
    HALF_AWAY_RAW = "rhaz_raw"
    """To the nearest, ties away from code 0: of raw codes, with their zero point (TFLite, CMSIS-NN)."""

    @property
    def rounding(self) -> Rounding:
        """The rounding mode of the quotient."""
        return Rounding(self.value.removesuffix("_raw"))

    @property
    def is_raw(self) -> bool:
        """Whether the rounded quotient is a code rather than a number of steps from the zero point."""
        return self.value.endswith("_raw")


class RequantMode(StrEnum):
    """Integer arithmetic of accumulator times real multiplier; formulas in the docstring of `quant.requant`."""

    SINGLE = "single"
    DOUBLE = "double"
    DOUBLE_HALF_UP = "double_hu"
    TOSA16 = "tosa16"
    S64_16 = "s64_16"
    NVDLA = "nvdla_cvt"
    FLOAT32_RNE = "f32_rne"
    POW2_SHIFT = "pow2_shift"
    POW2_SHIFT_HALF_AWAY = "pow2_shift_rhaz"
    POW2_SHIFT_NEAREST_EVEN = "pow2_shift_rne"
    POW2_SHIFT_FLOOR = "pow2_shift_floor"
    POW2_SHIFT_TRUNCATE = "pow2_shift_trunc"

    @classmethod
    def _missing_(cls, value: object) -> RequantMode | None:
        return ALIASES.get(value) if isinstance(value, str) else None

    @property
    def form(self) -> Form:
        """The form of the multipliers."""
        return _FORMS[self]

    @property
    def is_shift(self) -> bool:
        """Whether all multipliers are powers of two."""
        return self in _SHIFT_ROUNDING

    @property
    def shift_rounding(self) -> Rounding:
        """The rounding of a right shift, in modes with power-of-two multipliers."""
        return _SHIFT_ROUNDING[self]


ALIASES = {"tosa_double": RequantMode.DOUBLE}
"""Other names of a mode."""


@dataclass(frozen=True)
class Form:
    """The representation of multipliers in a mode.

    Args:
        parts: Element types of the tensors of a multiplier: significand and exponent, a float32, or an exponent only.
        significand_bits: P of the formulas in `quant.requant`; 0 without a significand.
        min_exponent: Smallest exponent e.
        max_exponent: Largest exponent e.
    """

    parts: tuple[str, ...]
    significand_bits: int
    min_exponent: int
    max_exponent: int


_WIDE = Form(("i32", "i8"), 31, MIN_EXPONENT, MAX_EXPONENT)
_SHIFT = Form(("i8",), 0, -62, 62)
_FORMS = {
    RequantMode.SINGLE: _WIDE,
    RequantMode.DOUBLE: _WIDE,
    RequantMode.DOUBLE_HALF_UP: _WIDE,
    RequantMode.TOSA16: Form(("i16", "i8"), 15, -47, 13),  # right shift of 15 - e in 2..62
    RequantMode.S64_16: Form(("i16", "i8"), 15, -31, 7),  # as TFLite Micro asserts
    RequantMode.NVDLA: Form(("i16", "i8"), 15, -16, 15),  # right shift of 15 - e in 0..31: 5 bits
    RequantMode.FLOAT32_RNE: Form(("f32",), 0, -125, 128),  # normal numbers
    RequantMode.POW2_SHIFT: _SHIFT,
    RequantMode.POW2_SHIFT_HALF_AWAY: _SHIFT,
    RequantMode.POW2_SHIFT_NEAREST_EVEN: _SHIFT,
    RequantMode.POW2_SHIFT_FLOOR: _SHIFT,
    RequantMode.POW2_SHIFT_TRUNCATE: _SHIFT,
}
_SHIFT_ROUNDING = {
    RequantMode.POW2_SHIFT: Rounding.HALF_UP,
    RequantMode.POW2_SHIFT_HALF_AWAY: Rounding.HALF_AWAY,
    RequantMode.POW2_SHIFT_NEAREST_EVEN: Rounding.NEAREST_EVEN,
    RequantMode.POW2_SHIFT_FLOOR: Rounding.FLOOR,
    RequantMode.POW2_SHIFT_TRUNCATE: Rounding.TRUNCATE,
}


@dataclass(frozen=True)
class RequantSpec:
    """A mode and the width of the multipliers that the hardware holds.

    Args:
        mode: The arithmetic.
        multiplier_bits: Bits of the signed integer M; None for the width of the mode. Narrower multipliers end in
            zeros.
        max_left_shift: Largest exponent e of a multiplier, 0 for none above 1; None for the limit of the mode.
        max_right_shift: Largest -e; None for the limit of the mode.
        precision: Float type in which m is computed before decomposition; `f32_rne` always uses float32.

    Raises:
        InputError: A field exceeds the limits of the mode.
    """

    mode: RequantMode
    multiplier_bits: int | None = None
    max_left_shift: int | None = None
    max_right_shift: int | None = None
    precision: Precision = "float64"

    def __post_init__(self) -> None:
        form, most = self.mode.form, self.mode.form.significand_bits + 1
        if self.multiplier_bits is not None and not (form.significand_bits and 2 <= self.multiplier_bits <= most):
            raise InputError(
                f"the requantization mode '{self.mode}' cannot have multipliers of {self.multiplier_bits} bits",
                expected=f"2..{most} bits" if form.significand_bits else "no integer multiplier",
            )
        for name, shift, limit in (
            ("left", self.max_left_shift, form.max_exponent),
            ("right", self.max_right_shift, -form.min_exponent),
        ):
            if shift is not None and not 0 <= shift <= limit:
                raise InputError(
                    f"the requantization mode '{self.mode}' cannot have a {name} shift of up to {shift} bits",
                    expected=f"0..{limit} bits",
                )

    @classmethod
    def of(cls, item: RequantSpec | RequantMode) -> RequantSpec:
        """A specification from a mode, which alone means the widest multipliers."""
        return cls(item) if isinstance(item, RequantMode) else item

    @property
    def min_exponent(self) -> int:
        """Smallest exponent of a multiplier."""
        return self.mode.form.min_exponent if self.max_right_shift is None else -self.max_right_shift

    @property
    def max_exponent(self) -> int:
        """Largest exponent of a multiplier."""
        return self.mode.form.max_exponent if self.max_left_shift is None else self.max_left_shift

    @property
    def dtype(self) -> torch.dtype:
        """The float type in which a multiplier is computed."""
        import torch  # imported only here, because reading a target must not load torch

        narrow = self.mode is RequantMode.FLOAT32_RNE or self.precision == "float32"
        return torch.float32 if narrow else torch.float64
