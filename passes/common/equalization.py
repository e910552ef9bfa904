"""Finds layers that can be rescaled against each other, for equalization, bias absorption and smoothing.

The output channels of a layer can be divided by s > 0 if every layer that reads them multiplies its weights by s and
all ops in between commute with a positive factor: f(s x) = s f(x). A clamp commutes if its limits are divided by s,
which needs limits per channel. A function such as SiLU commutes as f(s x) / s, which needs a table per channel. A
product commutes if only one operand has the channels; the other may come from a layer that reads them, as in a
squeeze-and-excite gate.

    A ──► relu ──► max_pool ──► flatten ──► B        conv A, channel c: positions c*P .. c*P + P - 1 of linear B
               └─► depthwise conv ──► ...            every reader of the channels is a part of the group

Ops that move elements are tracked by moving channel numbers: a tensor in the shape of the value, with the channel of A
from which each element comes.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1 (positive scaling equivariance).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from qcompiler.calibration import gaussian
from qcompiler.calibration.statistics import set_statistics, statistics_of
from qcompiler.errors import GraphError, InputError
from qcompiler.ir.dims import evaluate_dim, symbols_of
from qcompiler.ir.events import Message, Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import activation_bounds, is_leaf, is_quantizer, leaf_tensor
from qcompiler.passes.common.channel_tables import function_of
from qcompiler.quant.affine import channel_rows

SHARED_PARAMETERS = Sentence("parameters-are-shared", "another layer uses the parameters of {layer}")
CONSTANT_NOT_PER_CHANNEL = Sentence("constant-not-per-channel", "its constant does not have one number per channel")
NO_SIZE = Sentence("no-size-of-samples", "%{value} has no size for {samples} samples")
EMPTY = Sentence("empty-for-samples", "%{value} is empty for {samples} samples")
OUTPUT = Sentence("channels-are-output", "%{value} is an output of the model")
NOT_READ = Sentence("channels-not-read", "no layer reads it")
CHANNELS_AS_ONE = Sentence("channels-read-as-one", "{layer} reads several channels as one input channel")
CLAMPS = Sentence("clamp-in-between", "{clamp} clamps to {low:g}..{high:g}, which changes under a factor")
CLAMPS_CHANNELS = Sentence(
    "channel-clamp-in-between", "{clamp} clamps each channel to its own limits, which the target does not support"
)
LIMITS_COMPUTED = Sentence("limits-computed", "the limits of {clamp} are computed")
COMMON_LIMITS = Sentence("common-limits", "{clamp} has common limits for several channels")
NO_TABLE = Sentence("no-table-per-channel", "{node} is {function}, and the target has no table per channel for it")
SCALES_COMPUTED = Sentence("scales-computed", "the scales of {node} are computed")
ONE_TABLE = Sentence("one-table", "{node} has one table for several channels")
ACTIVATION_INCLUDED = Sentence("activation-included", "{quantizer} already includes an activation")
NO_FACTOR = Sentence("factor-not-kept", "{node} is {op}, which does not commute with a factor per channel")
MIXES_PIXELS = Sentence("pixels-mixed", "{node} mixes pixels of several channels")
AVERAGES_CHANNELS = Sentence("channels-averaged", "{node} averages several channels")
MULTIPLIES_CHANNELS = Sentence("channels-multiplied", "{node} multiplies channels with each other")
PADS = Sentence("padding-in-between", "{node} pads with {value}, which changes under a factor")
BETWEEN_SAMPLES = Sentence("moves-between-samples", "{node} moves elements between samples")

FOREIGN = -1
"""Channel number of elements from other sources: other parts of a concat, a border."""

SAMPLES = 2
"""Number of samples for tracking channels; with one sample, moves between samples would go unnoticed."""


@dataclass(frozen=True)
class Consumer:
    """A layer that reads rescaled channels.

    Args:
        node: The layer.
        channels: int64, one per input channel of the layer: the channel of the producer, or FOREIGN.
    """

    node: Node
    channels: Tensor


@dataclass(frozen=True)
class PerChannel:
    """A node with parameters per channel.

    Args:
        node: A `clamp`, a `clamp_channels`, a unary function or a `scaled_unary`.
        axis: Channel axis of the consumer's input.
        channels: int64, one per index of that axis: the channel of the producer, or FOREIGN.
    """

    node: Node
    axis: int
    channels: Tensor


@dataclass(frozen=True)
class Group:
    """A layer, or another node with a factor per channel, and the readers of its output channels.

    Args:
        producer: The layer.
        consumers: The layers at the ends of all paths.
        between: The nodes in between, in order, each once.
        caps: Activations in between that clamp to numbers other than 0.
        tables: Activations in between that are lookup tables, except those that are linear from 0.
        grids: The producer and nodes in between whose results get grids of their own before a reader's input.
    """

    producer: Node
    consumers: tuple[Consumer, ...]
    between: tuple[Node, ...]
    caps: tuple[PerChannel, ...] = ()
    tables: tuple[PerChannel, ...] = ()
    grids: tuple[PerChannel, ...] = ()


class Refused(Exception):  # noqa: N818  # not an error: it ends a search
    """The channels of a layer cannot be rescaled.

    Args:
        message: The reason.
    """

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.message = message


def scale_layer(
    layer: Layer, rewriter: Rewriter, *, outputs: Tensor | None = None, inputs: Tensor | None = None
) -> None:
    """Multiply a layer's parameters and statistics by factors; rounded once.

    Args:
        layer: A layer.
        rewriter: Rewriter of the graph.
        outputs: float64 [output channels], for weight, bias and statistics; None: 1.
        inputs: float64 [input channels], for the weight; None: 1.
    """
    weight = layer.weight_tensor()
    one = torch.ones(layer.groups, dtype=torch.float64)
    rows, columns = (one if factors is None else factors for factors in (outputs, inputs))
    factors = rows.reshape(layer.groups, -1, 1, 1) * columns.reshape(layer.groups, 1, -1, 1)
    rewriter.write_tensor(
        layer.weight, layer.from_rows(layer.rows(weight.to(torch.float64)) * factors).to(weight.dtype)
    )
    if outputs is None:
        return
    if layer.bias is not None:
        tensor = leaf_tensor(layer.bias)
        rewriter.write_tensor(layer.bias, (tensor.to(torch.float64) * outputs).to(tensor.dtype))
    statistics = statistics_of(layer.node)
    if statistics is not None:
        set_statistics(layer.node, gaussian.scale(statistics, outputs))


def scale_constants(node: Node, rewriter: Rewriter, outputs: Tensor) -> None:
    """Multiply weight and bias of a layer norm, or the constant of a product, by factors; rounded once.

    Args:
        node: A node of one of these two kinds.
        rewriter: Rewriter of the graph.
        outputs: float64 [channels].
    """
    factor = constant_factor(node)
    for value in node.inputs[1:] if factor is None else [factor]:
        leaf = leaf_of(value)
        tensor = leaf_tensor(leaf)
        # The channel axis of a layer norm is the last one; of a constant, the only axis longer than 1.
        shape = (-1,) if factor is None else [1 if size == 1 else -1 for size in tensor.shape]
        rewriter.write_tensor(leaf, (tensor.to(torch.float64) * outputs.reshape(shape)).to(tensor.dtype))


def factor_of(channels: Tensor, s: Tensor) -> Tensor:
    """Factors of channels, float64 [*, channels]; 1 for channels from another producer.

    Args:
        channels: int64, for each channel that of the producer, or FOREIGN.
        s: Factors of the producer's channels, float64 [*, channels of the producer].
    """
    return torch.where(channels == FOREIGN, 1.0, s[..., channels.clamp(min=0)])


def producer_axis(node: Node) -> int:
    """The channel axis of the result of a producer, from 0; for a product with a constant, the axis of the constant.

    Raises:
        Refused: The constant of a product does not have exactly one axis longer than 1.
    """
    factor = constant_factor(node)
    if factor is not None:
        sizes = leaf_tensor(leaf_of(factor)).shape
        axes = [axis - len(sizes) for axis, size in enumerate(sizes) if size != 1]
        if len(axes) != 1:
            raise Refused(CONSTANT_NOT_PER_CHANNEL())
        return node.output.type.rank + axes[0]
    return node.output.type.rank - 1 if node.op == "layer_norm" else Layer(node).output_axis


def channels_of(producer: Node) -> int:
    """Number of channels of a producer."""
    return producer.output.type.size(producer_axis(producer))


def constant_factor(node: Node) -> Value | None:
    """The only operand of a product that is a tensor of the model, or its quantizer; None if there is none."""
    constants = [value for value in node.inputs if is_leaf(leaf_of(value))] if node.op == "mul" else []
    return constants[0] if len(constants) == 1 else None


def parameter_readers(graph: Graph) -> dict[Value, int]:
    """Number of users of each parameter, without quantizers; a float island with the parameter counts too."""
    readers: dict[str, int] = {}
    leaves: dict[Value, str] = {}
    for other in graph.module.graphs.values():
        for node in other.nodes:
            if node.definition.has(Trait.QUANTIZER, Trait.BIAS_QUANTIZER):
                continue
            for value in node.inputs:
                leaf = leaf_of(value)
                if leaf.producer is None or not is_leaf(leaf):
                    continue
                ref = leaf.producer.text("ref")
                readers[ref] = readers.get(ref, 0) + 1
                if other is graph:
                    leaves[leaf] = ref
    return {leaf: readers[ref] for leaf, ref in leaves.items()}


def groups(
    graph: Graph,
    refused: Callable[[Node, Message], None] | None = None,
    *,
    may_produce: Callable[[Node], object] = Layer.of,
    caps: bool = False,
    tables: Callable[[str], bool] | None = None,
    has_grid: Callable[[Node], bool] | None = None,
) -> Iterator[Group]:
    """The groups of `graph`, one per layer whose channels can be rescaled, in order.

    Args:
        graph: A CANONICAL or QUANTIZED graph.
        refused: Callback with each refused layer and the reason.
        may_produce: Predicate for nodes that can absorb a factor per output channel.
        caps: Whether a clamp may get limits per channel; otherwise it ends the search.
        tables: Predicate for functions that may get a table per channel; others end the search, as do all with None.
        has_grid: Predicate for nodes whose results get grids of their own; None leaves `Group.grids` empty.
    """
    positions = {node: index for index, node in enumerate(graph.nodes)}
    readers = parameter_readers(graph)
    for node in positions:
        if not may_produce(node):
            continue
        try:
            group = _group(node, positions, capped=caps, tabled=tables, has_grid=has_grid)
            for layer in (group.producer, *(consumer.node for consumer in group.consumers)):
                if any(readers.get(leaf_of(value), 0) > 1 for value in layer.inputs):
                    raise Refused(SHARED_PARAMETERS(layer=layer.name))
        except Refused as reason:
            if refused is not None:
                refused(node, reason.message)
            continue
        yield group


def _shape(value: Value, graph: Graph) -> list[int]:
    """The sizes of `value` for a few samples, which stand for any number of samples.

    Raises:
        Refused: There are no such sizes.
    """
    names = sorted({symbol.name for size in value.type.shape for symbol in symbols_of(size)})
    bindings = {}
    for index, name in enumerate(names):
        low, high = graph.bounds.get(name, (1, SAMPLES + index))
        bindings[name] = min(max(low, SAMPLES + index), high)
    try:
        sizes = [evaluate_dim(size, bindings) for size in value.type.shape]
    except (GraphError, InputError) as error:
        raise Refused(NO_SIZE(value=value.name, samples=SAMPLES)) from error
    if min(sizes, default=1) < 1:
        raise Refused(EMPTY(value=value.name, samples=SAMPLES))
    return sizes


class _Numbers(dict[Value, Tensor]):
    """The source of each element of values, int64 in the shape of the value."""

    def __init__(self, numbers: Mapping[Value, Tensor]) -> None:
        super().__init__(numbers)
        self._movable: dict[Value, Tensor] = {}

    def movable(self, value: Value, graph: Graph) -> Tensor:
        """The numbers plus one in float64, which ops can move, so that a border of zeros becomes FOREIGN.

        They are kept, because a value may be read by a thousand slices.
        """
        if value not in self._movable:
            numbers = self[value] if value in self else torch.full(_shape(value, graph), FOREIGN)
            self._movable[value] = (numbers + 1).to(torch.float64)
        return self._movable[value]


def _group(
    producer: Node,
    positions: Mapping[Node, int],
    *,
    capped: bool,
    tabled: Callable[[str], bool] | None,
    has_grid: Callable[[Node], bool] | None,
) -> Group:
    shape = _shape(producer.output, producer.graph)
    axis = producer_axis(producer)
    numbers = torch.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))]).expand(shape)
    maps = _Numbers({producer.output: numbers})
    consumers: list[Consumer] = []
    between: list[Node] = []
    caps: list[PerChannel] = []
    tables: list[PerChannel] = []
    waiting: list[tuple[int, Node]] = []
    seen: set[Node] = set()

    def follow(value: Value) -> None:
        if producer.graph.is_output(value):
            raise Refused(OUTPUT(value=value.name))
        for user in value.users:
            if user not in seen:
                seen.add(user)
                heapq.heappush(waiting, (positions[user], user))

    follow(producer.output)
    while waiting:  # in the order of the graph: a concat comes after all of its parts
        _, node = heapq.heappop(waiting)
        layer = Layer.of(node)
        if layer is not None and node.inputs[0] in maps:
            consumers.append(Consumer(node, _channels_read(layer, maps[node.inputs[0]])))
            continue
        if node.definition.has(Trait.CLAMP) and not node.definition.has(Trait.RECTIFIER):
            caps.append(_cap(node, maps[node.inputs[0]], capped=capped))
        if tabled is not None and function_of(node):
            tables.append(_table(node, maps[node.inputs[0]], tabled))
            maps[node.output] = maps[node.inputs[0]]
        else:
            maps[node.output] = _through(node, maps)
        between.append(node)
        follow(node.output)
    if not consumers:
        raise Refused(NOT_READ())
    read = {_origin(consumer.node.inputs[0]) for consumer in consumers}
    makers = [node for node in (producer, *between) if has_grid is not None and has_grid(node)]
    grids = [_along_an_axis(node, maps[node.output]) for node in makers if node.output not in read]
    return Group(producer, tuple(consumers), tuple(between), tuple(caps), tuple(tables), tuple(filter(None, grids)))


def _origin(value: Value) -> Value:
    """The value whose codes `value` has: the same before ops that move the elements of one operand."""
    maker = value.producer
    while maker is not None:
        if not is_quantizer(maker) and not (maker.definition.has(Trait.MOVEMENT) and len(maker.inputs) == 1):
            break
        value = maker.inputs[0]
        maker = value.producer
    return value


def _channels_read(layer: Layer, numbers: Tensor) -> Tensor:
    """The producer's channel of each input channel of `layer`."""
    rows = channel_rows(numbers, layer.input_axis)
    if bool((rows != rows[:, :1]).any()):
        raise Refused(CHANNELS_AS_ONE(layer=layer.node.name))
    return rows[:, 0]


