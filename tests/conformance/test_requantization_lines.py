"""A wrong arithmetic is caught: the lines of requantization with mistakes made on purpose.

The oracles of other environments are stood in for by Python integers, so that no tool is needed here.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conformance import implementations, requantization
from conformance.lines import run
from conformance.requantization import COMPARISONS, CodesComparison, ProductsComparison
from conformance.requantization_cases import Codes, Products, codes, products
from tests.reference.requant import half_even, reference_mbqm, reference_requantize_float32

Int = npt.NDArray[np.int64]
PRODUCTS = [item for item in COMPARISONS if isinstance(item, ProductsComparison)]
CODES = [item for item in COMPARISONS if isinstance(item, CodesComparison)]
EVERY = 29
"""One of so many cases is compared: Python integers are slow."""
ONNXRUNTIME = [item for item in CODES if item.oracle == "onnxruntime"]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requantization, "COUNT", 300)
    monkeypatch.setattr(requantization, "CODES_COUNT", 400)


def named(item: ProductsComparison | CodesComparison) -> str:
    return f"{item.mode}-{item.oracle}"


def by_integers(item: ProductsComparison) -> ProductsComparison:
    """The entry with plain integers in the place of its oracle."""

    def answer(cases: Products) -> Int:
        rows = zip(cases.x.tolist(), cases.significand.tolist(), cases.exponent.tolist(), strict=True)
        return np.array([reference_mbqm(x, m, e, item.mode) for x, m, e in rows], np.int64)

    def accepts(cases: Products) -> npt.NDArray[np.bool_]:
        every: npt.NDArray[np.bool_] = np.arange(len(cases)) % EVERY == 0
        return item.accepts(cases) & every

    widths = (item.significand_bits, item.x_bits, item.exponents)
    return ProductsComparison(item.mode, item.oracle, answer, accepts, (), *widths)


def instead(product: Callable[[Fraction], int]) -> Callable[[Products, str], Int]:
    """An implementation that rounds the exact product in another way."""

    def implementation(cases: Products, mode: str) -> Int:
        bits = {"tosa16": 15, "nvdla_cvt": 15}.get(mode, 0 if mode.startswith("pow2") else 31)
        rows = zip(cases.x.tolist(), cases.significand.tolist(), cases.exponent.tolist(), strict=True)
        return np.array([product(Fraction(x * m) * Fraction(2) ** (e - bits)) for x, m, e in rows], np.int64)

    return implementation


def half_down(x: Fraction) -> int:
    return -((-x + Fraction(1, 2)).__floor__())


def half_up(x: Fraction) -> int:
    return (x + Fraction(1, 2)).__floor__()


def half_away(x: Fraction) -> int:
    return half_up(x) if x >= 0 else half_down(x)


WRONG: dict[str, Callable[[Fraction], int]] = {
    "ties up": half_up,
    "ties away": half_away,
    "ties down": half_down,
    "ties even": half_even,
    "down": lambda x: x.__floor__(),
    "towards zero": lambda x: x.__floor__() if x >= 0 else x.__ceil__(),
}
RIGHT = {
    "single": "ties up",
    "tosa16": "ties up",
    "nvdla_cvt": "ties away",
    "pow2_shift": "ties up",
    "pow2_shift_rhaz": "ties away",
    "pow2_shift_floor": "down",
    "pow2_shift_trunc": "towards zero",
}


@pytest.mark.parametrize("item", PRODUCTS, ids=named)
def test_both_implementations_pass(item: ProductsComparison) -> None:
    tally = by_integers(item).check()
    assert tally.mismatches == 0
    assert tally.compared > 400


@pytest.mark.parametrize("place", ["torch", "numpy"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("item", PRODUCTS, ids=named)
def test_another_rounding_of_the_product_is_caught(
    item: ProductsComparison, wrong: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(implementations.PRODUCTS, place, instead(WRONG[wrong]))
    outcome = run(by_integers(item).line)
    assert outcome.status == ("passed" if RIGHT.get(item.mode) == wrong else "failed")


@pytest.mark.parametrize("mode", ["single", "double", "double_hu"])
@pytest.mark.parametrize("other", ["single", "double", "double_hu"])
def test_one_mode_is_not_another(mode: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    item = next(item for item in PRODUCTS if item.oracle == "tosa")
    original = implementations.PRODUCTS["numpy"]
    monkeypatch.setitem(implementations.PRODUCTS, "numpy", lambda cases, _: original(cases, other))
    line = by_integers(ProductsComparison(mode, "x", item.answer, item.accepts, ())).line
    assert run(line).status == ("passed" if mode == other else "failed")


def rounded(round_product: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], dtype: type[np.floating[Any]]) -> Any:
    """An implementation of codes in floating point."""

    def implementation(cases: Codes, mode: str, qmin: int, qmax: int) -> Int:
        product = cases.x.astype(dtype) * cases.multiplier.astype(np.float32).astype(dtype)
        found: Int = np.clip(round_product(product) + cases.zero_point, qmin, qmax).astype(np.int64)
        return found

    return implementation


CODE_MISTAKES: dict[str, Any] = {
    "ties up": rounded(lambda x: np.floor(x + 0.5), np.float32),
    "ties away": rounded(lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x), np.float32),
    "in float64": rounded(np.rint, np.float64),
    "no zero point": lambda cases, mode, qmin, qmax: rounded(np.rint, np.float32)(
        Codes(cases.x, cases.weight_scale, cases.input_scale, cases.output_scale), mode, qmin, qmax
    ),
    "one code less": lambda cases, mode, qmin, qmax: rounded(np.rint, np.float32)(cases, mode, qmin, qmax - 1),
}


@pytest.mark.parametrize("item", ONNXRUNTIME, ids=named)
def test_onnxruntime_agrees(item: CodesComparison) -> None:
    assert run(item.line).status == "passed"


@pytest.mark.parametrize("mistake", CODE_MISTAKES)
@pytest.mark.parametrize("place", ["torch", "numpy"])
def test_onnxruntime_catches_another_float_arithmetic(
    mistake: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = next(item for item in ONNXRUNTIME if item.mode == "f32_rne")
    monkeypatch.setitem(implementations.CODES, place, CODE_MISTAKES[mistake])
    assert run(item.line).status == "failed"


def test_onnxruntime_is_what_the_reference_says() -> None:
    """The stand-ins of this file and the oracle have one meaning."""
    item = next(item for item in ONNXRUNTIME if item.mode == "f32_rne")
    for cases in codes(-128, 127, x_bits=32, largest=2.0**20, count=60, seed=1):
        scales = [np.float32(s) for s in (cases.input_scale, cases.output_scale)]
        multipliers = (scales[0] * cases.weight_scale / scales[1]).tolist()
        found = item.answer(cases, -128, 127).tolist()
        for x, multiplier, code in zip(cases.x.tolist(), multipliers, found, strict=True):
            assert reference_requantize_float32(x, multiplier, cases.zero_point, -128, 127) == code


def test_the_cases_hold_ties_and_both_ends() -> None:
    for bits, x_bits, low, high in ((31, 32, -31, 30), (15, 48, -47, 13), (0, 32, -31, 0)):
        cases = products(bits, x_bits, low, high, count=200, seed=0)
        assert cases.x.min() == -(1 << (x_bits - 1))
        assert cases.x.max() == (1 << (x_bits - 1)) - 1
        assert (cases.exponent.min(), cases.exponent.max()) == (low, high)
        doubled = [
            2 * Fraction(x * m) * Fraction(2) ** (e - bits)
            for x, m, e in zip(cases.x.tolist(), cases.significand.tolist(), cases.exponent.tolist(), strict=True)
        ]
        ties = [value for value in doubled if value.denominator == 1 and value.numerator % 2]
        assert sum(value > 0 for value in ties) > 50
        assert sum(value < 0 for value in ties) > 50
        if bits:
            assert cases.significand.min() == 1 << (bits - 1)
            assert cases.significand.max() == (1 << bits) - 1


def test_the_codes_hold_ties_of_both_signs() -> None:
    for qmin, qmax in ((-128, 127), (0, 255), (-32768, 32767)):
        (cases, _) = codes(qmin, qmax, x_bits=32, largest=1024.0, count=200, seed=0)
        doubled = 2 * cases.x * cases.multiplier
        ties = doubled[(doubled == np.floor(doubled)) & (doubled % 2 == 1)]
        assert (ties > 0).sum() > 30
        assert (ties < 0).sum() > 30


def test_the_same_seed_gives_the_same_cases() -> None:
    first, second = (products(31, 32, -31, 30, count=50, seed=3) for _ in range(2))
    assert np.array_equal(first.x, second.x)
    assert np.array_equal(first.significand, second.significand)
