"""Give each activation quantizer a range: from data, or from what batch norms know.

One run over the calibration batches serves all quantizers; only the statistics are kept, never the activations.
Quantizers that share a scale are calibrated on the union of what they see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from qcompiler.calibration.data_free import activation_ranges
from qcompiler.errors import CalibrationError, PassError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import interpret
from qcompiler.ir.types import Stage
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.base import Pass, PassContext
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.spec import QuantSpec
from qcompiler.validation.contracts import THRESHOLDS, Contract

DEFAULT_INPUT_RANGE = (-3.0, 3.0)
"""Assumed for float inputs without data: three standard deviations of inputs normalized to mean 0 and deviation 1."""


@dataclass(frozen=True)
class CalibrateActivations(Pass):
    """Min-max ranges of activations.

    Args:
        alpha: Standard deviations that a range without data spans to each side of the mean.

    Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (range setting; alpha = 6 for batch-norm statistics).
    """

    name: ClassVar[str] = "calibrate-activations"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"quantizers", "weight-ranges", "ties"})
    establishes: ClassVar[frozenset[str]] = frozenset({"activation-ranges"})
    alpha: float = 6.0

    @property
    def contract(self) -> Contract:
        """Activations lose information."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text.

        Raises:
            CalibrationError: The data is empty or not finite.
            PassError: There is no data, and the ranges of a value do not follow from batch norms.
        """
        rewriter = context.rewriter(graph)
        groups: dict[Value, list[Node]] = {}
        for node in graph.nodes:
            if node.op == "fake_quantize" and not is_calibrated(leaf_tensor(node.inputs[1])):
                groups.setdefault(node.inputs[1], []).append(node)
        observed = {quantizer.inputs[0] for group in groups.values() for quantizer in group}
        if context.calibration is not None:
            ranges = _from_data(graph, context, observed)
            source = "calibration data"
        else:
            assumed = context.input_range or DEFAULT_INPUT_RANGE
            ranges = activation_ranges(graph, assumed, self.alpha)
            source = "batch-norm statistics"
        for scale, group in groups.items():
            missing = [quantizer for quantizer in group if quantizer.inputs[0] not in ranges]
            if missing:
                raise PassError(
                    "no batch norm tells the range of this value",
                    where=missing[0].where,
                    fix="Give calibration_data.",
                )
            low = min(ranges[quantizer.inputs[0]][0] for quantizer in group)
            high = max(ranges[quantizer.inputs[0]][1] for quantizer in group)
            spec = cast("QuantSpec", group[0].attributes["spec"])
            new_scale, zero_point = qparams_from_range(torch.tensor(low), torch.tensor(high), spec)
            rewriter.write_tensor(scale, new_scale)
            rewriter.write_tensor(group[0].inputs[2], zero_point)
            for quantizer in group:
                rewriter.note(quantizer, f"range {low:.6g} to {high:.6g} from {source}")


def _from_data(graph: Graph, context: PassContext, observed: set[Value]) -> dict[Value, tuple[float, float]]:
    ranges: dict[Value, tuple[float, float]] = {}

    def observe(value: Value, tensor: Tensor) -> None:
        if value not in observed:
            return
        low, high = (float(limit) for limit in torch.aminmax(tensor))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):
            raise CalibrationError(f"%{value.name} is not finite", fix="Check the calibration data for NaN and Inf.")
        before = ranges.get(value, (low, high))
        ranges[value] = (min(low, before[0]), max(high, before[1]))

    count = 0
    for batch in context.calibration or ():
        count += 1
        with torch.no_grad():
            interpret(graph, batch, observe)
    if not count:
        raise CalibrationError("the calibration data is empty", expected="at least one batch")
    return ranges
