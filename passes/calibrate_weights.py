"""Give each weight quantizer the range of its weight: min-max, per tensor or per channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from qcompiler.ir.graph import Graph
from qcompiler.ir.types import Stage
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import is_leaf, leaf_tensor
from qcompiler.passes.base import Pass, PassContext
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.spec import QuantSpec
from qcompiler.validation.contracts import THRESHOLDS, Contract


@dataclass(frozen=True)
class CalibrateWeights(Pass):
    """Smallest and largest element, per tensor or along the quantizer's axis. Needs no data."""

    name: ClassVar[str] = "calibrate-weights"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"quantizers"})
    establishes: ClassVar[frozenset[str]] = frozenset({"weight-ranges"})

    @property
    def contract(self) -> Contract:
        """Weights lose information."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the class."""
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            if node.op != "fake_quantize" or not is_leaf(node.inputs[0]) or is_calibrated(leaf_tensor(node.inputs[1])):
                continue
            tensor, spec = leaf_tensor(node.inputs[0]), cast("QuantSpec", node.attributes["spec"])
            if spec.axis is None:
                low, high = tensor.min(), tensor.max()
            else:
                rows = tensor.movedim(spec.axis, 0).reshape(tensor.shape[spec.axis], -1)
                low, high = rows.min(1).values, rows.max(1).values
            scale, zero_point = qparams_from_range(low, high, spec)
            rewriter.write_tensor(node.inputs[1], scale)
            rewriter.write_tensor(node.inputs[2], zero_point)
            rewriter.note(node, f"range {float(low.min()):.6g} to {float(high.max()):.6g} of the weight itself")
