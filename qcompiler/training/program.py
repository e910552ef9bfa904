"""The forward of a training module, written once as torch calls.

    x ─► fake_quantize(s, z)            q = self.x.quantizer;  s, z = q.grid(x);  x_q = q(x, s, z)
    conv ─► relu ─► fake_quantize       one call: the quantizer clamps first, and the result of the ReLU is not saved
    conv with a learning batch norm     see `training.batch_norm`

Quantizers with a common scale in the graph share one quantizer module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from torch import Tensor, fx

from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.interpret import LEAVES, interpret_with
from qcompiler.ir.registry import Trait
from qcompiler.ir.to_fx import Recorded, Recorder, record
from qcompiler.ops.quantizers import activation_bounds, clamps_channels, is_quantizer, quantizer_of
from qcompiler.training.batch_norm import Style
from qcompiler.training.bias_quantizer import fake_quantize_bias

__all__ = ["Multiplied", "Normalized", "Places", "Program", "write_plain_program", "write_program"]

Program: TypeAlias = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Normalized:
    """A layer with a learning batch norm.

    Args:
        norm: Path of the batch norm.
        style: Treatment of the batch norm.
        axis: Output channel axis of the layer's weight.
    """

    norm: str
    style: Style
    axis: int


@dataclass(frozen=True)
class Multiplied:
    """A sum of products whose gradient is quantized.

    Args:
        path: Path of its `LayerProducts`.
        reads_x: Whether it needs the grid of its first operand.
        reads_w: Whether it needs the grid of its second operand.
    """

    path: str
    reads_x: bool
    reads_w: bool


@dataclass(frozen=True)
class Places:
    """Paths in the training module of the tensors, quantizers and modules that the graph names.

    Args:
        tensors: Paths by name of the tensor; absent tensors are never read.
        quantizers: Paths by name of the scale.
        dropouts: Paths by name of the dropout node.
        normalized: Learning batch norms by name of the layer.
        tracked: Names of the scales whose quantizers collect statistics.
        products: Sums of products whose gradients are quantized, by name of the node.
    """

    tensors: Mapping[str, str]
    quantizers: Mapping[str, str]
    dropouts: Mapping[str, str] = field(default_factory=dict)
    normalized: Mapping[str, Normalized] = field(default_factory=dict)
    tracked: Collection[str] = frozenset()
    products: Mapping[str, Multiplied] = field(default_factory=dict)


@dataclass(frozen=True)
class _Scale:
    """A scale that a quantizer holds."""

    ref: str


@dataclass(frozen=True)
class _Product:
    """The scale of a bias."""

    left: _Scale
    right: _Scale


@dataclass(frozen=True)
class _Clamped:
    """The input and limits of an activation that is fused into the following quantizer."""

    x: Recorded
    low: float | Recorded | None
    high: float | Recorded | None
    axis: int | None = None


@dataclass(frozen=True)
class _Latent:
    """A weight that is quantized after its batch norm has been applied."""

    weight: Recorded
    scale: _Scale


class _Nothing:
    """A tensor that no call reads."""


_NOTHING = _Nothing()
Item: TypeAlias = "Recorded | _Scale | _Product | _Clamped | _Latent | _Nothing"


def write_program(graph: Graph, places: Places) -> tuple[fx.Graph, Program]:
    """Write down the forward of `graph`.

    Args:
        graph: Graph at stage QUANTIZED, dropouts included.
        places: Paths in the training module.

    Returns:
        The calls as a graph, and as a function from the module and its flat inputs to the flat outputs.
    """
    return record(graph, _Rules(graph, places))


def write_plain_program(graph: Graph, paths: Mapping[str, str]) -> tuple[fx.Graph, Program]:
    """Write down the forward of `graph` with its own quantizers, whose ranges are tensors like all others.

    Args:
        graph: Graph at stage QUANTIZED.
        paths: Paths of tensors in the root module, by name.

    Returns:
        See `write_program`.
    """

    def rule(recorder: Recorder, node: Node, operands: Sequence[Recorded]) -> tuple[Recorded, ...]:
        if node.op in LEAVES:
            return (recorder.attribute(paths[node.text("ref")], node.output.type),)
        if node.op == "call":
            return _called(recorder, node, operands, rule)
        return recorder.evaluate(node, operands)

    return record(graph, rule)


def _called(recorder: Recorder, node: Node, operands: Sequence[Any], rule: Callable[..., Any]) -> tuple[Any, ...]:
    """The results of a float island, whose nodes are recorded by `rule`."""
    # Float islands get contiguous tensors in every evaluation, because sums depend on strides.
    inputs = []
    for value, item in zip(node.inputs, operands, strict=True):
        contiguous = recorder.method("contiguous", item)
        contiguous.type = value.type
        inputs.append(contiguous)
    called = node.graph.module.graphs[node.text("graph")]
    return tuple(interpret_with(called, inputs, lambda inner, items: rule(recorder, inner, items)))


class _Rules:
    """The rules that translate each node into recorded torch calls."""

    def __init__(self, graph: Graph, places: Places) -> None:
        self.places = places
        self.grids: dict[str, tuple[Recorded, Recorded]] = {}
        self.quantizers: dict[str, Recorded] = {}
        self.late: set[Node] = set()
        """Weight quantizers that run after a batch norm has been applied to the weight."""
        self.plain: set[Node] = set()
        """Bias quantizers to skip: these biases are quantized after the batch norm is folded."""
        for node in graph.nodes:
            found = places.normalized.get(node.name)
            if found is None or not node.definition.has(Trait.MAC):
                continue
            producers = [value.producer for value in node.inputs]
            if found.style == "double" and producers[1] is not None:
                self.late.add(producers[1])
            if len(producers) > 2 and producers[2] is not None:
                self.plain.add(producers[2])

    def __call__(self, recorder: Recorder, node: Node, operands: Sequence[Item]) -> tuple[Item, ...]:
        if node.op in LEAVES:
            return (self._leaf(recorder, node),)
        match node.op:
            case "scale_product":
                return (_Product(cast("_Scale", operands[0]), cast("_Scale", operands[1])),)
            case "fake_quantize":
                return (self._fake_quantize(recorder, node, operands),)
            case "fake_quantize_bias":
                return (self._bias(recorder, node, operands),)
            case "dropout" if node.name in self.places.dropouts:
                return (recorder.module(self.places.dropouts[node.name], operands[0]),)
            case "quantize_gradient":
                return (operands[0],)  # a part of its layer
            case "call":
                return _called(recorder, node, operands, self)
        if node.definition.has(Trait.ACTIVATION) and _is_read_by_a_quantizer(node):
            low, high = activation_bounds(node)
            x = cast("Recorded", operands[0])
            return (_Clamped(x, None if low == -math.inf else low, None if high == math.inf else high),)
        if clamps_channels(node) and _is_read_by_a_quantizer(node):
            x, lows, highs = cast("Sequence[Recorded]", operands)
            return (_Clamped(x, lows, highs, node.integer("axis")),)
        if node.name in self.places.normalized and node.definition.has(Trait.MAC):
            return (self._normalized(recorder, node, operands),)
        return self._evaluated(recorder, node, [item for item in operands if isinstance(item, Recorded)])

    def _evaluated(self, recorder: Recorder, node: Node, operands: Sequence[Recorded]) -> tuple[Recorded, ...]:
        """The results of a node; a sum of products with a quantized gradient is a module."""
        found = self.places.products.get(node.name)
        if found is None:
            return recorder.evaluate(node, operands)
        x, w, *bias = operands
        grids = (
            self._grid_read(recorder, node.inputs[0]) if found.reads_x else None,
            self._grid_read(recorder, node.inputs[1]) if found.reads_w else None,
        )
        result = recorder.module(found.path, x, w, bias[0] if bias else None, *grids)
        result.type = node.output.type
        return (result,)

    def _grid_read(self, recorder: Recorder, value: Value) -> tuple[Any, Any]:
        """Scale and zero point of a quantized value, whose elements a dropout in between may have scaled."""
        source = quantizer_of(value)
        assert source is not None
        ref = cast("Node", source.inputs[1].producer).text("ref")
        scale, zero_point = self.grids[ref]
        whole = recorder.method("whole_zero_point", self._quantizer(recorder, _Scale(ref)), scale, zero_point)
        maker = value.producer
        while maker is not None and maker is not source:
            if maker.op == "dropout" and maker.name in self.places.dropouts:
                gain = recorder.method("gain", recorder.attribute(self.places.dropouts[maker.name]))
                scale = cast("Any", scale) * gain
            maker = maker.inputs[0].producer
        return scale, whole

    def _leaf(self, recorder: Recorder, node: Node) -> Item:
        ref = node.text("ref")
        if ref in self.places.quantizers:
            return _Scale(ref)
        path = self.places.tensors.get(ref)
        return _NOTHING if path is None else recorder.attribute(path, node.output.type)

    def _quantizer(self, recorder: Recorder, scale: _Scale) -> Recorded:
        if scale.ref not in self.quantizers:
            self.quantizers[scale.ref] = recorder.attribute(self.places.quantizers[scale.ref])
        return self.quantizers[scale.ref]

    def _grid(
        self, recorder: Recorder, scale: _Scale, x: Recorded, limits: Sequence[object] = ()
    ) -> tuple[Recorded, Recorded]:
        is_tracked = scale.ref in self.places.tracked
        seen = limits if is_tracked else ()
        if scale.ref not in self.grids:
            pair: Any = recorder.method("grid", self._quantizer(recorder, scale), x, *seen)
            self.grids[scale.ref] = (pair[0], pair[1])
        elif is_tracked:
            recorder.method("observe", self._quantizer(recorder, scale), x, *seen)
        return self.grids[scale.ref]

    def _fake_quantize(self, recorder: Recorder, node: Node, operands: Sequence[Item]) -> Item:
        x, scale = operands[0], cast("_Scale", operands[1])
        if node in self.late:
            return _Latent(cast("Recorded", x), scale)
        limits: tuple[object, ...] = ()
        if isinstance(x, _Clamped):
            limits = (x.low, x.high) if x.axis is None else (x.low, x.high, x.axis)
            x = x.x
        grid = self._grid(recorder, scale, cast("Recorded", x), limits)
        # Call the module, not a method, so that the user's hooks run.
        result: Any = recorder.module(self.places.quantizers[scale.ref], x, *grid, *limits)
        result.type = node.output.type
        return cast("Recorded", result)

    def _bias(self, recorder: Recorder, node: Node, operands: Sequence[Item]) -> Item:
        bias, scale = operands
        if isinstance(bias, _Nothing) or node in self.plain:
            return bias
        product = cast("_Product", scale)
        # Both scales are recorded: input and weight of the layer are quantized before the bias.
        left, right = (self.grids[item.ref][0] for item in (product.left, product.right))
        rounding = node.text("rounding")
        result = recorder.function(fake_quantize_bias, bias, left, right, rounding)
        result.type = node.output.type
        return result

    def _normalized(self, recorder: Recorder, node: Node, operands: Sequence[Item]) -> Item:
        found = self.places.normalized[node.name]
        x = cast("Recorded", operands[0])
        bias = operands[2] if len(operands) > 2 and isinstance(operands[2], Recorded) else None
        own = [] if bias is None else [bias]
        if found.style == "keep":
            z = self._evaluated(recorder, node, [x, cast("Recorded", operands[1]), *own])[0]
            result: Any = recorder.module(found.norm, z)
        else:
            latent = cast("_Latent", operands[1])
            z = recorder.evaluate(node, [x, latent.weight, *own])[0]
            parts: Any = recorder.method("split", recorder.attribute(found.norm), z, bias)
            gain, correction, shift = (parts[index] for index in range(3))
            folded = cast("Any", latent.weight) * gain.reshape(_spread(latent.weight.dim(), found.axis))
            grid = self._grid(recorder, latent.scale, folded)
            quantized = recorder.module(self.places.quantizers[latent.scale.ref], folded, *grid)
            y: Any = recorder.evaluate(node, [x, quantized])[0]
            spread = _spread(node.output.type.rank, 1)
            result = y * correction.reshape(spread) + shift.reshape(spread)
        result.type = node.output.type
        return cast("Recorded", result)


def _spread(rank: int, axis: int) -> list[int]:
    """The shape to which a vector with one value per channel is reshaped for broadcasting."""
    return [-1 if index == axis % rank else 1 for index in range(rank)]


def _is_read_by_a_quantizer(node: Node) -> bool:
    """Whether one quantizer, and nothing else, reads the result."""
    value = node.output
    users = list(value.users)
    return len(users) == 1 and is_quantizer(users[0]) and not node.graph.is_output(value)