def _cap(node: Node, numbers: Tensor, *, capped: bool) -> PerChannel:
    """The channel positions of a clamp `node`.

    Raises:
        Refused: Not along one axis, or there can be no limits per channel.
    """
    if not capped and node.definition.has(Trait.ACTIVATION):
        low, high = activation_bounds(node)
        raise Refused(CLAMPS(clamp=node.name, low=low, high=high))
    if not capped:
        raise Refused(CLAMPS_CHANNELS(clamp=node.name))
    if not all(map(is_leaf, node.inputs[1:])):
        raise Refused(LIMITS_COMPUTED(clamp=node.name))
    return _along_an_axis(node, numbers) or _refuse(COMMON_LIMITS(clamp=node.name))


def _table(node: Node, numbers: Tensor, tabled: Callable[[str], bool]) -> PerChannel:
    """The channel positions of a lookup-table activation `node`.

    Raises:
        Refused: Not along one axis, or there can be no table per channel.
    """
    function = function_of(node)
    if not tabled(function):
        raise Refused(NO_TABLE(node=node.name, function=function))
    if not all(map(is_leaf, node.inputs[1:])):
        raise Refused(SCALES_COMPUTED(node=node.name))
    return _along_an_axis(node, numbers) or _refuse(ONE_TABLE(node=node.name))


