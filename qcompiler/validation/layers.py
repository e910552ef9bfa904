"""Signal-to-quantization-noise ratio of each quantized tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import interpret
from qcompiler.ir.registry import Trait
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.validation.exact import Codes, Exact, simulate
from qcompiler.validation.metrics import sqnr_db

QUANTIZED_NAME = ".q"
"""Suffix of the name of a value's quantized form."""


@dataclass(frozen=True)
class Compared:
    """A quantized graph compared with its reference on the same inputs.

    Args:
        sqnr: Signal-to-quantization-noise ratio of each tensor, dB; see `compare_layers`.
        outputs: Outputs of the quantized graph, as real numbers.
    """

    sqnr: dict[str, float]
    outputs: list[Tensor]


def layer_sqnr(
    reference: Graph, quantized: Graph, inputs: Sequence[Tensor], arithmetic: Arithmetic
) -> dict[str, float]:
    """Signal-to-quantization-noise ratio of each tensor, dB; see `compare_layers`."""
    return compare_layers(reference, quantized, inputs, arithmetic).sqnr


def compare_layers(
    reference: Graph,
    quantized: Graph,
    inputs: Sequence[Tensor],
    arithmetic: Arithmetic,
    wanted: Sequence[Tensor] | None = None,
) -> Compared:
    """Compare each tensor of a quantized graph with the same tensor of its reference.

        10 log10(sum x^2 / sum (x - x^)^2)        x: float model, x^: exact simulation, both from the same inputs

    Noise accumulates: a tensor contains the noise of all layers before it.

    Args:
        reference: Graph before quantizers were inserted.
        quantized: The calibrated graph.
        inputs: Float tensors, one per graph input.
        arithmetic: Arithmetic of the target.
        wanted: Outputs of the float model; None for those of `reference`, which an earlier pass may have changed.

    Returns:
        Ratios by name in the quantized graph; tensors of the module, and values without a counterpart in the reference,
        are absent. The outputs follow as `output 0`, `output 1`, ... Infinite for equal tensors. Elements that are
        infinite in the float model, such as padding before a max pooling, are ignored: no grid holds them, and one of
        them would make a ratio of infinities.
    """
    exact: dict[str, Tensor] = {}

    def observe(value: Value, item: Exact) -> None:
        if isinstance(item, Codes) and not _is_parameter(value):
            exact[value.name] = item.real()

    found: dict[str, float] = {}

    def compare(value: Value, tensor: Tensor) -> None:
        for name in (value.name + QUANTIZED_NAME, value.name):
            if name in exact and exact[name].shape == tensor.shape:
                found[name] = output_sqnr(tensor, exact.pop(name))

    with torch.no_grad():
        results, _ = simulate(quantized, inputs, quantized.module.tensors, arithmetic, observe=observe)
        expected, _ = interpret(reference, inputs, reference.module.tensors, observe=compare)
    outputs = [item.real() if isinstance(item, Codes) else cast("Tensor", item) for item in results]
    for index, (real, tensor) in enumerate(zip(outputs, wanted or expected, strict=True)):
        if tensor.is_floating_point():
            found[f"output {index}"] = output_sqnr(tensor, real)
    return Compared(found, outputs)


def output_sqnr(expected: Tensor, found: Tensor) -> float:
    """Signal-to-noise ratio in dB over the elements that are finite in the float model."""
    finite = torch.isfinite(expected)
    return sqnr_db(expected, found) if bool(finite.all()) else sqnr_db(expected[finite], found[finite])


def _is_parameter(value: Value) -> bool:
    source = value.producer.inputs[0].producer if value.producer is not None and value.producer.inputs else None
    return source is not None and source.definition.has(Trait.LEAF)
