"""The parts of concats that the grid of the whole cannot represent.

    boxes 0..640, scores 0..1  ──► concat, one grid of 256 codes: a step of 2.5, and all scores are 0

For each operand x of a concat, from the float model,

    10 log10(sum x^2 / sum (x - x^)^2)        x^: x on the grid of the concat

is compared with the same for a grid of the same width whose range is that of x. A constant that is added to a border,
such as a class token before patches, is a part, too:

    patches ──► pad ──► add(token)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import evaluate_node, interpret
from qcompiler.ir.registry import Trait
from qcompiler.ops.borders import border
from qcompiler.ops.movement import joins
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import grid, is_leaf, is_quantizer, leaf_tensor, quantizer_of
from qcompiler.quant.affine import AffineParams, fake_quantize, qparams_from_range
from qcompiler.quant.spec import QuantSpec
from qcompiler.validation.layers import QUANTIZED_NAME
from qcompiler.validation.metrics import sqnr_db

__all__ = ["Part", "leads_out", "weak_parts"]

LEAST_DB = 10.0
"""Signal-to-noise ratio of a part, dB, below which it is weak."""
GAIN_DB = 10.0
"""Ratio in dB that a grid of its own has to give a weak part in addition; otherwise the join is not the cause."""
FELT_DB = 30.0
"""Signal-to-noise ratio of the outputs with only the weak part quantized, dB, above which no output depends on it."""

Index: TypeAlias = Tensor | tuple[slice, ...]
"""Elements of a tensor: a mask of its shape, or slices of its first axes."""


@dataclass(frozen=True, eq=False)
class Part:
    """A part that the grid of the whole cannot represent.

    Args:
        join: The concat, or the addition, in the float graph.
        name: Name of the operand.
        elements: Index of the part in the result: a mask, or slices of the first axes.
        quantizer: Quantizer of the grid of the whole.
        sqnr: Signal-to-noise ratio of the part on this grid, dB.
        own: The same on a grid of its own, dB.
        reach: Range of the whole.
        power: Mean square of the part.
    """

    join: Node
    name: str
    elements: Index
    quantizer: Node
    sqnr: float
    own: float
    reach: tuple[float, float]
    power: float


def weak_parts(reference: Graph, graph: Graph, inputs: Sequence[Tensor]) -> list[Part]:
    """The weak parts that an output depends on.

    Args:
        reference: Graph before quantizers were inserted.
        graph: At stage QUANTIZED, calibrated.
        inputs: Float tensors, one per graph input.
    """
    after = {node.name: node for node in graph.nodes}
    joins = [node for node in reference.nodes if _is_concat(node) or _border_of(node) is not None]
    if not joins:
        return []
    wanted = {value for node in joins for value in (*node.inputs, node.output)}
    wanted.update(pad.inputs[0] for node in joins if (pad := _border_of(node)) is not None)
    reals: dict[Value, Tensor] = {}

    def observe(value: Value, tensor: Tensor) -> None:
        if value in wanted:
            reals[value] = tensor

    with torch.no_grad():
        outputs, _ = interpret(reference, list(inputs), reference.module.tensors, observe=observe)
        found = [part for node in joins for part in _parts(node, after, reals)]
        return [part for part in found if leads_out(part.join) or _is_felt(part, reference, inputs, outputs)]


def leads_out(node: Node) -> bool:
    """Whether an output of the model has the numbers of `node`, through operators that only move elements."""
    if any(map(node.graph.is_output, node.outputs)):
        return True
    users = [user for value in node.outputs for user in value.users]
    return any(user.definition.has(Trait.MOVEMENT) and leads_out(user) for user in users)


def _is_concat(node: Node) -> bool:
    return joins(node) and not node.definition.has(Trait.ELEMENTWISE)


def _border_of(node: Node) -> Node | None:
    """The border of zeros to which an addition adds a constant; None for other nodes."""
    if node.op != "add" or sum(map(is_leaf, node.inputs)) != 1:
        return None
    pad = next(value for value in node.inputs if not is_leaf(value)).producer
    return pad if pad is not None and pad.op == "pad" and border(pad) == 0.0 else None


def _parts(node: Node, after: Mapping[str, Node], reals: Mapping[Value, Tensor]) -> Iterator[Part]:
    """The weak parts of one node."""
    whole = reals[node.output]
    if not whole.is_floating_point() or not whole.numel() or not bool(whole.isfinite().all()):
        return
    reach = float(whole.min()), float(whole.max())
    for name, elements, quantizer in _regions(node, after, reals):
        x = whole[elements].to(torch.float32)
        if not is_quantizer(quantizer) or not is_calibrated(leaf_tensor(quantizer.inputs[1])) or not bool(x.any()):
            continue
        params, spec = grid(quantizer)
        shared, own = sqnr_db(x, _on(x, params, spec)), _own_ratio(x, spec)
        if shared < LEAST_DB and own > shared + GAIN_DB:
            yield Part(node, name, elements, quantizer, shared, own, reach, float(x.double().square().mean()))


def _regions(
    node: Node, after: Mapping[str, Node], reals: Mapping[Value, Tensor]
) -> Iterator[tuple[str, Index, Node | None]]:
    """Name and elements of each part, and the quantizer of its grid."""
    whole, pad = reals[node.output], _border_of(node)
    if pad is not None:
        (inside,) = evaluate_node(pad, [torch.ones_like(reals[pad.inputs[0]])])
        constant = next(value for value in node.inputs if is_leaf(value))
        yield constant.name, (inside == 0.0).expand_as(whole), after.get(node.name + QUANTIZED_NAME)
        return
    quantized = after.get(node.name)
    if quantized is None or len(quantized.inputs) != len(node.inputs):
        return  # in a float island
    axis, begin = node.integer("axis"), 0
    for value, read in zip(node.inputs, quantized.inputs, strict=True):
        size = reals[value].shape[axis]
        # Slices: a mask of the whole for each part would take a time that grows with the square of the parts.
        yield value.name, (*[slice(None)] * axis, slice(begin, begin + size)), quantizer_of(read)
        begin += size


def _on(x: Tensor, params: AffineParams, spec: QuantSpec) -> Tensor:
    return fake_quantize(x, params.scale, params.zero_point, spec)


def _own_ratio(x: Tensor, spec: QuantSpec) -> float:
    """The ratio on a grid whose range is that of x."""
    low = 0.0 if spec.symmetric and not spec.signed else min(float(x.min()), 0.0)
    scale, zero_point = qparams_from_range(low, max(float(x.max()), 0.0), spec)
    return sqnr_db(x, fake_quantize(x, scale, zero_point, spec))


def _is_felt(part: Part, reference: Graph, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether an output loses if only this part is quantized."""
    params, spec = grid(part.quantizer)

    def replace(value: Value, tensor: Tensor) -> Tensor:
        if value is not part.join.output:
            return tensor
        changed = tensor.clone()
        changed[part.elements] = _on(tensor[part.elements], params, spec)
        return changed

    found, _ = interpret(reference, list(inputs), reference.module.tensors, replace=replace)
    pairs = [(a, b) for a, b in zip(outputs, found, strict=True) if a.is_floating_point()]
    return any(sqnr_db(a, b) < FELT_DB for a, b in pairs if bool(a.isfinite().all() and b.isfinite().all()))
