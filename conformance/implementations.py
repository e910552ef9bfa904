"""Both of our implementations of requantization, called alike: torch for the graph, NumPy for the integer program."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from conformance.requantization_cases import Codes, Products
from qcompiler.program import arithmetic
from qcompiler.quant.requant import (
    Requantization,
    RequantMode,
    multiply_by_quantized_multiplier,
    prepare_requantization,
    real_multiplier,
)

__all__ = ["CODES", "PRODUCTS"]

Int = npt.NDArray[np.int64]


def _torch_products(cases: Products, mode: str) -> Int:
    kind = RequantMode(mode)
    x, exponent = torch.from_numpy(cases.x), torch.from_numpy(cases.exponent).to(torch.int8)
    significand = None if kind.is_shift else torch.from_numpy(cases.significand)
    result: Int = multiply_by_quantized_multiplier(x, significand, exponent, kind).numpy()
    return result


def _numpy_products(cases: Products, mode: str) -> Int:
    significand = None if RequantMode(mode).is_shift else cases.significand
    return arithmetic.multiply(cases.x, significand, cases.exponent, mode)


def _prepared(cases: Codes, mode: str) -> Requantization:
    in_scale, out_scale = (torch.tensor(s, dtype=torch.float32) for s in (cases.input_scale, cases.output_scale))
    real = real_multiplier(in_scale, torch.from_numpy(cases.weight_scale), out_scale, RequantMode(mode))
    return prepare_requantization(real, RequantMode(mode))


def _torch_codes(cases: Codes, mode: str, qmin: int, qmax: int) -> Int:
    x = torch.from_numpy(cases.x).reshape(1, -1)
    found = _prepared(cases, mode).apply(x, zero_point=cases.zero_point, qmin=qmin, qmax=qmax, axis=1)
    result: Int = found.reshape(-1).numpy()
    return result


def _numpy_codes(cases: Codes, mode: str, qmin: int, qmax: int) -> Int:
    item = _prepared(cases, mode)
    multiplier, exponent = (None if part is None else part.numpy() for part in (item.multiplier, item.exponent))
    low, high = np.array(qmin), np.array(qmax)
    return arithmetic.requantize(cases.x, multiplier, exponent, mode, cases.zero_point, low, high)


PRODUCTS: dict[str, Callable[[Products, str], Int]] = {"torch": _torch_products, "numpy": _numpy_products}
"""x * M * 2^(e - P), rounded as a mode rounds."""
CODES: dict[str, Callable[[Codes, str, int, int], Int]] = {"torch": _torch_codes, "numpy": _numpy_codes}
"""From accumulators and real scales to codes between two limits."""