def _refuse(reason: Message) -> NoReturn:
    raise Refused(reason)


def _along_an_axis(node: Node, numbers: Tensor) -> PerChannel | None:
    """The axis of the parameters of `node`, or one that they can be along; None where channels lie across it."""
    for axis in (node.integer("axis"),) if node.given("axis") else range(1, numbers.dim()):
        rows = channel_rows(numbers, axis)
        if isinstance(node.output.type.shape[axis], int) and not bool((rows != rows[:, :1]).any()):
            return PerChannel(node, axis, rows[:, 0])
    return None


def _through(node: Node, maps: _Numbers) -> Tensor:
    """The source of each element of the result of `node`.

    Raises:
        Refused: It does not commute with a positive factor per channel.
    """
    if is_quantizer(node):
        if node.given("qmin") or node.given("qmax"):
            raise Refused(ACTIVATION_INCLUDED(quantizer=node.name))
        return maps[node.inputs[0]]
    if node.op == "mul":
        return _product(node, maps)
    if node.definition.has(Trait.CLAMP):  # its limits follow, or it was refused
        return maps[node.inputs[0]]
    if not node.definition.has(Trait.COMMUTES_WITH_SCALE):
        raise Refused(NO_FACTOR(node=node.name, op=node.op))
    if node.definition.has(Trait.SPATIAL):
        return _over_pixels(node, maps[node.inputs[0]])
    if node.definition.has(Trait.AVERAGE):
        return _mean(node, maps[node.inputs[0]])
    return _moved(node, maps) if node.definition.has(Trait.MOVEMENT) else maps[node.inputs[0]]


