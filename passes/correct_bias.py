"""Subtract from each bias the shift of a layer's mean that quantized weights cause.

    E[W^ x] - E[W x] = (W^ - W) E[x]        per output channel; subtracted from the bias

Rounding and clipping a weight shifts the mean of the layer's result, most in depthwise layers, where an output has few
weights. Three ways to the expectation:

    empirical    data runs through the float and the quantized layers; in order, each layer's quantized mean is
    corrected
                 to the float mean, with all earlier layers already corrected
    analytic     E[x] per input channel is propagated from the batch norms by `calibration.data_free`, without data; the
                 effect of padding at borders is ignored
    center       E[x] is the value that a normalization before the layer mapped to 0 (`fold-normalization`): the weights
                 then have the error that they would have on normalized inputs; all other layers stay as they are

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2; Nagel et al. 2021, arXiv:2106.08295, section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.calibration.data_free import DEFAULT_INPUT_RANGE, Stop, describe
from qcompiler.calibration.statistics import center_of
from qcompiler.errors import InputError, PassError
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantizers import grid, leaf_tensor, weight_codes
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.equalization import parameter_readers
from qcompiler.passes.common.two_models import LayerInputs, read_batches, run_both
from qcompiler.quant.affine import channel_rows, dequantize
from qcompiler.validation.contracts import THRESHOLDS, Contract

CORRECTED = Sentence("bias-corrected", "its weights moved the mean by up to {shift:.4g}")
NO_BIAS = Sentence("no-bias-to-correct", "it has no bias")
SHARED_BIAS = Sentence("bias-is-shared", "another layer uses the same bias")
MEAN_UNKNOWN = Sentence(
    "input-mean-unknown", "the mean of its input is unknown without calibration_data: {why} (at {at})"
)

METHODS = ("auto", "empirical", "analytic", "center")


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Correct the biases of layers whose weights are quantized and calibrated.

    Refuses: layers without their own bias, and with `analytic` layers whose input has no known mean without data.

    Args:
        method: `empirical`, `analytic`, `center`, or `auto`: empirical if there is data.
        images: Maximum number of calibration images, rounded up to whole batches.

    Raises:
        InputError: An option is out of range.
        PassError: `empirical` without data.
    """

    name: ClassVar[str] = "correct-bias"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"weight-ranges"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"activation-ranges"})
    method: str = "auto"
    images: int = 1024

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method={self.method!r}", expected="one of " + ", ".join(METHODS))
        if self.images < 1:
            raise InputError(f"images={self.images}", expected="at least 1")

    @property
    def contract(self) -> Contract:
        """The noise of the weights decreases."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        rewriter = context.rewriter(graph)
        if self.method == "center":
            _at_centers(graph, rewriter)
            return
        empirical = self.method == "empirical" or (self.method == "auto" and context.calibration_data is not None)
        if not empirical:
            _analytic(graph, context.input_range or DEFAULT_INPUT_RANGE, rewriter)
            return
        if context.calibration_data is None:
            raise PassError(
                "an empirical bias correction needs calibration_data",
                fix="Pass calibration_data, or use the analytic correction.",
            )
        _empirical(graph, context, self.images, rewriter)


def _empirical(graph: Graph, context: PassContext, images: int, rewriter: Rewriter) -> None:
    readers = parameter_readers(graph)

    def layer(node: Node, inputs: LayerInputs) -> None:
        """Correct the means of the quantized results to those of the float results."""
        if not _has_own_bias(node, readers, rewriter):
            return

        def sums(index: int) -> list[Tensor]:
            results = inputs.results(index)
            axis = Layer(node).output_axis
            rows = [channel_rows(tensor, axis) for tensor in (results.quantized, results.real)]
            count = torch.tensor(rows[0].shape[1], dtype=torch.float64)
            return [count, *(row.sum(1, dtype=torch.float64) for row in rows)]

        count, quantized, real = inputs.processes.sum(inputs.count, sums)
        _subtract(node, (quantized - real) / count, rewriter)

    run_both(graph, read_batches(graph, context, images), layer, context)


def _analytic(graph: Graph, input_range: tuple[float, float], rewriter: Rewriter) -> None:
    known, readers = describe(graph, input_range), parameter_readers(graph)
    for node in graph.nodes:
        layer = Layer.of(node)
        if layer is None or layer.quantizer is None:
            continue
        if not _has_own_bias(node, readers, rewriter):
            continue
        x = known[node.inputs[0]]
        if isinstance(x, Stop):
            rewriter.refuse(node, MEAN_UNKNOWN(why=x.why, at=str(x.node.where)))
            continue
        mean = x.channels(layer.input_axis, layer.inputs).mean
        _subtract(node, _shift_at(layer, layer.quantizer, mean), rewriter)


def _at_centers(graph: Graph, rewriter: Rewriter) -> None:
    readers = parameter_readers(graph)
    for node in graph.nodes:
        layer = Layer.of(node)
        center = center_of(node)
        if layer is None or layer.quantizer is None or center is None or not _has_own_bias(node, readers, rewriter):
            continue
        _subtract(node, _shift_at(layer, layer.quantizer, center), rewriter)


def _shift_at(layer: Layer, quantizer: Node, x: Tensor) -> Tensor:
    """(W^ - W) x per output channel, for x per input channel."""
    weight = layer.weight_tensor()
    params, _ = grid(quantizer)
    codes = weight_codes(quantizer, weight)
    error = dequantize(codes, params.scale, params.zero_point, params.axis).to(torch.float64) - weight
    parts = layer.rows(error).sum(3)  # [groups, outputs, inputs]
    return (parts * x.reshape(layer.groups, 1, -1)).sum(2).reshape(-1)


def _has_own_bias(node: Node, readers: Mapping[Value, int], rewriter: Rewriter) -> bool:
    if len(node.inputs) < 3:
        rewriter.refuse(node, NO_BIAS())
        return False
    if readers[leaf_of(node.inputs[2])] > 1:
        rewriter.refuse(node, SHARED_BIAS())
        return False
    return True


def _subtract(node: Node, shift: Tensor, rewriter: Rewriter) -> None:
    bias = leaf_of(node.inputs[2])
    tensor = leaf_tensor(bias)
    rewriter.write_tensor(bias, (tensor.to(torch.float64) - shift).to(tensor.dtype))
    rewriter.note(node, CORRECTED(shift=float(shift.abs().max())))
