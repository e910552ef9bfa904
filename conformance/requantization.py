"""Requantization against independent oracles: one entry of a table for each mode and oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from conformance.environments import ask
from conformance.implementations import CODES, PRODUCTS
from conformance.lines import Line, Tally
from conformance.litert_models import accumulator_codes
from conformance.onnx_models import accumulator_codes as onnx_accumulator_codes
from conformance.requantization_cases import Codes, Products, codes, products

__all__ = ["COMPARISONS", "CodesComparison", "ProductsComparison", "lines"]

Int = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
COUNT, CODES_COUNT, SEED = 20_000, 5_000, 0


@dataclass(frozen=True)
class ProductsComparison:
    """Rounded products, compared over their whole width.

    Args:
        mode: Requantization mode of ours.
        oracle: Name in the line.
        answer: The oracle.
        accepts: Domain of the oracle; only cases inside it are compared.
        needs: See `Line`.
        significand_bits: P.
        x_bits: Width of the accumulators.
        exponents: Smallest and largest e.
    """

    mode: str
    oracle: str
    answer: Callable[[Products], Int]
    accepts: Callable[[Products], Mask]
    needs: tuple[str, ...]
    significand_bits: int = 31
    x_bits: int = 32
    exponents: tuple[int, int] = (-31, 30)

    @property
    def line(self) -> Line:
        """As the runner takes it."""
        return Line(f"requantize/{self.mode}/{self.oracle}", self.check, self.needs)

    def check(self) -> Tally:
        """Compare both implementations with the oracle."""
        widths = (self.significand_bits, self.x_bits, *self.exponents)
        cases = products(*widths, count=COUNT, seed=SEED)
        cases = cases.where(self.accepts(cases))
        expected, tally = self.answer(cases), Tally()
        for name, implementation in PRODUCTS.items():
            tally.compare(name, implementation(cases, self.mode), expected, cases.describe)
        return tally


@dataclass(frozen=True)
class CodesComparison:
    """From accumulators and real scales to codes, with zero point and clamp: for oracles that show no more.

    Args:
        mode: Requantization mode of ours.
        oracle: Name in the line.
        answer: The oracle, for limits qmin and qmax.
        needs: See `Line`.
        accepts: Domain of the oracle; only cases inside it are compared.
        grids: Limits of the codes.
        x_bits: Width of the accumulators.
        largest: Multipliers stay below.
        exact: See `Line`.
    """

    mode: str
    oracle: str
    answer: Callable[[Codes, int, int], Int]
    accepts: Callable[[Codes], Mask]
    needs: tuple[str, ...] = ()
    grids: tuple[tuple[int, int], ...] = ((-128, 127),)
    x_bits: int = 32
    largest: float = 2.0**20
    exact: bool = True

    @property
    def line(self) -> Line:
        """As the runner takes it."""
        return Line(f"requantize/{self.mode}/{self.oracle}", self.check, self.needs, self.exact)

    def check(self) -> Tally:
        """Compare both implementations with the oracle."""
        tally = Tally()
        for qmin, qmax in self.grids:
            drawn = {"x_bits": self.x_bits, "count": CODES_COUNT, "seed": SEED}
            for cases in codes(qmin, qmax, largest=self.largest, **drawn):
                cases = cases.where(self.accepts(cases))
                if not len(cases.x):
                    continue
                expected = self.answer(cases, qmin, qmax)
                for name, implementation in CODES.items():
                    tally.compare(name, implementation(cases, self.mode, qmin, qmax), expected, cases.describe)
        return tally


def _in_int32(cases: Products, bits: int) -> Mask:
    """Whether the rounded product fits 32 bits, with room for one more."""
    product = np.abs(cases.x.astype(np.float64)) * cases.significand * 2.0 ** (cases.exponent - bits)
    return product < 2.0**31 - 2


def _tosa_rescale(rounding: str) -> Callable[[Products], Int]:
    def answer(cases: Products) -> Int:
        count, wide = len(cases), rounding != "SCALE16"
        kind = "INT32" if wide else "INT48"
        request = {
            "operator": "RESCALE",
            "attribute": {
                "name": "RescaleAttribute",
                "arguments": [wide, rounding if wide else "SINGLE_ROUND", True, False, False],
            },
            "inputs": [
                {"type": kind, "shape": [1, count], "data": "x"},
                {"type": "INT32" if wide else "INT16", "shape": [count], "data": "multiplier"},
                {"type": "INT8", "shape": [count], "data": "shift"},
                {"type": kind, "shape": [1], "data": "zero"},
                {"type": "INT32", "shape": [1], "data": "zero"},
            ],
            "output": {"type": "INT32", "shape": [1, count]},
        }
        shift = (31 if wide else 15) - cases.exponent
        arrays = {"x": cases.x, "multiplier": cases.significand, "shift": shift, "zero": np.zeros(1, np.int64)}
        return ask("tosa", request, arrays)["0"].reshape(-1).astype(np.int64)

    return answer


def _tosa_accepts(cases: Products) -> Mask:
    """Shifts of 2..62, |x| below 2^(shift - 1), a result of 32 bits."""
    shift = 31 - cases.exponent
    bound = np.left_shift(np.int64(1), shift - 1)
    mask: Mask = (shift >= 2) & (shift <= 62) & (cases.x >= -bound) & (cases.x < bound)
    return mask & _in_int32(cases, 31)


def _tosa16_accepts(cases: Products) -> Mask:
    return _in_int32(cases, 15)


def _tosa_shift(round_up: bool) -> Callable[[Products], Int]:
    def answer(cases: Products) -> Int:
        request = {
            "operator": "ARITHMETIC_RIGHT_SHIFT",
            "attribute": {"name": "ArithmeticRightShiftAttribute", "arguments": [round_up]},
            "inputs": [{"type": "INT32", "shape": [len(cases)], "data": name} for name in ("x", "shift")],
            "output": {"type": "INT32", "shape": [len(cases)]},
        }
        return ask("tosa", request, {"x": cases.x, "shift": -cases.exponent})["0"].astype(np.int64)

    return answer


def _divides(cases: Products) -> Mask:
    """2^r of 32 bits."""
    mask: Mask = cases.exponent > -31
    return mask


def _tosa_division(cases: Products) -> Int:
    request = {
        "operator": "INTDIV",
        "attribute": {"name": "IntDivAttribute", "arguments": []},
        "inputs": [{"type": "INT32", "shape": [len(cases)], "data": name} for name in ("x", "divisor")],
        "output": {"type": "INT32", "shape": [len(cases)]},
    }
    return ask("tosa", request, {"x": cases.x, "divisor": 1 << -cases.exponent})["0"].astype(np.int64)


def _vela(function: str, **columns: Int) -> Int:
    return ask("vela", {"function": function, "arguments": list(columns)}, columns)["0"]


def _vela_double(cases: Products) -> Int:
    return _vela("multiply_by_quantized_multiplier", x=cases.x, m=cases.significand, shift=31 - cases.exponent)


def _vela_accepts(cases: Products) -> Mask:
    """x << e of 32 bits, and not the one product that gemmlowp saturates."""
    left = np.maximum(cases.exponent, 0)
    limit = np.left_shift(np.int64(1), 31 - left)
    mask: Mask = (cases.x >= -limit) & (cases.x < limit)
    return mask


def _vela_shift(cases: Products) -> Int:
    """NVDLA's convertor after its multiplier, where the product has 32 bits; and a shift alone."""
    return _vela("rounding_divide_by_pot", x=cases.x * cases.significand, shift=15 - cases.exponent)


