"""Quantized and float operands of the backward pass of quantized training, layer by layer.

print(backward_table(module))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import is_weighted
from qcompiler.ops.quantizers import is_quantizer, quantizer_of
from qcompiler.training.module import QATModule
from qcompiler.training.products import Job

__all__ = ["BackwardRow", "BackwardTable", "backward_table"]

_HEAD = ("layer", "operator", "forward reads", "gradient of the input", "gradient of the weight")
_FLOAT, _NONE = "float", "-"


@dataclass(frozen=True)
class BackwardRow:
    """One operator.

    Args:
        layer: Name of the node.
        op: Operator of the node.
        forward: Operands of its forward.
        input_gradient: Operands of the gradient of its input; `float`; `-` where nothing needs it.
        weight_gradient: Operands of the gradient of its weight; `float`; `-` without a weight.
    """

    layer: str
    op: str
    forward: str
    input_gradient: str
    weight_gradient: str

    @property
    def is_quantized(self) -> bool:
        """Whether every product of the backward reads quantized operands."""
        return _FLOAT not in (self.input_gradient, self.weight_gradient)


class BackwardTable(tuple[BackwardRow, ...]):
    """The rows in the order of the graph; `str` gives a Markdown table."""

    __slots__ = ()

    def __str__(self) -> str:
        cells = [_HEAD, *((r.layer, r.op, r.forward, r.input_gradient, r.weight_gradient) for r in self)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(_HEAD))]
        texts = [
            "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
            for row in cells
        ]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        return "\n".join([texts[0], rule, *texts[1:]])


def backward_table(module: QATModule) -> BackwardTable:
    """The table of a module.

    Quantizers pass gradients straight through where they do not clip, and have no row. The loss is outside of the
    module, in float.

    Args:
        module: Module of `prepare_quantized_training`.
    """
    jobs = {name: item.job for name, item in module.products().items()}
    norms = {item.layer: item.normalized.norm for item in module.weights.values() if item.normalized is not None}
    weights = {name: str(module.quantizer(name).spec) for name in module.weights}
    rows = []
    for node in module.shipped_graph.nodes:
        if _has_no_row(node):
            continue
        rows.append(_product(node, jobs.get(node.name), weights) if node.definition.has(Trait.MAC) else _other(node))
        if node.name in norms:
            rows.append(BackwardRow(norms[node.name], "batch_norm", _FLOAT, _FLOAT, _FLOAT))
    return BackwardTable(rows)


def _has_no_row(node: Node) -> bool:
    is_shape = node.definition.has(Trait.VIEW)
    return (
        is_shape or node.definition.has(Trait.LEAF, Trait.QUANTIZER, Trait.BIAS_QUANTIZER) or node.op == "scale_product"
    )


def _product(node: Node, job: Job | None, weights: Mapping[str, str]) -> BackwardRow:
    x = _grid(node.inputs[0])
    # The shipped weight may have scales per channel that come from a batch norm.
    w = weights.get(node.name, _FLOAT) if is_weighted(node) else _grid(node.inputs[1])
    forward = f"{x} * {w}"
    has_input_gradient = not _reads_the_input(node.inputs[0])
    if job is None:
        return BackwardRow(node.name, node.op, forward, _FLOAT if has_input_gradient else _NONE, _FLOAT)
    rounding = "stochastic" if job.stochastic else "nearest"
    g = f"{job.spec} {rounding}"
    for_input = f"scaled by channel, {g} * codes" if job.scaled else f"{g} * {w}"
    return BackwardRow(node.name, node.op, forward, for_input if has_input_gradient else _NONE, f"{x} * {g}")


def _other(node: Node) -> BackwardRow:
    operands = ", ".join(_grid(value) for value in node.inputs if not _is_leaf(value))
    parameter = _FLOAT if node.definition.has(Trait.PARAMETRIC) else _NONE
    return BackwardRow(node.name, node.op, operands or _FLOAT, _FLOAT, parameter)


def _grid(value: Value) -> str:
    source = quantizer_of(value)
    return _FLOAT if source is None else str(source.spec)


def _is_leaf(value: Value) -> bool:
    return value.producer is not None and value.producer.definition.has(Trait.LEAF)


def _reads_the_input(value: Value) -> bool:
    """Whether a value holds elements of an input of the model, which needs no gradient."""
    maker = value.producer
    while maker is not None and (is_quantizer(maker) or maker.definition.has(Trait.MOVEMENT)):
        maker = maker.inputs[0].producer
    return maker is None
