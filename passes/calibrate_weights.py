"""Find the range of each weight quantizer from its weight, per tensor, per channel or per block of inputs.

A constant that shares its grid with activations, as an operand of a concat does, is calibrated with them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.calibration.histogram import DEFAULT_BINS
from qcompiler.calibration.observers import Observer, check_options, check_single_values, make_observer, options_of
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph
from qcompiler.ir.types import Stage
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import is_quantizer, leaf_tensor, quantizes_parameter
from qcompiler.passes.base import Pass, PassContext
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.blocks import block_factors, block_view
from qcompiler.quant.spec import QuantSpec
from qcompiler.validation.contracts import THRESHOLDS, Contract

RANGE = Sentence("weight-range", "range {low:.6g} to {high:.6g} by {method}")


@dataclass(frozen=True)
class CalibrateWeights(Pass):
    """Ranges of weights from their own values, per tensor, along the quantizer's axis, or per block of inputs.

    Args:
        method: `min_max`, `percentile`, `mse`, `sqnr` or `entropy`; see `calibration.observers`. The largest weights
            matter most, so nothing is clipped by default at 8 bits; with fewer bits use `mse`.
        percentile: Percentage of the values below the upper end, for `percentile`.
        bins: Bins of a histogram, for `percentile`, `mse`, `sqnr` and `entropy`.
        clipping: Weight of clipping errors, for `sqnr`.

    Raises:
        InputError: The method is unknown, or an option is out of range.

    Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (range setting).
    """

    name: ClassVar[str] = "calibrate-weights"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"quantizers"})
    establishes: ClassVar[frozenset[str]] = frozenset({"weight-ranges"})
    method: str = "min_max"
    percentile: float = 99.99
    bins: int = DEFAULT_BINS
    clipping: float = 3.0

    def __post_init__(self) -> None:
        check_single_values(self.method)
        options_of(self.method)
        check_options(self.options())

    @property
    def contract(self) -> Contract:
        """Weights lose information."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the class."""
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if not quantizes_parameter(node) or is_calibrated(leaf_tensor(node.inputs[1])):
                continue
            if any(is_quantizer(user) and not quantizes_parameter(user) for user in node.inputs[1].users):
                continue  # a constant on the grid of activations, which is found together with theirs
            tensor, spec = leaf_tensor(node.inputs[0]), node.spec
            if spec.block is not None and spec.axis is not None:
                low, high = self._range(block_view(tensor, spec.axis, spec.block), _of_rows(spec), node.name)
                scale, factors = block_factors(low, high, spec, tensor.shape[spec.axis])
                zero_point = torch.zeros_like(scale, dtype=torch.int32)
                rewriter.write_tensor(node.inputs[3], factors)
            else:
                low, high = self._range(tensor, spec, node.name)
                scale, zero_point = qparams_from_range(low, high, spec)
            rewriter.write_tensor(node.inputs[1], scale)
            rewriter.write_tensor(node.inputs[2], zero_point)
            rewriter.note(node, RANGE(low=float(low.min()), high=float(high.max()), method=self.method))

    def _range(self, tensor: Tensor, spec: QuantSpec, name: str) -> tuple[Tensor, Tensor]:
        observer = self._observer(spec, name)
        observer.update(tensor, index=0)
        return observer.range()

    def _observer(self, spec: QuantSpec, name: str) -> Observer:
        options = {key: value for key, value in self.options().items() if key in options_of(self.method)}
        return make_observer(self.method, spec, name, options=options)


def _of_rows(spec: QuantSpec) -> QuantSpec:
    """The grid of a tensor with one row per block."""
    return dataclasses.replace(spec, axis=0, block=None)
