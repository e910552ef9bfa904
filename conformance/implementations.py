"""Both of our implementations of requantization, called alike: torch for the graph, NumPy for the integer program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from conformance.requantization_cases import Codes, Products
from qcompiler.backends.integer import arithmetic
from qcompiler.quant.requant import (
    RequantMode,
    multiply_by_quantized_multiplier,
    prepare_requantization,
    real_multiplier,
    requantize,
)

__all__ = ["CODES", "PRODUCTS", "is_known"]

Int = npt.NDArray[np.int64]


def is_known(mode: str) -> bool:
    """Whether this version has the mode."""
    return mode in {str(item) for item in RequantMode}


def _torch_products(cases: Products, mode: str) -> Int:
    x, significand, exponent = (torch.from_numpy(a) for a in (cases.x, cases.significand, cases.exponent))
    found = multiply_by_quantized_multiplier(x, significand, exponent.to(torch.int8), RequantMode(mode))
    result: Int = found.numpy()
    return result


def _numpy_products(cases: Products, mode: str) -> Int:
    return arithmetic.multiply(cases.x, cases.significand, cases.exponent, mode)


def _prepared(cases: Codes, mode: str) -> Any:
    in_scale, out_scale = (torch.tensor(s, dtype=torch.float32) for s in (cases.input_scale, cases.output_scale))
    real = real_multiplier(in_scale, torch.from_numpy(cases.weight_scale), out_scale, RequantMode(mode))
    return prepare_requantization(real, RequantMode(mode))


def _torch_codes(cases: Codes, mode: str, qmin: int, qmax: int) -> Int:
    item = _prepared(cases, mode)
    limits = {"zero_point": cases.zero_point, "qmin": qmin, "qmax": qmax}
    x = torch.from_numpy(cases.x).reshape(1, -1)
    found = requantize(x, item.multiplier, item.exponent, item.mode, axis=1, **limits)
    result: Int = found.reshape(-1).numpy()
    return result


def _numpy_codes(cases: Codes, mode: str, qmin: int, qmax: int) -> Int:
    item = _prepared(cases, mode)
    exponent = None if item.exponent is None else item.exponent.numpy()
    low, high = np.array(qmin), np.array(qmax)
    return arithmetic.requantize(cases.x, item.multiplier.numpy(), exponent, mode, cases.zero_point, low, high)


PRODUCTS: dict[str, Callable[[Products, str], Int]] = {"torch": _torch_products, "numpy": _numpy_products}
"""x * M * 2^(e - P), rounded as a mode rounds."""
CODES: dict[str, Callable[[Codes, str, int, int], Int]] = {"torch": _torch_codes, "numpy": _numpy_codes}
"""From accumulators and real scales to codes between two limits."""
