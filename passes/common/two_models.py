"""Runs the float model and the quantized model on the same data, layer by layer, in one walk over the graph.

A pass that reduces the error of a layer gets the inputs of the layer in both models, after all earlier layers were
changed:

    x ──► layer ──► relu ──► add ──► layer ──► ...      a segment: a layer and what follows, up to the next layer

All batches run through a segment, one at a time, before the next segment. Only tensors that later segments read are
kept, in a store that spills to disk. Each of several processes takes a share of the batches.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.calibration.processes import Processes
from qcompiler.calibration.store import Kept, Store
from qcompiler.errors import CalibrationError
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.hashing import tensor_digest
from qcompiler.ir.interpret import Evaluation, evaluate_node
from qcompiler.ir.registry import Trait
from qcompiler.ops.layers import Layer
from qcompiler.ops.quantizers import is_leaf, is_quantizer, leaf_tensor
from qcompiler.passes.base import PassContext

QUANTIZERS = (Trait.QUANTIZER, Trait.BIAS_QUANTIZER)


@dataclass(frozen=True)
class Pair:
    """A tensor in both models; the same object if both are equal."""

    real: Tensor
    quantized: Tensor


@dataclass(frozen=True)
class _Held:
    """A pair in the store."""

    real: Kept
    quantized: Kept

    def load(self) -> Pair:
        real = self.real.load()
        return Pair(real, real if self.quantized is self.real else self.quantized.load())


@dataclass(frozen=True)
class Given:
    """Calibration batches in the form that `run_both` needs.

    Args:
        count: Batches in all processes.
        held: Batches of this process, by graph input and number.
        store: Store of the batches and of all intermediate results.
        digest: Digest of all batches; "" without a journal that needs it.
    """

    count: int
    held: dict[Value, dict[int, _Held]]
    store: Store
    digest: str


class LayerInputs:
    """The inputs of a layer, batch by batch.

    Args:
        node: The layer.
        processes: Processes, each of which has some batches.
        count: Batches in all processes.
        held: Batches of this process.
        original: The tensors of the float model.
    """

    def __init__(
        self, node: Node, processes: Processes, count: int, held: Mapping[int, _Held], original: Mapping[str, Tensor]
    ) -> None:
        self.node, self.processes, self.count = node, processes, count
        self._held, self._original = held, original

    def batch(self, index: int) -> Pair:
        """The activation in batch `index`, which this process must own."""
        return self._held[index].load()

    def anywhere(self, index: int) -> Pair:
        """The activation in batch `index` from the process that owns it; to be called in all processes."""
        own = self.batch(index) if index in self._held else None
        tensors = None if own is None else [own.real] if own.quantized is own.real else [own.real, own.quantized]
        real, *quantized = self.processes.share(tensors, self.processes.owner(index))
        return Pair(real, *(quantized or [real]))

    def parameters(self) -> Pair:
        """The weight in both models."""
        real, quantized = _parameters(self.node, self._original)
        return Pair(real[0], quantized[0])

    def results(self, index: int) -> Pair:
        """Results of the layer in batch `index`: with its float weight, and with the current quantized weight."""
        pair = self.batch(index)
        real, quantized = _parameters(self.node, self._original)
        return Pair(
            evaluate_node(self.node, [pair.real, *real])[0], evaluate_node(self.node, [pair.quantized, *quantized])[0]
        )


Visit = Callable[[Node, LayerInputs], None]
"""Callback for each layer whose weight is a quantized parameter; it may change the parameters."""


def read_batches(graph: Graph, context: PassContext, images: int) -> Given:
    """Calibration batches with at least `images` samples, or all batches.

    Raises:
        CalibrationError: There is no batch.
    """
    store, hashes = Store(context.memory), []
    held: dict[Value, dict[int, _Held]] = {value: {} for value in graph.inputs}
    count = seen = 0
    for batch in context.calibration_data or ():
        for value, tensor in zip(graph.inputs, batch, strict=True):
            if context.journal.folder is not None:
                hashes.append(tensor_digest(tensor))
            if context.processes.owns(count):
                kept = store.keep(tensor)
                held[value][count] = _Held(kept, kept)
        count += 1
        seen += len(batch[0]) if batch and batch[0].dim() else 1
        if seen >= images:
            break
    if not count:
        raise CalibrationError("calibration_data is empty", expected="at least one batch")
    return Given(count, held, store, hashlib.sha256(" ".join(hashes).encode()).hexdigest() if hashes else "")


def run_both(graph: Graph, given: Given, layer: Visit, context: PassContext) -> None:
    """Walk over a QUANTIZED graph with both models.

    In the quantized model weights are quantized, and activations if their quantizers have a range.

    Args:
        graph: A QUANTIZED graph with calibrated weights.
        given: The data, which is consumed.
        layer: See `Visit`.
        context: Processes and progress.
    """
    original = dict(graph.module.tensors)
    segments, held = _segments(graph), given.held
    last = {value: number for number, nodes in enumerate(segments) for node in nodes for value in node.inputs}
    costs = [0.0 if number == 0 else _cost(nodes[0]) for number, nodes in enumerate(segments)]
    done = 0.0
    with torch.no_grad():
        for number, nodes in enumerate(segments):
            if number:
                head = nodes[0]
                context.progress(head.name, done, sum(costs))
                layer(head, LayerInputs(head, context.processes, given.count, held[head.inputs[0]], original))
                done += costs[number]
            if number == len(segments) - 1:
                break
            _advance(nodes, number, last, held, given.store, original)
            for value in [value for value in held if last.get(value, 0) <= number]:
                del held[value]


def _cost(layer: Node) -> float:
    """Estimated work for a layer in any unit: its weights times the weights per output."""
    shape = [size for size in layer.inputs[1].type.shape if isinstance(size, int)]
    return float(math.prod(shape)) * math.prod(shape[1:]) + 1e6


def _segments(graph: Graph) -> list[list[Node]]:
    """Nodes that compute activations: first those before the first layer, then each layer with what follows it."""
    segments: list[list[Node]] = [[]]
    for node in graph.nodes:
        if node.definition.has(Trait.LEAF) or (node.definition.has(*QUANTIZERS) and _is_parameter(node.output)):
            continue
        if Layer.of(node) is not None and _is_parameter(node.inputs[1]) and not is_leaf(node.inputs[1]):
            segments.append([])
        segments[-1].append(node)
    return segments


def _advance(
    nodes: Sequence[Node],
    number: int,
    last: Mapping[Value, int],
    held: dict[Value, dict[int, _Held]],
    store: Store,
    original: Mapping[str, Tensor],
) -> None:
    """Run a segment for each batch, and keep the tensors that later segments read."""
    parameters = {node: _parameters(node, original) for node in nodes}
    kept = [value for node in nodes for value in node.outputs if last.get(value, 0) > number]
    indices = list(next(iter(held.values()), {}))
    held.update({value: {} for value in kept})
    uses = Counter(value for node in nodes for value in node.inputs)
    for index in indices:
        here: dict[Value, Pair] = {}
        remaining = dict(uses)
        for node in nodes:
            operands = []
            for value in node.inputs:
                if _is_parameter(value):
                    continue
                if value not in here:
                    here[value] = held[value][index].load()
                operands.append(here[value])
            for value, pair in zip(node.outputs, _evaluate(node, operands, parameters[node]), strict=True):
                here[value] = pair
                if value in held:
                    real = store.keep(pair.real)
                    same = pair.quantized is pair.real
                    held[value][index] = _Held(real, real if same else store.keep(pair.quantized))
            for value in node.inputs:
                remaining[value] -= 1
                if not remaining[value]:
                    here.pop(value, None)


def _evaluate(
    node: Node, operands: Sequence[Pair], parameters: tuple[Sequence[Tensor], Sequence[Tensor]]
) -> list[Pair]:
    """The results of a node in both models."""
    if node.definition.has(*QUANTIZERS):
        # Quantizers without a range pass values unchanged in the quantized model, as all do in the float model.
        quantized = evaluate_node(node, [operands[0].quantized, *parameters[1]])[0]
        same = quantized is operands[0].quantized or torch.equal(quantized, operands[0].quantized)
        return [operands[0] if same else Pair(operands[0].real, quantized)]
    places = [_is_parameter(value) for value in node.inputs]

    def arranged(tensors: Iterable[Tensor], constants: Iterable[Tensor]) -> list[Tensor]:
        moving, fixed = iter(tensors), iter(constants)
        return [next(fixed) if place else next(moving) for place in places]

    evaluate = Evaluation(node.graph.module.tensors)
    real = evaluate(node, arranged((pair.real for pair in operands), parameters[0]))
    alike = all(pair.real is pair.quantized for pair in operands)
    if alike and all(a is b for a, b in zip(*parameters, strict=True)):
        return [Pair(tensor, tensor) for tensor in real]
    quantized_results = evaluate(node, arranged((pair.quantized for pair in operands), parameters[1]))
    return [Pair(a, b) for a, b in zip(real, quantized_results, strict=True)]


def _parameters(node: Node, original: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters among the operands of a node: the original ones, and the current quantized ones."""
    real, quantized = [], []
    for value in node.inputs:
        if not _is_parameter(value):
            continue
        maker = value.producer
        assert maker is not None
        leaf = maker.inputs[0].producer if maker.definition.has(*QUANTIZERS) else maker
        assert leaf is not None
        ref = str(leaf.attributes["ref"])
        was, now = original[ref], node.graph.module.tensors[ref]
        if is_quantizer(maker):
            now = evaluate_node(maker, [now, *map(leaf_tensor, maker.inputs[1:])])[0]
        real.append(was)
        quantized.append(now)
    return real, quantized


def _is_parameter(value: Value) -> bool:
    """Whether `value` is a tensor of the model or its quantizer."""
    producer = value.producer
    return is_leaf(value) or (
        producer is not None and producer.definition.has(*QUANTIZERS) and is_leaf(producer.inputs[0])
    )
