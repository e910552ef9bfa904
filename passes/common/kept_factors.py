"""Factors of channels that are kept because they lower the expected noise of the model, or because encodings give them.

A group keeps factors that lower its noise by `GAIN`, and the model keeps those of all groups if they lower the noise of
their layers and activations by `LEAST_DB`, or by `LEAST_DB_PER_CHANNEL`. Otherwise everything stays as it is, and the
record says why. The factors are whole sixteenths of an octave, which the records and the encodings carry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qcompiler.errors import EncodingsError
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.rewrite import Rewriter
from qcompiler.passes.base import PassContext
from qcompiler.passes.common.channel_facts import facts_of
from qcompiler.passes.common.channel_noise import ScaledLayer, Widths, places_of, rescale, whole_noise
from qcompiler.passes.common.equalization import Group, channels_of
from qcompiler.passes.common.weighed_factors import GAIN, GAIN_WITHOUT_DATA, OCTAVES, STEPS, factors_of, weighed
from qcompiler.quant.encoding import Encodings
from qcompiler.validation.noise import decibels

__all__ = ["LEAST_DB", "LITTLE_GAIN", "NO_GAIN", "SEVERAL_AXES", "SIXTEENTHS", "given_steps", "kept_steps", "written"]

SIXTEENTHS = "sixteenths"
"""Fact of the event of a rescaled node: log2 of the factors of all channels in sixteenths, with commas in between."""
NO_GAIN = Sentence("noise-not-lower", "other factors would not lower the expected noise")
LITTLE_GAIN = Sentence(
    "noise-hardly-lower", "all groups together would lower the expected noise by less than {decibels:g} dB"
)
SEVERAL_AXES = Sentence("channels-read-along-several-axes", "its channels are read along several axes")

LEAST_DB = 0.5
"""Expected gain of the whole model, dB, below which it stays as it is: new roundings may be less fortunate."""
LEAST_DB_PER_CHANNEL = 2.0
"""The same where weights have a scale per channel. Only activations can gain then, and other tensors than those of the
groups often have more noise: of 0.9 dB expected, resnet of the benchmarks loses 0.8 dB, and of 3 dB mobilenet_v3 gains
1.4 dB."""


def kept_steps(
    graph: Graph,
    context: PassContext,
    found: Sequence[Group],
    layers: Mapping[Node, ScaledLayer],
    widths: Widths,
    may_produce: Callable[[Node], object],
) -> dict[Node, Tensor]:
    """Factors that are kept, by producer, in sixteenths of an octave; applied to `layers`.

    Args:
        graph: A CANONICAL or QUANTIZED graph.
        context: Calibration data or not, and given encodings.
        found: Groups.
        layers: Their layers.
        widths: Grids of the target.
        may_produce: Predicate for nodes whose factors this search decides; given factors of other nodes are skipped.

    Raises:
        EncodingsError: The factors in the given encodings do not fit.
    """
    given = context.encodings
    if given is None or not given.producer.get("pipeline"):
        return _weigh(graph, context, found, layers, widths)
    # Encodings of this package belong to tensors with these factors.
    others = {node.name for node in graph.nodes if not may_produce(node)}
    steps = given_steps(given, found, others)
    for group in found:
        if group.producer in steps:
            readers = [(consumer, layers[consumer.node]) for consumer in group.consumers]
            rescale(layers[group.producer], readers, factors_of(steps[group.producer]))
    return steps


def written(steps: Tensor) -> dict[str, str]:
    """The fact of an event with these factors."""
    return {SIXTEENTHS: ",".join(map(str, steps.tolist()))}


def given_steps(given: Encodings, found: Sequence[Group], others: frozenset[str] | set[str]) -> dict[Node, Tensor]:
    """The factors in a file of encodings, by producer.

    Args:
        given: The encodings.
        found: Groups.
        others: Names of nodes that are skipped.

    Raises:
        EncodingsError: They are not one whole number per channel of a node that can be rescaled.
    """
    expected = "by layer, a whole number for each channel"
    try:
        texts = json.loads(given.producer.get("factors", "{}"))
        steps = {
            name: torch.tensor([int(item) for item in text.split(",")])
            for name, text in texts.items()
            if name not in others
        }
    except (ValueError, AttributeError, TypeError, OverflowError) as error:
        raise EncodingsError("the factors of the encodings cannot be read", expected=expected) from error
    known = {group.producer.name: group.producer for group in found}
    for name, item in steps.items():
        if name not in known or len(item) != channels_of(known[name]) or int(item.abs().max()) > STEPS * OCTAVES:
            raise EncodingsError(
                f"the encodings have {len(item)} factors for {name!r}",
                expected=expected,
                fix="Use encodings of this model.",
            )
    return {known[name]: item for name, item in steps.items()}


def _weigh(
    graph: Graph,
    context: PassContext,
    found: Sequence[Group],
    layers: Mapping[Node, ScaledLayer],
    widths: Widths,
) -> dict[Node, Tensor]:
    """The factors with the least expected noise, applied to `layers`."""
    rewriter = context.rewriter(graph)
    found = list(_along_one_axis(found, rewriter))
    facts = facts_of(graph, context, found, layers)
    gain = GAIN if context.calibration_data is not None else GAIN_WITHOUT_DATA
    before = whole_noise(found, layers, facts, widths)
    steps = weighed(found, layers, facts, widths, gain)
    after = whole_noise(found, layers, facts, widths)
    context.record.metrics.update(expected_db_before=decibels(before), expected_db_after=decibels(after))
    reason = NO_GAIN()
    least = LEAST_DB_PER_CHANNEL if widths.target.per_channel else LEAST_DB
    if steps and decibels(after) < decibels(before) + least:
        reason = LITTLE_GAIN(decibels=least)
        steps = {}
        for layer in layers.values():
            layer.reset()
    for group in found:
        if group.producer not in steps:
            rewriter.refuse(group.producer, reason)
    return steps


def _along_one_axis(found: Sequence[Group], rewriter: Rewriter) -> Iterator[Group]:
    """The groups whose activations are read along one channel axis each."""
    axes: dict[Value, int] = {}
    for group in found:
        if all(axes.setdefault(value, axis) == axis for value, axis in places_of(group)):
            yield group
        else:
            rewriter.refuse(group.producer, SEVERAL_AXES())
