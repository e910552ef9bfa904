"""Metrics that compare two tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def sqnr_db(reference: Tensor, approximation: Tensor) -> float:
    """10 log10(sum reference^2 / sum (reference - approximation)^2), in dB.

    Infinite when both are equal, minus infinite when only the reference is zero.
    """
    reference = reference.to(torch.float64)
    noise = float((reference - approximation.to(torch.float64)).square().sum())
    signal = float(reference.square().sum())
    if noise == 0.0:
        return float("inf")
    if signal == 0.0:
        return float("-inf")
    return float(10.0 * torch.log10(torch.tensor(signal / noise, dtype=torch.float64)))
