"""Normalizations of a model's inputs in front of layers: gains and shifts per channel, and the axes that they cross.

x ─► sub(mean) ─► mul(1 / std) ─► permute ─► conv        is        conv(gain * permute(x) + shift)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer
from qcompiler.ops.quantizers import is_leaf, leaf_tensor


@dataclass(frozen=True)
class Step:
    """One node of a normalization: gain * x + shift, float64, each with axes that broadcast to x."""

    node: Node
    gain: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Normalization:
    """The operand of a layer as gain * x + shift per channel of its input.

    Args:
        layer: The layer.
        source: x, which is an input of the model or elements and averages of one.
        path: The nodes from x to the layer, in order.
        steps: Nodes of the path that compute; the others move elements.
        gain: float64 [channels].
        shift: float64 [channels].
    """

    layer: Layer
    source: Value
    path: tuple[Node, ...]
    steps: tuple[Step, ...]
    gain: Tensor
    shift: Tensor

    @property
    def moves(self) -> list[Node]:
        """Nodes between x and the layer that only move elements."""
        computing = {step.node for step in self.steps}
        return [node for node in self.path if node not in computing]

    @property
    def center(self) -> Tensor:
        """The value of x that the normalization maps to 0, float64 [channels]."""
        return torch.where(self.shift == 0.0, 0.0, -self.shift / self.gain)


def normalization_of(node: Node) -> Normalization | None:
    """The normalization in front of a layer; None if `node` is no layer, or reads no normalized input."""
    layer = Layer.of(node)
    path = _path(node.inputs[0]) if layer is not None else []
    if layer is None or not path:
        return None
    steps, rank = [], path[0].inputs[0].type.rank
    gain, shift = torch.ones((1,) * rank, dtype=torch.float64), torch.zeros((1,) * rank, dtype=torch.float64)
    for item in path:
        step = step_of(item)
        if step is not None:
            gain, shift = gain * step.gain, shift * step.gain + step.shift
            steps.append(step)
        else:
            gain, shift = moved(item, gain), moved(item, shift)
    own = [_per_channel(item, layer) for item in (gain, shift)]
    if own[0] is None or own[1] is None or not bool(torch.isfinite(own[1] / own[0]).all()):
        return None
    return Normalization(layer, _operand(path[0]), tuple(path), tuple(steps), own[0], own[1])


def _path(value: Value) -> list[Node]:
    """The nodes from before the first computing one to `value`; empty unless they begin at an input of the model."""
    found: list[Node] = []
    while value.producer is not None:
        node = value.producer
        moves = node.definition.has(Trait.MOVEMENT, Trait.AVERAGE) and len(node.inputs) == 1 and node.op != "pad"
        if step_of(node) is None and not moves:
            return []
        found.append(node)
        value = _operand(node)
    found.reverse()
    first = next((index for index, node in enumerate(found) if step_of(node) is not None), None)
    if first is None or not all(step_of(node) is not None or node.op in _MOVED for node in found[first:]):
        return []
    return found[first:]


def _operand(node: Node) -> Value:
    """The operand of a step, or of a node that moves elements, that is no tensor of the model."""
    return next((value for value in node.inputs if not is_leaf(value)), node.inputs[0])


def step_of(node: Node) -> Step | None:
    """`node` as a gain and a shift; None if it is something else."""
    if node.op in ("add", "sub", "mul") and sum(map(is_leaf, node.inputs)) == 1:
        constant = next(value for value in node.inputs if is_leaf(value))
        if not constant.type.dtype.is_float or constant.type.rank > node.output.type.rank:
            return None
        tensor = leaf_tensor(constant).to(torch.float64)
        tensor = tensor.reshape((1,) * (node.output.type.rank - tensor.dim()) + tensor.shape)
        one, zero = torch.ones_like(tensor), torch.zeros_like(tensor)
        if _operand(node).type.shape != node.output.type.shape:
            return None  # the constant repeats x
        if node.op == "mul":
            return Step(node, tensor, zero)
        if node.op == "add":
            return Step(node, one, tensor)
        return Step(node, one, -tensor) if constant is node.inputs[1] else Step(node, -one, tensor)
    return _depthwise(node)


def _depthwise(node: Node) -> Step | None:
    """A batch norm of the input, which `fold-batch-norm` makes a depthwise convolution of one tap."""
    layer = Layer.of(node)
    if (
        layer is None
        or layer.is_linear
        or layer.transposed
        or layer.pads
        or layer.weight_tensor().numel() != layer.inputs
    ):
        return None
    if layer.groups != layer.inputs or any(step != 1 for step in layer.stride):
        return None
    shape = (1, -1, *(1,) * len(layer.kernel))
    bias = layer.bias_tensor()
    gain = layer.weight_tensor().to(torch.float64).reshape(shape)
    return Step(node, gain, torch.zeros_like(gain) if bias is None else bias.to(torch.float64).reshape(shape))


_MOVED = ("permute", "slice", "gather")
"""Movements that may be between a normalization and its layer."""


def moved(node: Node, tensor: Tensor) -> Tensor:
    """A tensor that broadcasts to the operand of a movement, as one that broadcasts to the result."""
    if node.op == "permute":
        return tensor.permute(node.integers("axes"))
    axis = node.integer("axis")
    if tensor.shape[axis] == 1:
        return tensor
    if node.op == "gather":
        return tensor.index_select(axis, torch.tensor(node.integers("indices")))
    places = torch.arange(node.integer("start"), node.integer("stop"), node.integer("step"))
    return tensor.index_select(axis, places)


def _per_channel(tensor: Tensor, layer: Layer) -> Tensor | None:
    """One number per channel of the layer's input; None if positions have numbers of their own."""
    axis = layer.input_axis
    if tensor.numel() != tensor.shape[axis]:
        return None
    return tensor.reshape(-1).expand(layer.inputs)