def _over_pixels(node: Node, numbers: Tensor) -> Tensor:
    if bool((numbers != numbers[:, :, :1, :1]).any()):
        raise Refused(MIXES_PIXELS(node=node.name))
    sizes = _shape(node.output, node.graph)
    return numbers[:, :, :1, :1].expand(-1, -1, *sizes[2:])


def _mean(node: Node, numbers: Tensor) -> Tensor:
    axes = node.integers("axes")
    first = numbers
    for axis in axes:
        first = first.narrow(axis, 0, 1)
    if bool((numbers != first).any()):
        raise Refused(AVERAGES_CHANNELS(node=node.name))
    return first if node.flag("keepdim") else first.squeeze(axes)


def _product(node: Node, maps: _Numbers) -> Tensor:
    (first, *others) = (maps[value] for value in node.inputs if value in maps)
    if others:
        raise Refused(MULTIPLIES_CHANNELS(node=node.name))
    return first.expand(_shape(node.output, node.graph))


def _moved(node: Node, maps: _Numbers) -> Tensor:
    if node.number("value", 0.0) != 0.0:
        raise Refused(PADS(node=node.name, value=node.number("value")))
    operands = [maps.movable(value, node.graph) for value in node.inputs]
    try:
        moved = node.definition.evaluate(node, operands)[0]
    except (GraphError, RuntimeError) as error:  # sizes that follow the batch in more than their first axis
        raise Refused(BETWEEN_SAMPLES(node=node.name)) from error
    return moved.to(torch.int64) - 1


def forget_ranges(found: Iterable[Group], rewriter: Rewriter, *, weights: bool) -> bool:
    """Make the quantizers on the ways of groups uncalibrated, and with `weights` those of the layers.

    Returns:
        Whether one of them had a range.
    """
    changed = False
    for group in found:
        quantizers = [node for node in group.between if is_quantizer(node)]
        layers = (group.producer, *(consumer.node for consumer in group.consumers)) if weights else ()
        makers = [value.producer for layer in layers for value in layer.inputs if is_leaf(leaf_of(value))]
        quantizers += [maker for maker in makers if is_quantizer(maker)]
        for quantizer in quantizers:
            scale = leaf_tensor(quantizer.inputs[1])
            if is_calibrated(scale):
                rewriter.write_tensor(quantizer.inputs[1], torch.full_like(scale, torch.nan))
                changed = True
    return changed
