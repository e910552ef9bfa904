"""Round each weight up or down so that the layer's result changes least on data.

Rounding to nearest is best for each weight, not for their sum. Layers are rounded in order, so that each layer
compensates for the errors of earlier layers in its input; the weights become the dequantized codes. Activations are
rounded too if their quantizers have a range, so that the weights compensate for it: with few bits, find ranges first.

    calibrate-weights, calibrate-activations, adaround      4-bit activations: the input x^ of a layer is on its grid
    calibrate-weights, adaround, calibrate-activations      8-bit ones: the ranges are those of the rounded weights

Two methods:

    gram    the default. Without its activation the squared error of a layer is quadratic in the roundings, with the
            second moments of its inputs as coefficients: `moments`, `quant.rounding_search`. What is left of
            the mean goes into the bias.
    sgd     as the paper has it, with the activation: `sgd`. The reference: some hundred times slower.

Source: Nagel et al. 2020, arXiv:2004.10568, section 3; Nagel et al. 2021, arXiv:2106.08295, section 3.4.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.errors import InputError, PassError
from qcompiler.ir.events import Message, Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.types import Stage
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantizers import grid, leaf_tensor, weight_steps
from qcompiler.passes.adaptive_rounding.activation import Following, activation_after
from qcompiler.passes.adaptive_rounding.moments import Samples, round_layer
from qcompiler.passes.adaptive_rounding.sgd import Descent, descend
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.equalization import parameter_readers
from qcompiler.passes.common.patches import rows_of, weight_of
from qcompiler.passes.common.two_models import LayerInputs, read_batches, run_both
from qcompiler.validation.contracts import THRESHOLDS, Contract

ROUNDED = Sentence(
    "weights-rounded", "its weights are rounded adaptively: {ratio:.3f} of the squared error of rounding to nearest"
)
NOT_QUANTIZED = Sentence("weight-not-quantized", "its weight is not quantized")
SHARED_WEIGHT = Sentence("weight-is-shared", "another layer uses the same weight")

METHODS = ("gram", "sgd")


@dataclass(frozen=True)
class AdaRound(Pass):
    """Adaptive rounding of calibrated weights, of 2 to 8 bits, per tensor, per channel or per block of inputs.

    Refuses: layers that share their weight with others.

    Records, per run, the number of rounded layers and the ratio of the error on data to the error of rounding to
    nearest. Finished layers go into the journal of the compile.

    Args:
        method: `gram` or `sgd`.
        images: Maximum number of calibration images, rounded up to whole batches.
        positions: `gram`: maximum number of input positions per layer: pixels of all images, drawn at random.
        iterations: `sgd`: steps per layer.
        batch_size: `sgd`: images per step.
        learning_rate: `sgd`: learning rate of Adam.
        regularization: `sgd`: weight of the regularizer.

    Raises:
        InputError: An option is out of range.
        PassError: There is no data.
    """

    name: ClassVar[str] = "adaround"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"weight-ranges"})
    # Ranges of activations stay: what each layer gives is nearer to the float result than when they were found.
    method: str = "gram"
    images: int = 1024
    positions: int = 32768
    iterations: int = Descent.iterations
    batch_size: int = Descent.batch_size
    learning_rate: float = Descent.learning_rate
    regularization: float = Descent.regularization

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method={self.method!r}", expected="one of " + ", ".join(METHODS))
        counts = {key: getattr(self, key) for key in ("images", "positions", "iterations", "batch_size")}
        if min(counts.values()) < 1:
            raise InputError(", ".join(f"{key}={value}" for key, value in counts.items()), expected="at least 1 each")
        if not (self.learning_rate > 0 and self.regularization >= 0):
            raise InputError(
                f"learning_rate={self.learning_rate}, regularization={self.regularization}",
                expected="a positive learning rate, and a regularization of at least 0",
            )

    @property
    def contract(self) -> Contract:
        """The noise of the weights decreases."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        if context.calibration_data is None:
            raise PassError(
                "adaptive rounding needs calibration_data", fix="Pass calibration_data, or remove the pass."
            )
        rewriter = context.rewriter(graph)
        readers = parameter_readers(graph)
        given = read_batches(graph, context, self.images)
        key = context.journal.key(graph.module, str(self), str(context.seed), given.digest)
        ratios: list[float] = []

        def layer(node: Node, inputs: LayerInputs) -> None:
            reason = _refusal(node, readers)
            if reason is not None:
                rewriter.refuse(node, reason)
                return
            result = context.journal.piece(key, node.name, lambda: self.round(node, inputs, readers, context.seed))
            weight = leaf_of(node.inputs[1])
            rewriter.write_tensor(weight, result["weight"].to(leaf_tensor(weight).dtype))
            if "shift" in result:
                bias = leaf_of(node.inputs[2])
                tensor = leaf_tensor(bias)
                rewriter.write_tensor(bias, (tensor.to(torch.float64) + result["shift"]).to(tensor.dtype))
            ratios.append(float(result["ratio"]))
            rewriter.note(node, ROUNDED(ratio=ratios[-1]))

        run_both(graph, given, layer, context)
        mean = math.exp(sum(math.log(max(ratio, 1e-12)) for ratio in ratios) / len(ratios)) if ratios else 1.0
        context.record.metrics.update(layers=len(ratios), error_over_nearest=mean)

    def round(self, node: Node, inputs: LayerInputs, readers: Mapping[Value, int], seed: int) -> dict[str, Tensor]:
        """The weight, its error relative to rounding to nearest, and with `gram` the correction of the bias."""
        quantizer = Layer(node).quantizer
        assert quantizer is not None, "layers without one are refused"
        weight = leaf_tensor(leaf_of(node.inputs[1])).to(torch.float32)
        scale, (_, spec) = weight_steps(quantizer, weight), grid(quantizer)
        limits = (spec.qmin, spec.qmax)
        if self.method == "sgd":
            options = Descent(self.iterations, self.batch_size, self.learning_rate, self.regularization)
            codes, ratio = descend(node, inputs, scale, limits, options, _seed(seed, node.name))
            return {"weight": codes * scale, "ratio": torch.tensor(ratio)}
        rows, steps = (rows_of(node, part) for part in (weight, scale.expand(weight.shape)))
        if spec.block is None:
            steps = steps[:, :, :1]  # one for all weights of a row
        has_bias = len(node.inputs) > 2 and readers[leaf_of(node.inputs[2])] == 1
        samples = Samples(node, inputs, self.positions, seed)
        bias = leaf_tensor(leaf_of(node.inputs[2])) if len(node.inputs) > 2 else torch.zeros(rows.shape[:2])
        following = Following(bias.to(torch.float32).reshape(len(rows), 1, -1), activation_after(node), has_bias)
        found = round_layer(samples, rows, steps, limits, following)
        result = {
            "weight": weight_of(node, found.codes * steps),
            "ratio": torch.tensor(found.error, dtype=torch.float64),
        }
        return result | ({"shift": found.shift.reshape(-1)} if has_bias else {})


def _refusal(node: Node, readers: Mapping[Value, int]) -> Message | None:
    if Layer(node).quantizer is None:
        return NOT_QUANTIZED()
    return SHARED_WEIGHT() if readers[leaf_of(node.inputs[1])] > 1 else None


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")
