"""Compute at compile time the results that depend only on constants.

    add(constant a, constant b)  ->  constant a + b
    softmax(x + computed mask)   ->  softmax(x, mask), see `common.softmax_masks`
    layer_norm(x) times computed ->  layer_norm(x), see `common.root_mean_squares`

Parameters count as constants: this compiler deploys a trained model. Quantizers, scales and their operands stay,
because their values are found later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.errors import InputError
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph
from qcompiler.ir.interpret import Evaluation
from qcompiler.ir.types import Stage
from qcompiler.ops.quantizers import is_leaf, leaf_tensor
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.root_mean_squares import fold_into_norm
from qcompiler.passes.common.softmax_masks import separate_mask
from qcompiler.validation.contracts import THRESHOLDS, Contract

COMPUTED = Sentence("constant-computed", "computed at compile time from {leaves}")
TOO_LARGE = Sentence("constant-too-large", "its {elements} elements exceed the limit of {limit}")


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace each node whose operands are all leaves by a constant.

    Refuses: results of more than `max_elements` elements that are larger than their operands, such as broadcasts, which
    would enlarge the file.

    Args:
        max_elements: Largest number of elements of a result that is larger than its operands, at least 0.

    Raises:
        InputError: `max_elements` is negative.
    """

    name: ClassVar[str] = "fold-constants"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.CANONICAL})
    max_elements: int = 65536

    def __post_init__(self) -> None:
        if self.max_elements < 0:
            raise InputError(f"max_elements={self.max_elements}", expected="at least 0")

    @property
    def contract(self) -> Contract:
        """A tolerance: views become contiguous, and product kernels sum in an order that depends on strides."""
        return THRESHOLDS["fold-constants"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the class."""
        rewriter = context.rewriter(graph)
        evaluate = Evaluation(graph.module.tensors)
        for node in graph.nodes:
            if node.op == "softmax":
                separate_mask(node, rewriter)
                continue
            if fold_into_norm(node, rewriter):
                continue
            if not node.inputs or len(node.outputs) != 1 or not all(map(is_leaf, node.inputs)):
                continue
            leaves = [value.producer for value in node.inputs if value.producer is not None]
            tensors = [leaf_tensor(leaf.output) for leaf in leaves]
            tensor = evaluate(node, tensors)[0].detach()
            largest = max(item.numel() for item in tensors)
            if tensor.numel() > max(largest, self.max_elements):
                rewriter.refuse(node, TOO_LARGE(elements=tensor.numel(), limit=self.max_elements))
                continue
            constant = rewriter.leaf("constant", tensor.contiguous(), ref=node.name, before=node, like=node)
            rewriter.note(node, COMPUTED(leaves=tuple(leaf.name for leaf in leaves)))
            rewriter.replace(node, constant)
            for leaf in dict.fromkeys(leaves):
                if not leaf.output.users and not graph.is_output(leaf.output):
                    rewriter.erase(leaf)
