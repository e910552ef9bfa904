"""Enlarge the scale of a weight until the bias of its layer fits; see `ops.biases`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph
from qcompiler.ir.types import Stage
from qcompiler.ops.biases import fit_bias
from qcompiler.passes.base import Pass, PassContext
from qcompiler.validation.contracts import THRESHOLDS, Contract

SCALE_ENLARGED = Sentence(
    "weight-scale-enlarged", "enlarged its weight scale by up to {factor:.4g} so that its bias fits"
)
SCALES_ENLARGED = Sentence(
    "weight-scales-enlarged", "enlarged {count} of its weight scales by up to {factor:.4g} so that its bias fits"
)
NO_ROOM = Sentence("no-room-for-bias", "its products use the whole accumulator, so no bias fits")


@dataclass(frozen=True)
class FitBiases(Pass):
    """Weight scales with which every bias fits, for layers whose input and weight are calibrated.

    Refuses: a layer whose products alone fill the accumulator; the error of lowering gives the numbers.
    """

    name: ClassVar[str] = "fit-biases"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"weight-ranges", "activation-ranges"})
    establishes: ClassVar[frozenset[str]] = frozenset({"biases-fit"})

    @property
    def contract(self) -> Contract:
        """Weights that are much smaller than their bias lose information."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        target = context.require_target(self.name)
        rewriter = context.rewriter(graph)
        for node in graph.nodes:
            fit = fit_bias(node, graph.module.tensors, target.arithmetic)
            if fit is None:
                continue
            if fit.wider is None:
                rewriter.refuse(node, NO_ROOM())
            elif fit.factor > 1.0:
                rewriter.write_tensor(fit.quantizer.inputs[1], fit.wider)
                count = int((fit.wider > fit.scale).sum())
                sentence = SCALES_ENLARGED if fit.scale.dim() else SCALE_ENLARGED
                rewriter.note(node, sentence(count=count, factor=fit.factor))
