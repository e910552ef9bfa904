"""The quantized gradients of a training module: which layers have them, and how their products are computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantizers import is_quantizer, quantizer_of
from qcompiler.quant.spec import QuantSpec
from qcompiler.training.geometry import Geometry
from qcompiler.training.products import ARITHMETICS, Arithmetic, Job, LayerProducts
from qcompiler.training.range_estimators import RangeEstimator

__all__ = ["Gradients", "check_shared_grids", "layers_with_quantized_gradients", "product_modules"]


@dataclass(frozen=True)
class Gradients:
    """Settings of quantized gradients; widths and rounding are attributes of the nodes of the graph.

    Args:
        estimator: Estimator of their ranges.
        arithmetic: Evaluation of the products; see `training.products`.
        seed: Seed of stochastic rounding.
    """

    estimator: RangeEstimator
    arithmetic: Arithmetic = "float"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arithmetic not in ARITHMETICS:
            raise InputError(f"arithmetic is {self.arithmetic!r}", expected="one of " + ", ".join(ARITHMETICS))


def layers_with_quantized_gradients(graph: Graph) -> dict[Node, Node]:
    """The sums of products with a quantized gradient, and its `quantize_gradient`."""
    found = {}
    for node in graph.nodes:
        maker = node.inputs[0].producer if node.op == "quantize_gradient" else None
        if maker is not None and maker.definition.has(Trait.MAC):
            found[maker] = node
    return found


def product_modules(
    graph: Graph, settings: Gradients, device: torch.device
) -> Iterator[tuple[Node, LayerProducts, bool, bool]]:
    """The modules that replace the sums of products with quantized gradients.

    Args:
        graph: Graph at stage QUANTIZED.
        settings: Settings of gradients.
        device: Device of the state.

    Yields:
        The node, its module, and whether the module reads the grids of its two operands.

    Raises:
        UnsupportedError: Products on codes are asked for, and an operand has none.
    """
    quantizers = layers_with_quantized_gradients(graph)
    for layer, node in enumerate(quantizers):
        quantizer = quantizers[node]
        scaled = len(quantizer.inputs) > 2
        on_codes = settings.arithmetic != "float"
        if on_codes:
            _check_codes(node)
        job = Job(
            Geometry.of(node),
            quantizer.spec,
            settings.estimator,
            quantizer.text("rounding") == "stochastic",
            settings.arithmetic,
            _spec_read(node, 0),
            _spec_read(node, 1),
            settings.seed,
            layer,
            scaled,
        )
        yield node, LayerProducts(job, device), on_codes, on_codes or scaled


def _spec_read(node: Node, operand: int) -> QuantSpec | None:
    if operand == 1 and is_weighted(node):
        weight = Layer(node).quantizer
        return None if weight is None else weight.spec
    source = quantizer_of(node.inputs[operand])
    return None if source is None else source.spec


def _check_codes(node: Node) -> None:
    """Refuse operands that are not codes of one grid."""
    for operand in range(2):
        if _spec_read(node, operand) is None:
            raise UnsupportedError(
                f"operand {operand + 1} of {node.name} is not quantized, so that its products have no codes",
                where=node.where,
                expected="operands with quantizers",
                fix="Use arithmetic='float', or another target.",
            )
        maker = node.inputs[operand].producer
        while maker is not None and not is_quantizer(maker):
            if maker.op == "dropout" and maker.text("mode").startswith("alpha"):
                raise UnsupportedError(
                    f"{node.name} reads an alpha dropout, whose results are on no grid",
                    where=node.where,
                    fix="Use arithmetic='float'.",
                )
            maker = maker.inputs[0].producer if maker.inputs else None


def check_shared_grids(members: list[Node], estimator: RangeEstimator) -> None:
    """Refuse a dynamic range that several independent tensors would have to share.

    Args:
        members: Quantizers with one grid, in the order of the graph.
        estimator: Estimator of the range.

    Raises:
        UnsupportedError: The first tensor would be quantized before the range of all is known.
    """
    if not estimator.dynamic:
        return
    for member in members[1:]:
        if not _follows(member, members[0]):
            raise UnsupportedError(
                f"the estimator {type(estimator).__name__} needs all tensors of a shared grid before it quantizes the "
                f"first, but {members[0].name} is quantized before {member.name} is computed",
                where=member.where,
                expected="an estimator that knows the range before",
                fix="Use estimator='in_hindsight' for activations.",
            )


def _follows(member: Node, first: Node) -> bool:
    """Whether a quantizer reads averages or elements of what `first` quantizes, which lie in its range."""
    node = member.inputs[0].producer
    while node is not None and node.definition.has(Trait.AVERAGE, Trait.SPATIAL, Trait.MOVEMENT):
        if len(node.inputs) > 1 and node.definition.has(Trait.MOVEMENT):
            return False
        node = node.inputs[0].producer
    return node is first
