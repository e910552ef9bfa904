"""From measurements to causes: why a part loses, in words, and which keywords may help.

Each weight and activation that loses much gets the first cause that fits, from special to general: its role in the
graph (a concat, a residual stream, the input of a sigmoid), its width, a folded batch norm, its numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.analysis.findings import Cause
from qcompiler.analysis.parts import Group, Part, Table
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.interpret import interpret
from qcompiler.ir.registry import Trait
from qcompiler.ops import SCALED
from qcompiler.ops.layers import Layer, is_weighted, leaf_of
from qcompiler.ops.quantizers import is_leaf, is_quantizer, leaf_tensor, quantizer_of
from qcompiler.validation.joined_parts import leads_out, weak_parts

__all__ = ["Suspect", "batch_norms", "suspects", "unlike_batch_norm", "unlike_inputs", "untrained"]

SHARE = 0.05
"""Share of the noise of all parts above which a part is examined."""
SPREAD = 8.0
"""Ratio of the largest to the median channel at which one scale costs the median channel three bits."""
TAIL = {"weight": 12.0, "activation": 16.0}
"""Ratio of the largest number to the root mean square above which few numbers decide the range."""
CLIPPED = 0.01
"""Share of numbers outside of the range above which the range is the cause."""
DEAD = 1e-3
"""Variance of a channel relative to the median channel below which the channel is dead."""
SATURATED = 12.0
"""Magnitude of an input beyond which a sigmoid or a softmax no longer changes at eight bits."""
MOVED, STRETCHED = 1.0, 3.0
"""Distance of means in deviations, and ratio of deviations, between data that was preprocessed differently."""
SATURATING = ("sigmoid", "tanh", "softmax", "hardsigmoid")
"""Functions that hardly change far from 0."""


@dataclass(frozen=True)
class Suspect:
    """A cause that may explain a loss.

    Args:
        cause: The cause.
        layer: Name of the layer.
        evidence: Facts that led to it.
        noise: Noise of the outputs from these parts alone.
        widen: Operators whose results may get more bits.
        weigh: Layers whose weights may get more bits.
        per_channel: Whether a scale per channel may help.
        layers: All layers concerned.
    """

    cause: Cause
    layer: str
    evidence: str
    noise: float
    widen: tuple[str, ...] = ()
    weigh: tuple[str, ...] = ()
    per_channel: bool = False
    layers: tuple[str, ...] = ()


def suspects(captured: Graph, canonical: Graph, graph: Graph, table: Table, inputs: Sequence[Tensor]) -> list[Suspect]:
    """The causes of the loss of a quantized graph, one for each layer, the largest noise first.

    Args:
        captured: The captured graph, with its batch norms.
        canonical: Graph before quantizers were inserted.
        graph: At stage QUANTIZED, calibrated.
        table: Measurements of all parts.
        inputs: Flat inputs.
    """
    found = [*_weak_concats(canonical, graph, inputs)]
    joined = {name for item in found for name in item.layers}
    rows = list(zip(table.parts, table.groups, strict=True))
    total = sum(min(part.noise, 1.0) for part, _ in rows)  # beyond 1 an output is lost
    dead = _dead_channels(captured)
    stream = [(part, group) for part, group in rows if _is_residual(group)]
    if stream and sum(part.noise for part, _ in stream) >= SHARE * total:
        found.append(_residual(stream))
    outliers = {item: part for part, group in rows if _has_outlier(part, group) for item in group.quantizers}
    by_layer: dict[str, list[Suspect]] = {}
    for part, group in rows:
        if part.noise < SHARE * total or not part.noise or _is_residual(group) or part.layer in joined:
            continue
        suspect = _weight(part, group, dead) if group.is_weight else _activation(part, group)
        origin = _origin(suspect, group, outliers)
        by_layer.setdefault(origin[0] if origin else part.layer, []).append(_blaming(suspect, origin))
    found += map(_merged, by_layer.values())
    return sorted(found, key=lambda item: -item.noise)


FIRST = (Cause.DEAD_CHANNEL, Cause.DEPTHWISE, Cause.FEW_BITS, Cause.SATURATION)
"""Causes that explain other causes of the same layer."""
OF_INPUT = (Cause.ROUNDING, Cause.WEIGHT_TAIL, Cause.ACTIVATION_OUTLIER)
"""Causes that an outlier channel in the input of a layer or function explains."""


def _has_outlier(part: Part, group: Group) -> bool:
    return not group.is_weight and part.spread >= SPREAD


def _origin(suspect: Suspect, group: Group, outliers: Mapping[Node, Part]) -> tuple[str, str] | None:
    """Layer and evidence of the outlier channel that explains a suspect; None without.

    An outlier passes through functions of single elements, and multiplies the rounding errors of the weight after it.
    """
    node, found = group.layer, None
    if suspect.cause not in OF_INPUT or node is None:
        return None
    while node is not None and (_is_function(node) or (found is None and group.is_weight)):
        quantizer = quantizer_of(node.inputs[0])
        if quantizer is None or quantizer not in outliers:
            break
        part = outliers[quantizer]
        found = part.layer, f"The largest channel is {part.spread:.0f} times the median, and all share one scale."
        node = quantizer.inputs[0].producer
        while node is not None and node.definition.has(Trait.ACTIVATION):
            node = node.inputs[0].producer
    return found


def _is_function(node: Node) -> bool:
    return node.definition.has(Trait.UNARY) or node.op == SCALED


def _blaming(suspect: Suspect, origin: tuple[str, str] | None) -> Suspect:
    """A suspect whose loss comes from an outlier channel of another layer."""
    if origin is None:
        return suspect
    layer, evidence = origin
    return dataclasses.replace(
        suspect,
        cause=Cause.ACTIVATION_OUTLIER,
        layer=layer,
        evidence=evidence,
        widen=tuple(dict.fromkeys((layer, *suspect.widen))),
        layers=tuple(dict.fromkeys((layer, *suspect.layers))),
    )


def _merged(items: Sequence[Suspect]) -> Suspect:
    """The suspects of one layer as one: the cause that explains the others, or that of the largest noise."""
    noisiest = max(items, key=lambda item: item.noise)
    first = [item for cause in FIRST for item in items if item.cause is cause]
    main = first[0] if first else noisiest
    return dataclasses.replace(
        main,
        noise=noisiest.noise,
        widen=tuple(dict.fromkeys(name for item in items for name in item.widen)),
        weigh=tuple(dict.fromkeys(name for item in items for name in item.weigh)),
        per_channel=any(item.per_channel for item in items),
        layers=tuple(dict.fromkeys(name for item in (main, *items) for name in item.layers)),
    )


def _weak_concats(canonical: Graph, graph: Graph, inputs: Sequence[Tensor]) -> Iterator[Suspect]:
    for part in weak_parts(canonical, graph, inputs):
        noise = 10.0 ** (-part.sqnr / 10.0)
        evidence = (
            f"The part {part.name} has {part.sqnr:.1f} dB on the common grid from {part.reach[0]:.4g} to "
            f"{part.reach[1]:.4g}, and {part.own:.1f} dB on a grid of its own."
        )
        if leads_out(part.join):
            evidence += " The model can also return the parts separately."
        operands = (value.producer.name for value in part.join.inputs if value.producer is not None)
        layers = tuple(dict.fromkeys((part.join.name, part.name, *operands)))
        yield Suspect(Cause.CONCAT, part.join.name, evidence, noise, widen=(part.join.name,), layers=layers)


def _is_residual(group: Group) -> bool:
    """Whether a part is a sum of two computed activations."""
    node = group.layer
    if group.is_weight or node is None or node.op not in ("add", "sub"):
        return False
    return not any(is_leaf(leaf_of(value)) for value in node.inputs)


def _residual(stream: Sequence[tuple[Part, Group]]) -> Suspect:
    """All additions of residual branches as one suspect, named by the worst."""
    worst, _ = max(stream, key=lambda item: item[0].noise)
    names = tuple(dict.fromkeys(part.layer for part, _ in stream))
    evidence = (
        f"{len(names)} additions round the sum to {worst.bits} bits; in the worst, the largest channel is "
        f"{worst.spread:.0f} times the median channel."
    )
    noise = sum(part.noise for part, _ in stream)
    operands = tuple(
        dict.fromkeys(
            name
            for _, group in stream
            if group.layer is not None
            for name in _operands(group.layer)
            if name not in names
        )
    )
    return Suspect(
        Cause.RESIDUAL,
        worst.layer,
        evidence,
        noise,
        widen=(*names, *operands),
        per_channel=True,
        layers=(worst.layer, *(name for name in names if name != worst.layer)),
    )


def _operands(node: Node) -> Iterator[str]:
    """Names of the operators whose results an addition reads."""
    for value in node.inputs:
        producer = value.producer
        while producer is not None and (is_quantizer(producer) or producer.definition.has(Trait.MOVEMENT)):
            producer = producer.inputs[0].producer
        if producer is not None and not producer.definition.has(Trait.LEAF):
            yield producer.name


def _weight(part: Part, group: Group, dead: Mapping[str, tuple[str, float]]) -> Suspect:
    """The cause of the loss of a weight."""
    cause, evidence = Cause.ROUNDING, f"{part.bits} bits for {part.name}."
    layers: tuple[str, ...] = (part.layer,)
    layer = Layer(group.layer) if group.layer is not None and is_weighted(group.layer) else None
    shared = not part.per_channel
    if part.layer in dead and shared and part.spread >= SPREAD:
        name, ratio = dead[part.layer]
        cause, layers = Cause.DEAD_CHANNEL, (name, part.layer)
        evidence = (
            f"A channel of {name} has {ratio:.1g} of the median variance, so that the largest channel of the folded "
            f"weight is {part.spread:.0f} times the median."
        )
    elif part.bits < 8 and not (shared and part.spread >= 4 * SPREAD):
        cause, evidence = Cause.FEW_BITS, f"The weight has {part.bits} bits."
    elif shared and layer is not None and layer.groups > 1 and layer.groups == layer.inputs:
        cause = Cause.DEPTHWISE
        evidence = f"The largest channel is {part.spread:.1f} times the median, and all share one scale."
    elif shared and part.spread >= SPREAD:
        cause = Cause.WEIGHT_OUTLIER
        evidence = f"The largest channel is {part.spread:.0f} times the median, and all share one scale."
    elif part.tail >= TAIL["weight"]:
        cause, evidence = Cause.WEIGHT_TAIL, f"The largest weight is {part.tail:.0f} times the root mean square."
    return Suspect(cause, layers[0], evidence, part.noise, weigh=(part.layer,), per_channel=shared, layers=layers)


def _activation(part: Part, group: Group) -> Suspect:
    """The cause of the loss of an activation."""
    cause, evidence = Cause.ROUNDING, f"{part.bits} bits for {part.name}."
    layers: tuple[str, ...] = (part.layer,)
    functions = [reader for item in group.quantizers for reader in _readers(item) if _saturates(reader)]
    largest = max(abs(end) for end in part.reach)
    if functions and largest > SATURATED:
        cause, layers = Cause.SATURATION, (part.layer, functions[0].name)
        step = (part.limits[1] - part.limits[0]) / (2**part.bits - 1)
        evidence = (
            f"{functions[0].name} reads numbers from {part.reach[0]:.4g} to {part.reach[1]:.4g} in steps of "
            f"{step:.2g}, but changes only between -8 and 8."
        )
    elif part.bits < 8:
        cause, evidence = Cause.FEW_BITS, f"The activation has {part.bits} bits."
    elif part.spread >= SPREAD:
        cause = Cause.ACTIVATION_OUTLIER
        evidence = f"The largest channel is {part.spread:.0f} times the median, and all share one scale."
    elif part.tail >= TAIL["activation"]:
        cause, evidence = Cause.ACTIVATION_TAIL, f"The largest number is {part.tail:.0f} times the root mean square."
    elif part.clipped >= CLIPPED:
        cause, evidence = Cause.CLIPPED, f"{100 * part.clipped:.1f} % of the numbers are outside of the range."
    widen = () if group.layer is None and group.quantizers[0].inputs[0].producer is None else (part.layer,)
    return Suspect(cause, layers[0], evidence, part.noise, widen=widen, layers=layers)


def _readers(quantizer: Node) -> Iterator[Node]:
    """The operators that read a quantizer, through operators that only move elements."""
    waiting = list(quantizer.output.users)
    while waiting:
        node = waiting.pop(0)
        if node.definition.has(Trait.MOVEMENT):
            waiting += [user for value in node.outputs for user in value.users]
        else:
            yield node


def _saturates(node: Node) -> bool:
    return node.op in SATURATING


def batch_norms(graph: Graph) -> list[Node]:
    """The batch norms of a captured graph whose statistics are tensors of the model, in order."""
    return [node for node in graph.nodes if node.op == "batch_norm" and all(map(is_leaf, node.inputs[3:]))]


def untrained(graph: Graph) -> Suspect | None:
    """Batch norms with the statistics of a new module."""
    found = [
        node
        for node in batch_norms(graph)
        if bool((leaf_tensor(node.inputs[3]) == 0.0).all() and (leaf_tensor(node.inputs[4]) == 1.0).all())
    ]
    if not found:
        return None
    names = tuple(node.name for node in found)
    evidence = (
        f"{len(names)} batch norms have mean 0 and variance 1. Load the weights of a trained model, or run "
        "model.train() on data before compiling."
    )
    return Suspect(Cause.UNTRAINED, names[0], evidence, float("inf"), layers=names)


def _dead_channels(graph: Graph) -> dict[str, tuple[str, float]]:
    """Batch norm and smallest relative variance, by the layer before a batch norm with a dead channel."""
    found = {}
    for node in batch_norms(graph):
        variance = leaf_tensor(node.inputs[4]).double()
        ratio = float(variance.min() / variance.median()) if float(variance.median()) > 0.0 else 1.0
        producer = node.inputs[0].producer
        if ratio < DEAD and producer is not None:
            found[producer.name] = (node.name, ratio)
    return found


def unlike_inputs(graph: Graph, calibrated: Sequence[Tensor], evaluated: Sequence[Sequence[Tensor]]) -> Suspect | None:
    """Calibration data whose numbers differ from those of the evaluation."""
    for index, value in enumerate(graph.inputs):
        if not value.type.dtype.is_float or not evaluated:
            continue
        seen = torch.cat([batch[index].double().flatten() for batch in evaluated])
        given = calibrated[index].double().flatten()
        deviation = max(float(seen.std(correction=0)), torch.finfo(torch.float32).tiny)
        moved = abs(float(given.mean() - seen.mean())) / deviation
        scaled = float(given.std(correction=0)) / deviation
        if moved > MOVED or scaled > STRETCHED or scaled * STRETCHED < 1.0:
            evidence = (
                f"The input {value.name} has mean {float(given.mean()):.4g} and deviation "
                f"{float(given.std(correction=0)):.4g} in the calibration data, but mean {float(seen.mean()):.4g} and "
                f"deviation {deviation:.4g} in the evaluation."
            )
            return Suspect(Cause.PREPROCESSING, value.name, evidence, float("inf"), layers=(value.name,))
    return None


def unlike_batch_norm(graph: Graph, inputs: Sequence[Tensor]) -> Suspect | None:
    """Calibration data on which the first batch norm has other statistics than it learned."""
    norms = batch_norms(graph)
    if not norms:
        return None
    seen: list[Tensor] = []

    def observe(value: object, tensor: Tensor) -> None:
        if value is norms[0].inputs[0]:
            seen.append(tensor)

    with torch.no_grad():
        interpret(graph, list(inputs), graph.module.tensors, observe=observe)
    channels = seen[0].double().movedim(1, 0).flatten(1)
    mean, variance = (leaf_tensor(value).double() for value in norms[0].inputs[3:5])
    deviation = variance.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
    moved = float(((channels.mean(1) - mean).abs() / deviation).median())
    scaled = float((channels.std(1, correction=0) / deviation).median())
    if moved <= MOVED and STRETCHED >= scaled >= 1.0 / STRETCHED:
        return None
    value = graph.inputs[0]
    evidence = (
        f"On the calibration data, channels of {norms[0].name} have {scaled:.2g} times the deviation that the batch "
        f"norm has learned, and means that are {moved:.2g} deviations away."
    )
    return Suspect(Cause.PREPROCESSING, value.name, evidence, float("inf"), layers=(value.name, norms[0].name))
