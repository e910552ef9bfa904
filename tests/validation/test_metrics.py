"""The ratio of signal and noise, and its two ends."""

from __future__ import annotations

import math

import pytest
import torch

from qcompiler.validation.metrics import sqnr_db


def test_a_tenth_of_the_amplitude_is_twenty_decibels() -> None:
    x = torch.tensor([3.0, -4.0])
    assert sqnr_db(x, x * 1.1) == pytest.approx(20.0, abs=1e-4)
    assert sqnr_db(x, -x) == pytest.approx(-20 * math.log10(2))


def test_equal_tensors_are_infinitely_close_and_zeros_infinitely_far() -> None:
    x = torch.tensor([3.0, -4.0])
    assert sqnr_db(x, x.clone()) == math.inf
    assert sqnr_db(x * 0, x * 0) == math.inf
    assert sqnr_db(x * 0, x) == -math.inf


def test_sums_are_in_float64() -> None:
    x = torch.full((10,), 1e30)
    assert sqnr_db(x, x * 0.9) == pytest.approx(20.0, abs=1e-4)


def test_nan_is_no_agreement() -> None:
    assert math.isnan(sqnr_db(torch.ones(2), torch.tensor([1.0, math.nan])))
