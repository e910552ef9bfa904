"""Models for LiteRT, as its worker takes them: see `oracles/litert.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from conformance.environments import ask
from conformance.requantization_cases import Codes

__all__ = ["accumulator_codes"]

Int = npt.NDArray[np.int64]
Json = dict[str, Any]

INT32, INT64 = 2, 4
"""Types of a bias, in the schema's numbers."""
_ACCUMULATOR_SHAPES: dict[str, tuple[list[int], int]] = {"CONV_2D": ([1, 1, 1, 1], 4), "FULLY_CONNECTED": ([1, 1], 2)}
_VERSIONS = {"CONV_2D": 4, "FULLY_CONNECTED": 4}
_OPTIONS: dict[str, Json] = {
    "CONV_2D": {
        "class": "Conv2DOptions",
        "fields": {"padding": 1, "strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1},
    },
    "FULLY_CONNECTED": {"class": "FullyConnectedOptions", "fields": {}},
}


def accumulator_codes(cases: Codes, operator: str, resolver: str, *, wide: bool = False, bits: int = 32) -> Int:
    """Codes that LiteRT makes of accumulators: the biases of an operator whose weights are all 0.

    Args:
        cases: One output channel for each accumulator.
        operator: CONV_2D with a 1x1 kernel, or FULLY_CONNECTED.
        resolver: Which kernels.
        wide: Activations of 16 bits instead of 8.
        bits: Width of the accumulators: 32, or 64 with activations of 16 bits.
    """
    count, kind = len(cases.x), "INT16" if wide else "INT8"
    shape, rank = _ACCUMULATOR_SHAPES[operator]
    bias_scale = np.float32(cases.input_scale) * cases.weight_scale
    zeros, weight = [0] * count, [count, *[1] * (rank - 1)]
    fields = {**_OPTIONS[operator]["fields"], "quantizedBiasType": INT32 if bits == 32 else INT64}
    options = {**_OPTIONS[operator], "fields": fields}
    model: Json = {
        "tensors": {
            "x": {"type": kind, "shape": shape, "scale": [cases.input_scale], "zero_point": [0]},
            "w": _constant("w", "INT8", weight, cases.weight_scale.tolist(), zeros),
            "b": _constant("b", f"INT{bits}", [count], bias_scale.tolist(), zeros),
            "y": {
                "type": kind,
                "shape": [*[1] * (rank - 1), count],
                "scale": [cases.output_scale],
                "zero_point": [cases.zero_point],
            },
        },
        "operators": [
            {
                "code": operator,
                "version": _VERSIONS[operator],
                "inputs": ["x", "w", "b"],
                "outputs": ["y"],
                "options": options,
            }
        ],
        "inputs": ["x"],
        "outputs": ["y"],
        "resolver": resolver,
        "feeds": {"x": "x"},
    }
    arrays = {
        "x": np.ones(shape, np.int16 if wide else np.int8),
        "w": np.zeros(weight, np.int8),
        "b": cases.x.astype(np.int32 if bits == 32 else np.int64),
    }
    return ask("litert", {"models": [model]}, arrays)["0.0"].reshape(-1).astype(np.int64)


def _constant(name: str, kind: str, shape: list[int], scale: list[float], zero_point: list[int]) -> Json:
    return {"type": kind, "shape": shape, "scale": scale, "zero_point": zero_point, "data": name}