def _vela_plain_shift(cases: Products) -> Int:
    return _vela("rounding_divide_by_pot", x=cases.x, shift=-cases.exponent)


def _nvdla_accepts(cases: Products) -> Mask:
    return np.abs(cases.x.astype(np.float64)) * cases.significand < 2.0**31


def _any(cases: Products | Codes) -> Mask:
    return np.ones(len(cases.x), np.bool_)


def _shifts_within_int32(cases: Codes) -> Mask:
    """Accumulators that keep 32 bits when they are shifted left."""
    left = np.maximum(np.frexp(cases.multiplier)[1], 0)
    mask: Mask = np.abs(cases.x) < np.left_shift(np.int64(1), 31 - left)
    return mask


def _rounds_within_int32(cases: Codes) -> Mask:
    """Products of 32 bits: beyond, conversions to integers do as the processor likes."""
    mask: Mask = np.abs(cases.x * cases.multiplier) < 2.0**31 - 2.0**7
    return mask


def _powers_of_two(cases: Codes) -> Mask:
    """Multipliers that a shift can be, of accumulators that float32 holds."""
    mask: Mask = (np.frexp(cases.multiplier)[0] == 0.5) & (np.abs(cases.x) <= 1 << 24)
    return mask


def _wide_accumulators(cases: Codes) -> Mask:
    """Accumulators of 48 bits, as TFLite asserts, whose products have 32."""
    mask: Mask = (np.abs(cases.x) < 1 << 47) & _rounds_within_int32(cases)
    return mask


