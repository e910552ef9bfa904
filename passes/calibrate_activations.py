"""Give each activation quantizer a range: from data, or from what batch norms know.

One run over the calibration batches serves all quantizers; only the statistics are kept, never the activations.
Quantizers that share a scale are calibrated on the union of what they see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from qcompiler.calibration.data_free import DEFAULT_INPUT_RANGE, activation_ranges
from qcompiler.calibration.gaussian import ALPHA
from qcompiler.calibration.histogram import DEFAULT_BINS
from qcompiler.calibration.observers import Observer, make_observer, options_of
from qcompiler.calibration.runner import observe
from qcompiler.errors import PassError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.types import Stage
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.base import Pass, PassContext
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.spec import QuantSpec
from qcompiler.validation.contracts import THRESHOLDS, Contract

Groups = dict[Value, list[Node]]
"""Scale -> the quantizers that share it."""
Range = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class CalibrateActivations(Pass):
    """Ranges of activations from data by a named method, or from batch-norm statistics where there is no data.

    Args:
        method: `min_max`, `moving_average`, `percentile` or `mse`; see `calibration.observers`. A percentile is the
            default because one outlier must not cost the resolution of all other values.
        percentile: Percentage of the values below the upper end, for `percentile`.
        momentum: Weight of the past, for `moving_average`.
        bins: Bins of a histogram, for `percentile`, `mse`, `sqnr` and `entropy`.
        clipping: Weight of what is clipped, for `sqnr`.
        alpha: Standard deviations that a range without data spans to each side of the mean.

    Raises:
        InputError: There is no such method, or an option is out of range.

    Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (range setting; alpha = 6 for batch-norm statistics).
    """

    name: ClassVar[str] = "calibrate-activations"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"quantizers", "weight-ranges", "ties"})
    establishes: ClassVar[frozenset[str]] = frozenset({"activation-ranges"})
    method: str = "percentile"
    percentile: float = 99.99
    momentum: float = 0.9
    bins: int = DEFAULT_BINS
    clipping: float = 3.0
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        # Refused here, also where there turns out to be no data and no observer is needed.
        self._observer(QuantSpec(8), "an activation")

    @property
    def contract(self) -> Contract:
        """Activations lose information."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text.

        Raises:
            CalibrationError: The data is empty or not finite.
            InputError: A batch does not fit the graph.
            PassError: There is no data, and the ranges of a value do not follow from batch norms.
        """
        rewriter = context.rewriter(graph)
        groups: Groups = {}
        for node in graph.nodes:
            if node.op == "fake_quantize" and not is_calibrated(leaf_tensor(node.inputs[1])):
                groups.setdefault(node.inputs[1], []).append(node)
        if context.calibration is None:
            ranges = self._without_data(graph, context, groups)
            source = "batch-norm statistics"
        else:
            observers = {scale: self._observer(_spec(group[0]), group[0].name) for scale, group in groups.items()}
            shown = {quantizer.inputs[0]: observers[scale] for scale, group in groups.items() for quantizer in group}
            count, seen = observe(graph, context.calibration, shown, context.processes, context.progress)
            ranges = {scale: seen[group[0].inputs[0]].range() for scale, group in groups.items()}
            source = f"{count} batches by {self.method}"
        for scale, (low, high) in ranges.items():
            quantizer = groups[scale][0]
            new_scale, zero_point = qparams_from_range(low, high, _spec(quantizer))
            rewriter.write_tensor(scale, new_scale)
            rewriter.write_tensor(quantizer.inputs[2], zero_point)
            for member in groups[scale]:
                rewriter.note(member, f"range {float(low):.6g} to {float(high):.6g} from {source}")

    def _observer(self, spec: QuantSpec, name: str) -> Observer:
        options = {key: value for key, value in self.options().items() if key in options_of(self.method)}
        return make_observer(self.method, spec, name, options=options)

    def _without_data(self, graph: Graph, context: PassContext, groups: Groups) -> dict[Value, Range]:
        known = activation_ranges(graph, context.input_range or DEFAULT_INPUT_RANGE, self.alpha)
        ranges: dict[Value, Range] = {}
        for scale, group in groups.items():
            for quantizer in group:
                if quantizer.inputs[0] not in known:
                    raise PassError(
                        "no batch norm tells the range of this value",
                        where=quantizer.where,
                        fix="Give calibration_data.",
                    )
            low = min(known[quantizer.inputs[0]][0] for quantizer in group)
            high = max(known[quantizer.inputs[0]][1] for quantizer in group)
            ranges[scale] = (torch.tensor(low), torch.tensor(high))
        return ranges


def _spec(quantizer: Node) -> QuantSpec:
    return cast("QuantSpec", quantizer.attributes["spec"])
