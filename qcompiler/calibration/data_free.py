"""Ranges and means without data, propagated from batch norms through the graph.

A value is described by the moments of its elements and by the interval in which they are expected; see `distribution`.

    layer with a batch norm        N(beta, gamma^2) per channel; after a layer norm N(bias, weight^2)
    other layer                    sums of independent products with the weights, away from padding
    clamps                         exact, by closed forms
    functions, gates x * f(x)      by quadrature; every function of the table of functions, with its own float64 form
    sums, products                 of independent numbers, as for a gate of squeeze-and-excitation: it follows from the
                                   means of all channels, of which one element is a small part
    averages                       see `Distribution.averaged`
    movements                      elements keep their distribution; if the new place of an element is unknown, each
                                   element is one of all elements, drawn at random
    float islands                  their own nodes, one by one

Other operators give a `Stop`, which names the operator and the reason.

Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (batch normalization based range setting).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.calibration import gaussian
from qcompiler.calibration.distribution import Distribution, Interval
from qcompiler.calibration.gaussian import ALPHA, Function, Gaussian
from qcompiler.calibration.statistics import statistics_of
from qcompiler.errors import InputError
from qcompiler.ir.dims import Dim, evaluate_dim, symbols_of
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import interpret_with
from qcompiler.ir.registry import Trait
from qcompiler.ir.tree import bytes_of
from qcompiler.ops.borders import border
from qcompiler.ops.custom import function_name, is_custom
from qcompiler.ops.exact import computes_exactly
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.mac import pad_amounts
from qcompiler.ops.quantizers import (
    activation_bounds,
    channel_bounds,
    is_leaf,
    leaf_tensor,
    quantizers_reading,
    quantizes_parameter,
)
from qcompiler.ops.unary import SCALED, UNARY, unary_of

__all__ = ["DEFAULT_INPUT_RANGE", "RULES", "Stop", "describe"]

DEFAULT_INPUT_RANGE = (-3.0, 3.0)
_BYTES = (0.0, 255.0)
"""Assumed range of float inputs: three standard deviations of inputs with mean 0 and standard deviation 1."""

INPUTS, BATCH_NORMS, LAYER_NORMS = "the assumed input range", "batch-norm statistics", "layer-norm parameters"


@dataclass(frozen=True)
class Stop:
    """The node after which no distribution is known.

    Args:
        node: The node.
        why: Reason that names the operator, a sentence without a full stop.
    """

    node: Node
    why: str


_OF_LEAVES = ("scale_product", "fake_quantize_bias")
"""Ops that read only tensors of the module."""

Known: TypeAlias = Distribution | Stop
_Item: TypeAlias = Distribution | Stop | None
"""A distribution, a stop, or None for a tensor of the module, which is described at its reader."""
_Rule: TypeAlias = "Callable[[_Carrier, Node, Sequence[Distribution]], Distribution | str]"


def describe(graph: Graph, input_range: tuple[float, float], alpha: float = ALPHA) -> dict[Value, Known]:
    """The distribution of every float value, without data.

    Args:
        graph: A CANONICAL or QUANTIZED graph with folded batch norms.
        input_range: Range of every float input, except those that the caller gives as bytes.
        alpha: Half width of intervals in standard deviations.

    Returns:
        By value, its distribution or the node that stopped the propagation. A tensor of the module has an entry if a
        quantizer reads it.

    Raises:
        InputError: `alpha` is negative or not finite.
    """
    if not (alpha >= 0.0 and math.isfinite(alpha)):
        raise InputError(f"alpha={alpha}", expected="a finite number of standard deviations, at least 0")
    carrier = _Carrier(graph, alpha)
    pixels = bytes_of(graph.input_tree)
    inputs: list[_Item] = []
    for index, value in enumerate(graph.inputs):
        low, high = _BYTES if index in pixels else input_range
        middle, half = torch.tensor((low + high) / 2, dtype=torch.float64), torch.tensor((high - low) / 2)
        one = [1] * value.type.rank
        # Three standard deviations of normal numbers span the range.
        moments = Gaussian(middle.reshape(one), (half / 3.0).reshape(one))
        ends = Interval(torch.full(one, low, dtype=torch.float64), torch.full(one, high, dtype=torch.float64))
        inputs.append(Distribution.of(moments, alpha, frozenset({INPUTS}), reach=ends, limits=ends))
    known: dict[Value, Known] = {}

    def observe(value: Value, item: _Item) -> None:
        if item is None and any(user.inputs[0] is value for user in quantizers_reading(value)):
            item = Distribution.constant(leaf_tensor(value), alpha)
        if item is not None:
            known[value] = item

    interpret_with(graph, inputs, carrier.rule, observe)
    return known


class _Carrier:
    """Propagates distributions through the nodes of a graph and of its float islands.

    Args:
        graph: The graph, which gives the bounds of symbolic sizes.
        alpha: Half width of intervals in standard deviations.
    """

    def __init__(self, graph: Graph, alpha: float) -> None:
        self.graph = graph
        self.alpha = alpha

    def rule(self, node: Node, operands: Sequence[_Item]) -> tuple[_Item, ...]:
        """Distributions of the results of a node."""
        if node.definition.has(Trait.LEAF) or node.op in _OF_LEAVES or quantizes_parameter(node):
            return (None,)
        if computes_exactly(node) and not is_custom(node):
            return (None,) * len(node.outputs)
        if node.callee is not None:
            inputs = [self._item(value, item) for value, item in zip(node.inputs, operands, strict=True)]
            return tuple(interpret_with(node.callee, inputs, self.rule))
        read = [self._item(node.inputs[i], operands[i]) for i in self._reads(node)]
        stopped = next((item for item in read if isinstance(item, Stop)), None)
        if stopped is not None and not self._is_normalized(node):
            return (stopped,) * len(node.outputs)
        found = self._found(node, [item for item in read if isinstance(item, Distribution)])
        return (Stop(node, found) if isinstance(found, str) else found,) * len(node.outputs)

    def sizes(self, value: Value) -> tuple[int, ...]:
        """The shape of a value with the smallest value of each symbol."""
        return tuple(self._size(dim) for dim in value.type.shape)

    def normal(self, moments: Gaussian, basis: frozenset[str]) -> Distribution:
        """An independent normal distribution."""
        return Distribution.of(moments, self.alpha, basis)

    def _size(self, dim: Dim) -> int:
        return evaluate_dim(dim, {s.name: self.graph.bounds.get(s.name, (1, 1))[0] for s in symbols_of(dim)})

    def _item(self, value: Value, item: _Item) -> Known:
        if item is not None:
            return item
        leaf = leaf_of(value)
        if is_leaf(leaf) and leaf.type.dtype.is_float:
            return Distribution.constant(leaf_tensor(leaf), self.alpha)
        assert value.producer is not None, "every input of a graph has a distribution"
        return Stop(value.producer, f"%{value.name} is {value.type.dtype}, which has no distribution")

    def _reads(self, node: Node) -> range:
        """Positions of the operands that are not parameters."""
        alone = (Trait.PARAMETRIC, Trait.WEIGHTED, Trait.NORMALIZATION, Trait.QUANTIZER, Trait.GUIDED)
        return range(1 if node.definition.has(*alone) or node.op == "softmax" else len(node.inputs))

    def _is_normalized(self, node: Node) -> bool:
        """Whether the distribution of the result does not depend on the operand."""
        return node.definition.has(Trait.NORMALIZATION) or statistics_of(node) is not None

    def _found(self, node: Node, operands: Sequence[Distribution]) -> Distribution | str:
        strange = next((value for value in node.outputs if not value.type.dtype.is_float), None)
        if strange is not None:
            return f"{node.op} returns {strange.type.dtype}, which has no distribution"
        if is_custom(node):
            return f"the function {function_name(node)} has no rule for means and deviations"
        rule = RULES.get(node.op)
        if rule is not None:
            return rule(self, node, operands)
        if node.op in UNARY:
            return _function(node, operands[0], UNARY[node.op].table(node), uniform=True)
        if node.definition.has(Trait.ACTIVATION):
            return operands[0].clamp(*activation_bounds(node))
        if Layer.of(node) is not None:
            return _layer(self, Layer(node), operands)
        if node.definition.has(Trait.MAC):
            return f"{node.op} has a computed weight"
        if node.definition.has(Trait.ELEMENTWISE):
            return _pair(node, operands)
        if node.definition.has(Trait.MOVEMENT):
            return _anywhere(self, node, operands)
        return f"{node.op} has no rule for means and deviations"


def _pair(node: Node, operands: Sequence[Distribution]) -> Distribution | str:
    """A function of two numbers without a closed form."""
    x, y = (_aligned(item, node.output.type.rank) for item in operands)

    def function(a: Tensor, b: Tensor) -> Tensor:
        return node.definition.evaluate(node, [a, b])[0]

    found = x.together(y, function) if x.shares(y) else x.apart(y, function)
    return found or f"{node.op} has no finite mean or range"


def _function(node: Node, x: Distribution, function: Function, *, uniform: bool) -> Distribution | str:
    found = x.apply(function, uniform=uniform)
    low, high = x.range
    name = node.text("function") if node.op == SCALED else node.op
    return found or f"{name} has no finite mean or range for inputs around {low:.4g} to {high:.4g}"


def _along(tensor: Tensor, rank: int, axis: int) -> Tensor:
    """Reshape [C] to `rank` axes with C along one of them; float64."""
    shape = [1] * rank
    shape[axis] = -1
    return tensor.detach().to("cpu", torch.float64).reshape(shape)


def _on_axis(moments: Gaussian, rank: int, axis: int) -> Gaussian:
    return Gaussian(_along(moments.mean, rank, axis), _along(moments.std, rank, axis))


def _layer(carrier: _Carrier, layer: Layer, operands: Sequence[Distribution]) -> Distribution:
    rank, axis = layer.node.output.type.rank, layer.output_axis
    statistics = statistics_of(layer.node)
    if statistics is not None:
        return carrier.normal(_on_axis(statistics, rank, axis), frozenset({BATCH_NORMS}))
    x = operands[0].channels(layer.input_axis, layer.inputs)
    bias, basis = layer.bias_tensor(), operands[0].basis
    rows = layer.rows().to("cpu", torch.float64)  # [groups, outputs, inputs, taps]
    phases = [
        gaussian.linear(
            x, (rows[..., taps] if taps else 0.0 * rows[..., :1]).flatten(0, 1), bias, layer.groups, independent=False
        )
        for taps in _phases(layer)
    ]
    parts = [carrier.normal(_on_axis(part, rank, axis), basis) for part in phases]
    stacked = Gaussian(*(torch.stack([getattr(part, name) for part in phases]) for name in ("mean", "std")))
    mixed = gaussian.mixture(stacked, [0])
    ends = Interval(
        torch.stack([part.reach.low for part in parts]).amin(0),
        torch.stack([part.reach.high for part in parts]).amax(0),
    )
    moments = _on_axis(Gaussian(mixed.mean[0], mixed.std[0]), rank, axis)
    return Distribution.of(moments, carrier.alpha, basis, reach=ends)


def _phases(layer: Layer) -> list[list[int]]:
    """Number of taps summed at one position: all taps, or the taps of one output phase of a transposed convolution."""
    taps = list(range(math.prod(layer.kernel)))
    if not layer.transposed:
        return [taps]
    found: dict[tuple[int, ...], list[int]] = {}
    for tap in taps:
        rest, places = tap, []
        for size, stride, dilation in zip(
            *(reversed(s) for s in (layer.kernel, layer.stride, layer.dilation)), strict=True
        ):
            places.append((rest % size) * dilation % stride)
            rest //= size
        found.setdefault(tuple(places), []).append(tap)
    # Strides larger than the kernel leave positions without any tap.
    empty = len(found) < math.prod(layer.stride)
    return [*found.values(), *([[]] if empty else [])]


def _matmul(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution | str:
    a, b = operands
    if min(a.moments.mean.dim(), b.moments.mean.dim()) < 2:
        return "matmul of a vector has no rule for means and deviations"
    terms = carrier.sizes(node.inputs[0])[-1]
    (ma, va), (mb, vb) = ((x.moments.mean, x.moments.std.square()) for x in (a, b))
    ma, va = (t.expand(*t.shape[:-1], terms) for t in (ma, va))
    mb, vb = (t.expand(*t.shape[:-2], terms, t.shape[-1]) for t in (mb, vb))
    variance = va @ (vb + mb.square()) + ma.square() @ vb
    factor = node.number("factor")
    return carrier.normal(Gaussian(ma @ mb * factor, variance.sqrt() * factor), a.basis | b.basis)


def _same(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    return operands[0]


def _is_constant(x: Distribution) -> bool:
    return bool((x.moments.std == 0.0).all()) and torch.equal(x.reach.low, x.reach.high)


def _aligned(x: Distribution, rank: int) -> Distribution:
    missing = rank - x.moments.mean.dim()
    return x.moved(lambda tensor: tensor.reshape(*[1] * missing, *tensor.shape)) if missing else x


def _sum(carrier: _Carrier, node: Node, operands: Sequence[Distribution], *, sign: float) -> Distribution | str:
    x, y = (_aligned(item, node.output.type.rank) for item in operands)
    if x.shares(y):
        return x.together(y, lambda a, b: a + sign * b) or f"{node.op} has no finite mean"
    one = torch.ones((), dtype=torch.float64)
    if _is_constant(y):
        return x.affine(one, sign * y.moments.mean)
    if _is_constant(x):
        return y.affine(sign * one, x.moments.mean)
    return x.plus(y if sign > 0.0 else y.affine(-one, 0.0 * one))


def _product(
    carrier: _Carrier, node: Node, operands: Sequence[Distribution], *, divides: bool = False
) -> Distribution | str:
    x, y = (_aligned(item, node.output.type.rank) for item in operands)
    zero = torch.zeros((), dtype=torch.float64)
    if x.shares(y):
        function = torch.div if divides else torch.mul
        return x.together(y, function) or f"{node.op} has no finite mean or range"
    if divides:
        low, high = y.range
        inverse = y.apply(UNARY["reciprocal"].numpy, uniform=True)
        if inverse is None:
            return f"div has no finite mean or range for divisors around {low:.4g} to {high:.4g}"
        y = inverse
    if _is_constant(y):
        return x.affine(y.moments.mean, zero)
    return y.affine(x.moments.mean, zero) if _is_constant(x) else x.times(y)


def _channel_clamp(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    axis, rank = node.integer("axis"), node.output.type.rank
    return operands[0].clamp(*(_along(end, rank, axis) for end in channel_bounds(node)))


def _slopes(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution | str:
    slopes = _along(
        leaf_tensor(leaf_of(node.inputs[1])), node.output.type.rank + 1, 1 if node.output.type.rank > 1 else 0
    )
    values = slopes.numpy()
    return _function(node, operands[0], lambda x: np.where(x > 0.0, x, values * x), uniform=values.size == 1)


def _scaled(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution | str:
    rank = node.output.type.rank + 1
    scales = _along(leaf_tensor(leaf_of(node.inputs[1])), rank, node.integer("axis")).numpy()
    plain = unary_of(node).table(node)
    return _function(node, operands[0], lambda x: plain(x * scales) / scales, uniform=False)


def _layer_norm(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    """Each element is N(bias, weight^2)."""
    rank = node.output.type.rank
    weight, bias = (leaf_tensor(leaf_of(value)).to("cpu", torch.float64) for value in node.inputs[1:])
    shape = [1] * (rank - bias.dim()) + list(bias.shape)
    return carrier.normal(Gaussian(bias.reshape(shape), weight.abs().reshape(shape)), frozenset({LAYER_NORMS}))


def _softmax(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    """Numbers from 0 to 1 whose mean is one part of a row."""
    part = 1.0 / carrier.sizes(node.inputs[0])[node.integer("axis")]
    one = torch.full([1] * node.output.type.rank, part, dtype=torch.float64)
    ends = Interval(torch.zeros_like(one), torch.ones_like(one))
    return Distribution.of(Gaussian(one, one), carrier.alpha, frozenset(), reach=ends, limits=ends)


def _log_softmax(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    """x less one number per row, for n normal numbers: mean + min(var / 2, 3 std) + log n; at most 0."""
    axis = node.integer("axis")
    row = operands[0].mixed((axis,)).moments
    count = carrier.sizes(node.inputs[0])[axis]
    level = row.mean + torch.minimum(row.std.square() / 2.0, 3.0 * row.std) + math.log(count)
    return operands[0].affine(torch.ones_like(level), -level).clamp(-math.inf, 0.0)


def _batch_norm(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    """Each channel is N(bias, weight^2): a batch norm in a float island."""
    weight, bias = (leaf_tensor(leaf_of(value)) for value in node.inputs[1:3])
    moments = _on_axis(Gaussian(bias, weight.abs()), node.output.type.rank, 1)
    return carrier.normal(moments, frozenset({BATCH_NORMS}))


def _mean(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    axes, x, sizes = node.integers("axes"), operands[0], carrier.sizes(node.inputs[0])
    own = x.moments.mean.shape
    varying = [axis for axis in axes if own[axis] > 1]
    if varying:
        count = math.prod(own[axis] for axis in varying)
        independent = x.moments.std.square().sum(varying, keepdim=True).sqrt() / count
        std = gaussian.entangled(independent, x.moments.std.mean(varying, keepdim=True))
        moments = Gaussian(x.moments.mean.mean(varying, keepdim=True), std)
        mixed = x.mixed(varying)
        x = Distribution.of(moments, x.alpha, x.basis, limits=mixed.limits)
    x = x.averaged(math.prod(sizes[axis] for axis in axes if axis not in varying))
    if node.flag("keepdim"):
        return x
    kept = [axis for axis in range(len(sizes)) if axis not in axes]
    return x.moved(lambda tensor: tensor.squeeze(tuple(axes)) if kept else tensor.reshape(()))


def _adaptive_pool(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    sizes = zip(carrier.sizes(node.inputs[0])[2:], node.integers("output_size"), strict=True)
    return operands[0].mixed((2, 3)).averaged(max(1, math.prod(size // out for size, out in sizes)))


def _pool(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    """An average over windows of an image."""
    taps = math.prod(node.integers("kernel"))
    x = operands[0].mixed((2, 3)).averaged(taps)
    if node.given("divisor_override"):
        x = x.affine(torch.tensor(taps / node.integer("divisor_override"), dtype=torch.float64), torch.zeros(()))
    return x.with_value(0.0) if any(node.integers("padding")) and node.flag("count_include_pad") else x


def _neighbours(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    """The largest of neighbours, or a number between them; neighbours are taken as alike."""
    return operands[0].mixed((2, 3))


def _concat(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    axis = node.integer("axis")
    sizes = [carrier.sizes(value)[axis] for value in node.inputs]
    shapes = [item.moments.mean.shape for item in operands]
    common = list(torch.broadcast_shapes(*([*shape[:axis], 1, *shape[axis + 1 :]] for shape in shapes)))
    parts = [
        item.spread([*common[:axis], size, *common[axis + 1 :]]) for item, size in zip(operands, sizes, strict=True)
    ]
    moments = Gaussian(*(torch.cat([getattr(p.moments, name) for p in parts], axis) for name in ("mean", "std")))
    reach, limits = (
        Interval(*(torch.cat([getattr(getattr(p, kind), end) for p in parts], axis) for end in ("low", "high")))
        for kind in ("reach", "limits")
    )
    basis = frozenset().union(*(part.basis for part in parts))
    return Distribution.of(moments, carrier.alpha, basis, reach=reach, limits=limits)


def _permute(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    axes = node.integers("axes")
    return operands[0].moved(lambda tensor: tensor.permute(axes))


def _slice(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    start, stop, step = (node.integer(key) for key in ("start", "stop", "step"))
    return _selected(operands[0], node.integer("axis"), torch.arange(start, stop, step))


def _gather(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    return _selected(operands[0], node.integer("axis"), torch.tensor(node.integers("indices")))


def _take(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    """An element of the axis drawn at random."""
    return operands[0].mixed((node.integer("axis"),))


def _selected(x: Distribution, axis: int, index: Tensor) -> Distribution:
    if x.moments.mean.shape[axis] == 1:
        return x
    return x.moved(lambda tensor: tensor.index_select(axis, index) if tensor.shape[axis] > 1 else tensor)


def _pad(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    pad, value, x = node.integers("pad"), node.number("value"), operands[0]
    rank = node.output.type.rank
    own = [axis for axis in range(rank) if x.moments.mean.shape[axis] > 1 and (pad[axis] or pad[rank + axis])]
    added = border(node)
    if added is None or not math.isfinite(added) or not own:
        x = x if added is None or not math.isfinite(added) else x.with_value(added)
        return x.mixed(own)
    # Channels that consist only of border values are constants.
    amounts = [[amount if axis in own else 0 for axis, amount in enumerate(half)] for half in (pad[:rank], pad[rank:])]
    flat = pad_amounts(*amounts)

    def padded(with_value: float) -> Callable[[Tensor], Tensor]:
        return lambda tensor: functional.pad(tensor, flat, value=with_value)

    inner = any(amount > 0 for axis in range(rank) if axis not in own for amount in (pad[axis], pad[rank + axis]))
    moved = x.moved(padded(value), padded(0.0), padded(value), padded(value))
    return moved.with_value(value) if inner else moved


def _reshape(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    """Split and join axes in groups; only groups with differing elements get one entry per element."""
    x = operands[0]
    before, after = carrier.sizes(node.inputs[0]), carrier.sizes(node.output)
    groups = _factored(before, after)
    if groups is None:
        return _anywhere(carrier, node, operands)
    own, shape, full = x.moments.mean.shape, [], list(x.moments.mean.shape)
    for old, new in groups:
        if any(own[axis] > 1 for axis in old):
            full[slice(*_ends(old))] = [before[axis] for axis in old]
            shape += [after[axis] for axis in new]
        else:
            shape += [1] * len(new)
    return x.spread(full).moved(lambda tensor: tensor.reshape(shape))


def _ends(axes: range) -> tuple[int, int]:
    return axes.start, axes.stop


def _factored(before: Sequence[int], after: Sequence[int]) -> list[tuple[range, range]] | None:
    """Shortest runs of axes with the same elements before and after a reshape; None if there are none."""
    groups, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        start, end, left, right = i, j, 1, 1
        while True:
            if left <= right and i < len(before):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            elif i < len(before):
                left, i = left * before[i], i + 1
            else:
                return None
            if left == right and (j > end or j == len(after)) and (i > start or i == len(before)):
                break
        groups.append((range(start, i), range(end, j)))
    return groups


def _anywhere(carrier: _Carrier, node: Node, operands: Sequence[Distribution]) -> Distribution:
    """Elements of all operands at unknown positions."""
    rank = node.output.type.rank
    flat = [
        item.mixed(range(item.moments.mean.dim())).moved(lambda t: t.reshape([1] * max(rank, 1))) for item in operands
    ]
    parts = [item.moments for item in flat]
    stacked = Gaussian(*(torch.stack([getattr(part, name) for part in parts]) for name in ("mean", "std")))
    mixed = gaussian.mixture(stacked, [0])
    ends = [
        Interval(
            torch.stack([getattr(p, kind).low for p in flat]).amin(0),
            torch.stack([getattr(p, kind).high for p in flat]).amax(0),
        )
        for kind in ("reach", "limits")
    ]
    basis = frozenset().union(*(item.basis for item in flat))
    moments = Gaussian(mixed.mean[0], mixed.std[0])
    return Distribution.of(moments, carrier.alpha, basis, reach=ends[0], limits=ends[1])


RULES: Mapping[str, _Rule] = {
    "fake_quantize": _same,
    "quantize_gradient": _same,
    "dropout": _same,
    "identity": _same,
    "clamp_channels": _channel_clamp,
    "prelu": _slopes,
    SCALED: _scaled,
    "layer_norm": _layer_norm,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "batch_norm": _batch_norm,
    "add": partial(_sum, sign=1.0),
    "sub": partial(_sum, sign=-1.0),
    "mul": _product,
    "div": partial(_product, divides=True),
    "matmul": _matmul,
    "mean": _mean,
    "avg_pool2d": _pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "resize": _neighbours,
    "max_pool2d": _neighbours,
    "concat": _concat,
    "permute": _permute,
    "slice": _slice,
    "gather": _gather,
    "take_along": _take,
    "pad": _pad,
    "masked": lambda carrier, node, operands: operands[0].with_value(0.0),
    "reshape": _reshape,
}
"""Rules by operator. Functions, clamps, layers and other movements are handled by their traits."""
