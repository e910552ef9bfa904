"""Models for LiteRT, as its worker takes them: see `oracles/litert.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from conformance.environments import ask
from conformance.requantization_cases import Codes

__all__ = ["accumulator_codes"]

Int = npt.NDArray[np.int64]


def accumulator_codes(cases: Codes, resolver: str, *, wide: bool = False) -> Int:
    """Codes that LiteRT makes of accumulators: the biases of a 1x1 convolution whose weights are all 0.

    Args:
        cases: One channel for each accumulator.
        resolver: Which kernels.
        wide: Activations of 16 bits instead of 8, with accumulators of 32 bits.
    """
    count, kind = len(cases.x), "INT16" if wide else "INT8"
    bias_scale = np.float32(cases.input_scale) * cases.weight_scale
    zeros = [0] * count
    model: dict[str, Any] = {
        "tensors": {
            "x": {"type": kind, "shape": [1, 1, 1, 1], "scale": [cases.input_scale], "zero_point": [0]},
            "w": {
                "type": "INT8", "shape": [count, 1, 1, 1], "data": "w",
                "scale": cases.weight_scale.tolist(), "zero_point": zeros,
            },
            "b": {"type": "INT32", "shape": [count], "data": "b", "scale": bias_scale.tolist(), "zero_point": zeros},
            "y": {
                "type": kind, "shape": [1, 1, 1, count],
                "scale": [cases.output_scale], "zero_point": [0 if wide else cases.zero_point],
            },
        },
        "operators": [
            {
                "code": "CONV_2D", "version": 4 if wide else 3, "inputs": ["x", "w", "b"], "outputs": ["y"],
                "options": {"class": "Conv2DOptions", "fields": {
                    "padding": 1, "strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1,
                    **({"quantizedBiasType": 2} if wide else {}),
                }},
            }
        ],
        "inputs": ["x"], "outputs": ["y"], "resolver": resolver, "feeds": {"x": "x"},
    }
    arrays = {
        "x": np.ones((1, 1, 1, 1), np.int16 if wide else np.int8),
        "w": np.zeros((count, 1, 1, 1), np.int8),
        "b": cases.x.astype(np.int32),
    }
    return ask("litert", {"models": [model]}, arrays)["0.0"].reshape(-1).astype(np.int64)