def _litert(operator: str, resolver: str, bits: int = 32) -> Callable[[Codes, int, int], Int]:
    return lambda cases, qmin, qmax: accumulator_codes(cases, operator, resolver, wide=qmax > 127, bits=bits)


_INT8_INT16 = ((-128, 127), (-32768, 32767))
_OPTIMIZED = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
_SHIFTS: dict[str, Any] = {"significand_bits": 0, "exponents": (-31, 0)}
_NARROW: dict[str, Any] = {"significand_bits": 15, "x_bits": 48}

COMPARISONS: tuple[ProductsComparison | CodesComparison, ...] = (
    ProductsComparison("single", "tosa", _tosa_rescale("SINGLE_ROUND"), _tosa_accepts, ("tosa",)),
    ProductsComparison("double", "tosa", _tosa_rescale("DOUBLE_ROUND"), _tosa_accepts, ("tosa",)),
    ProductsComparison("double", "vela", _vela_double, _vela_accepts, ("vela",)),
    CodesComparison("f32_rne", "onnxruntime", onnx_accumulator_codes, _any, (), ((-128, 127), (0, 255))),
    CodesComparison(
        "double", "litert_conv", _litert("CONV_2D", "BUILTIN_REF"), _shifts_within_int32, ("litert",), _INT8_INT16
    ),
    # Rounded once as `single` is, but half away from zero: the two differ at negative ties.
    CodesComparison(
        "single",
        "litert_linear",
        _litert("FULLY_CONNECTED", "BUILTIN_REF"),
        _any,
        ("litert",),
        _INT8_INT16,
        exact=False,
    ),
    CodesComparison("double_hu", "litert_conv_x86", _litert("CONV_2D", _OPTIMIZED), _shifts_within_int32, ("litert",)),
    CodesComparison(
        "double_hu", "litert_linear_x86", _litert("FULLY_CONNECTED", _OPTIMIZED), _shifts_within_int32, ("litert",)
    ),
    CodesComparison(
        "f32_rne", "xnnpack_conv", _litert("CONV_2D", "AUTO"), _rounds_within_int32, ("litert",), largest=256.0
    ),
    CodesComparison(
        "f32_rne",
        "xnnpack_linear",
        _litert("FULLY_CONNECTED", "AUTO"),
        _rounds_within_int32,
        ("litert",),
        largest=256.0,
    ),
    ProductsComparison(
        "tosa16", "tosa", _tosa_rescale("SCALE16"), _tosa16_accepts, ("tosa",), exponents=(-47, 13), **_NARROW
    ),
    ProductsComparison(
        "nvdla_cvt", "vela", _vela_shift, _nvdla_accepts, ("vela",), significand_bits=15, exponents=(-16, 15)
    ),
    CodesComparison(
        "s64_16",
        "litert_conv",
        _litert("CONV_2D", "BUILTIN_REF", 64),
        _wide_accumulators,
        ("litert",),
        ((-32768, 32767),),
        48,
        largest=128.0,
    ),
    CodesComparison(
        "pow2_shift_rne", "onnxruntime", onnx_accumulator_codes, _powers_of_two, (), ((-128, 127), (0, 255))
    ),
    ProductsComparison("pow2_shift", "tosa", _tosa_shift(True), _any, ("tosa",), **_SHIFTS),
    ProductsComparison("pow2_shift_floor", "tosa", _tosa_shift(False), _any, ("tosa",), **_SHIFTS),
    ProductsComparison("pow2_shift_trunc", "tosa", _tosa_division, _divides, ("tosa",), **_SHIFTS),
    ProductsComparison("pow2_shift_rhaz", "vela", _vela_plain_shift, _any, ("vela",), **_SHIFTS),
)
"""Every mode with every oracle that has it."""


def lines() -> list[Line]:
    """One line for each entry."""
    return [item.line for item in COMPARISONS]
