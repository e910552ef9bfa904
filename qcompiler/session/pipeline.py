"""The known passes, the default pipelines, and pipelines as text.

canonicalize, fold-batch-norm, calibrate-activations{method=percentile, percentile=99.9}
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from qcompiler.errors import PipelineError
from qcompiler.passes.absorb_bias import AbsorbBias
from qcompiler.passes.adaptive_rounding.adaround import AdaRound
from qcompiler.passes.apply_encodings import ApplyEncodings
from qcompiler.passes.base import Pass
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.check_encodings import CheckEncodings
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.passes.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.external_types import ExternalTypes
from qcompiler.passes.fit_biases import FitBiases
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.fold_constants import FoldConstants
from qcompiler.passes.fold_normalization import FoldNormalization
from qcompiler.passes.fuse_activations import FuseActivations
from qcompiler.passes.fuse_requantization import FuseRequantization
from qcompiler.passes.insert_gradient_quantizers import InsertGradientQuantizers
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.lower_to_integer import LowerToInteger
from qcompiler.passes.merge_branches import MergeBranches
from qcompiler.passes.partition import Partition
from qcompiler.passes.replace_relu6 import ReplaceRelu6
from qcompiler.passes.smooth_activations import SmoothActivations
from qcompiler.passes.start_candidate import StartCandidate
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.passes.weigh_candidates import WeighCandidates
from qcompiler.session import plugins
from qcompiler.targets import Target

PASSES: dict[str, type[Pass]] = {
    item.name: item
    for item in (
        Canonicalize,
        EliminateDeadCode,
        FoldConstants,
        FoldBatchNorm,
        MergeBranches,
        FoldNormalization,
        FuseActivations,
        ReplaceRelu6,
        CrossLayerEqualization,
        SmoothActivations,
        AbsorbBias,
        Partition,
        InsertQuantizers,
        ApplyEncodings,
        FixRanges,
        UnifyScales,
        CheckEncodings,
        StartCandidate,
        CalibrateWeights,
        AdaRound,
        CorrectBias,
        CalibrateActivations,
        FitBiases,
        WeighCandidates,
        InsertGradientQuantizers,
        FuseRequantization,
        ExternalTypes,
        LowerToInteger,
    )
}
"""The passes of this package by name, in the order in which the default pipeline first runs them."""


def structural_passes() -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """The passes that need no data: up to a CANONICAL graph, and the placement of islands and quantizers."""
    front = (
        Canonicalize(),
        EliminateDeadCode(),
        FoldConstants(),
        FoldBatchNorm(),
        MergeBranches(),
        FoldNormalization(),
        FuseActivations(),
        EliminateDeadCode(),
    )
    return front, (Partition(), InsertQuantizers())


_ACTIVATIONS = {
    "fast": CalibrateActivations(method="min_max"),
    "default": CalibrateActivations(),
    "best": CalibrateActivations(clipping=3.0),
}
"""Calibration of activations with at least `FEW_BITS` bits, by effort; `best` also weighs the one of `default`."""

FEW_WEIGHT_BITS = 8
"""Below this weight width min-max ranges lose too much to rounding, and rounding shifts the mean of a layer."""

VERY_FEW_WEIGHT_BITS = 4
"""Below this weight width the rounding of small weights costs more than the clipping of large ones."""

WEIGHT_CLIPPING = 10.0
"""How much more a clipped weight counts than a rounded one in a range for all channels, from `VERY_FEW_WEIGHT_BITS` on:
clipping shrinks all large weights, so that its errors add up in a result, and no bias corrects them. In a range per
channel even rounding the largest weight down costs more than a smaller step gains: decision 41."""

FEW_BITS = 6
"""Below this activation width the rounding error of activations is no longer small next to that of weights."""


def quantization_passes(
    effort: str = "default", *, per_channel: bool = False, weight_bits: int = 8, activation_bits: int = 8
) -> tuple[Pass, ...]:
    """The passes from a captured graph to a calibrated QUANTIZED graph.

    Args:
        effort: See `qcompiler.compile`.
        per_channel: Whether weights have a scale per channel, which makes equalization needless.
        weight_bits: Bits of the narrowest weights. With fewer than `FEW_WEIGHT_BITS`, `default` corrects biases, and
            gives weights with one scale the ranges of least error, as `best` does with any.
        activation_bits: Bits of most activations. With fewer than `FEW_BITS` all but `fast` give them the ranges of
            least error; `best` does so before weights are rounded, so that these make up for the rounding of
            activations too.
    """
    rounded = _ranges(effort, per_channel, weight_bits, activation_bits)
    if effort == "best":
        plain = _ranges("default", per_channel, weight_bits, activation_bits)
        # The result of `default` is also a candidate, so `best` is never worse.
        rounded = (StartCandidate(), *rounded, StartCandidate(), *plain, WeighCandidates())
    return _quantization_passes(effort, per_channel, rounded)


def _quantization_passes(effort: str, per_channel: bool, ranges: tuple[Pass, ...]) -> tuple[Pass, ...]:
    front, placement = structural_passes()
    # Activations have one scale per tensor even if weights have one per channel, so equalization helps in both cases.
    equalized = (
        *(() if per_channel else (ReplaceRelu6(),)),
        CrossLayerEqualization(factors="noise"),
        SmoothActivations(factors="noise"),
    )
    return (
        *front,
        *(() if effort == "fast" else equalized),
        *placement,
        FixRanges(),
        UnifyScales("ranges" if effort == "fast" else "noise"),
        *ranges,
        FuseRequantization(),
    )


def _ranges(effort: str, per_channel: bool, weight_bits: int, activation_bits: int) -> tuple[Pass, ...]:
    """The passes that find ranges, round weights and correct biases."""
    center = CorrectBias("center")
    few_bits = effort != "fast" and activation_bits < FEW_BITS
    activations = CalibrateActivations(method="mse") if few_bits else _ACTIVATIONS[effort]
    few_weight_bits = effort != "fast" and weight_bits < FEW_WEIGHT_BITS
    weights = CalibrateWeights(method="mse") if few_weight_bits or effort == "best" else CalibrateWeights()
    if effort == "default" and VERY_FEW_WEIGHT_BITS <= weight_bits < FEW_WEIGHT_BITS:
        weights = CalibrateWeights() if per_channel else CalibrateWeights(method="sqnr", clipping=WEIGHT_CLIPPING)
    if effort == "best" and few_bits:
        return (weights, activations, FitBiases(), AdaRound())
    if effort == "best":
        return (weights, AdaRound(), center, activations, FitBiases())
    if few_weight_bits:
        return (weights, CorrectBias(), activations, FitBiases())
    return (weights, center, activations, FitBiases())


def default_pipeline(
    effort: str = "default", *, per_channel: bool = False, weight_bits: int = 8, activation_bits: int = 8
) -> tuple[Pass, ...]:
    """The passes from a captured graph to an INTEGER graph.

    Args:
        effort: See `qcompiler.compile`.
        per_channel: See `quantization_passes`.
        weight_bits: See `quantization_passes`.
        activation_bits: See `quantization_passes`.
    """
    quantized = quantization_passes(
        effort, per_channel=per_channel, weight_bits=weight_bits, activation_bits=activation_bits
    )
    return (*quantized, LowerToInteger(), EliminateDeadCode())


def model_as_it_is(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """`passes` without those that rescale or merge tensors of the model, because given ranges describe the original."""
    return tuple(item for item in passes if not isinstance(item, _CHANGES_TENSORS))


def quantized_model_passes(effort: str = "default") -> tuple[Pass, ...]:
    """The passes for a model that has been quantized already: nothing rounds or corrects its tensors once more.

    Args:
        effort: See `qcompiler.compile`; it selects the ranges of tensors without a grid.
    """
    front, placement = structural_passes()
    ranges = (CalibrateWeights(), _ACTIVATIONS[effort], FitBiases())
    return model_as_it_is(
        (*front, *placement, FixRanges(), UnifyScales("ranges"), *ranges, FuseRequantization(), LowerToInteger(),
         EliminateDeadCode())
    )  # fmt: skip


_CHANGES_TENSORS = (CrossLayerEqualization, SmoothActivations, ReplaceRelu6, MergeBranches, FoldNormalization)


def with_encodings(passes: Sequence[Pass], unmatched: str = "error") -> tuple[Pass, ...]:
    """`passes` with given encodings applied after `insert-quantizers` and checked after `unify-scales`.

    Args:
        passes: Passes; existing passes that apply or check encodings are replaced.
        unmatched: Treatment of unmatched encodings; see `CheckEncodings`.
    """
    result: list[Pass] = []
    for item in without_encodings(passes):
        result.append(item)
        if isinstance(item, InsertQuantizers):
            result.append(ApplyEncodings())
        elif isinstance(item, UnifyScales):
            result.append(CheckEncodings(unmatched))
    return tuple(result)


def without_encodings(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """`passes` without those that apply and check given encodings."""
    return tuple(item for item in passes if not isinstance(item, ApplyEncodings | CheckEncodings))


Io: TypeAlias = typing.Literal["float", "uint8", "int8"]


def with_external_types(passes: Sequence[Pass], io: Io) -> tuple[Pass, ...]:
    """`passes` with inputs and outputs of the type `io`, set before lowering; as they are for "float".

    Args:
        passes: Passes up to an INTEGER graph.
        io: Type at inputs and outputs.
    """
    if io == "float":
        return tuple(passes)
    result: list[Pass] = []
    for item in passes:
        if isinstance(item, LowerToInteger):
            result.append(ExternalTypes(io))
        if isinstance(item, UnifyScales):
            result.append(dataclasses.replace(item, parts=False))  # outputs have codes
        elif not isinstance(item, ExternalTypes):
            result.append(item)
    return tuple(result)


def lowering_passes() -> tuple[Pass, ...]:
    """The passes from a calibrated QUANTIZED graph to an INTEGER graph."""
    return (FitBiases(), FuseRequantization(), LowerToInteger(), EliminateDeadCode())


LEARNED_FACTS = frozenset({"quantizers", "fixed-ranges", "ties", "weight-ranges", "activation-ranges"})
"""Facts that hold for a trained graph before `lowering_passes`."""


def training_passes(effort: str = "default", *, target: Target) -> tuple[Pass, ...]:
    """The passes from a captured graph to a calibrated QUANTIZED graph for training.

    These are the passes of `quantization_passes`, but weights get least-error ranges, the best start for training with
    few bits, and equalization makes weights of one size, in which a step of an optimizer means the same everywhere
    (decision 53): with a scale per channel it has nothing to do. For a simulation target nothing is equalized.

    Args:
        effort: Effort; see `qcompiler.compile`; `fast` keeps min-max ranges.
        target: Target of the graph.
    """
    if target.simulation is not None:
        front, placement = structural_passes()
        ranges: tuple[Pass, ...] = (CalibrateWeights(method="mse"), CalibrateActivations(method="mse"))
        return tuple(for_training((*front, *placement, FixRanges(), UnifyScales(), *ranges)))
    # Training changes the weights of any start, so candidates are not compared.
    ranges = _ranges(effort, target.per_channel, target.weight_bits, target.activation_bits)
    passes = _quantization_passes(effort, target.per_channel, ranges)
    if effort == "default":
        passes = tuple(
            CalibrateWeights(method="mse") if isinstance(item, CalibrateWeights) else item for item in passes
        )
    return tuple(for_training(_of_one_size(passes, per_channel=target.per_channel)))


def _of_one_size(passes: typing.Iterable[Pass], *, per_channel: bool) -> Iterator[Pass]:
    """`passes` with the equalization of weight ranges, or without one where each channel has a scale."""
    for item in passes:
        if not isinstance(item, CrossLayerEqualization):
            yield item
        elif not per_channel:
            yield CrossLayerEqualization(factors="ranges")


def quantized_training_passes(target: Target) -> tuple[Pass, ...]:
    """The passes from a captured graph to a calibrated QUANTIZED graph for quantized training.

    Nothing is rescaled or corrected: training may start from random weights, whose ranges mean nothing yet.

    Args:
        target: Target of the graph.
    """
    front, placement = structural_passes()
    ranges = (CalibrateWeights(), CalibrateActivations(method="min_max"))
    return tuple(for_training(model_as_it_is((*front, *placement, FixRanges(), UnifyScales("ranges"), *ranges))))


def for_training(passes: typing.Iterable[Pass]) -> Iterator[Pass]:
    """Adapt passes for training: dropouts stay, and neither activations nor normalizations are fused.

    The limits of a fused activation are codes, whose real values would change with a learned scale. A layer with a
    folded normalization would learn weights on another scale than the model's.
    """
    for item in passes:
        if isinstance(item, LowerToInteger | ExternalTypes):
            return
        if isinstance(item, Canonicalize):
            yield dataclasses.replace(item, keep_dropout=True)
        elif not isinstance(item, FuseRequantization | FoldNormalization):
            yield item


def known_passes() -> dict[str, type[Pass]]:
    """All passes by name: built-in passes, then those of plugins.

    Raises:
        PluginError: A plugin is broken, or claims a name that is taken.
    """
    return {**PASSES, **plugins.load_passes(PASSES)}


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """Passes from text; `print_pipeline` gives text that parses back.

    Args:
        text: Names separated by commas, each with options in braces where they differ from the defaults. The name
            `default` stands for the default pipeline.

    Raises:
        PipelineError: A name or an option is unknown, or a value does not fit; the position is given.
    """
    known = known_passes()
    passes: list[Pass] = []
    for position, name, options in _items(text):
        where = f"column {position + 1} of the pipeline"
        if name == "default" and not options:
            passes += default_pipeline()
            continue
        if name not in known:
            near = difflib.get_close_matches(name, [*known, "default"], n=3)
            hint = f"Did you mean {', '.join(near)}?" if near else f"The known passes are {', '.join(known)}."
            raise PipelineError(f"there is no pass {name!r}", where=where, fix=hint)
        passes.append(_build(known[name], options, where))
    if not passes:
        raise PipelineError("the pipeline is empty", expected="at least one pass")
    return tuple(passes)


def print_pipeline(passes: typing.Iterable[Pass]) -> str:
    """The pipeline as text."""
    return ", ".join(map(str, passes))


_ITEM = re.compile(r"\s*(?P<name>[A-Za-z][\w-]*)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?P<end>,|$)")


def _items(text: str) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Position, name and options of each pass."""
    position = 0
    while position < len(text) or text[:position].rstrip().endswith(","):
        match = _ITEM.match(text, position)
        if match is None:
            raise PipelineError(
                f"the pipeline cannot be read from {text[position : position + 20]!r} on",
                where=f"column {position + 1}",
                expected="name, name{option=value, option=value}, ...",
            )
        options: dict[str, str] = {}
        for part in filter(None, (piece.strip() for piece in (match["options"] or "").split(","))):
            key, equals, value = part.partition("=")
            if not equals:
                raise PipelineError(f"the option {part!r} has no value", where=match["name"], expected="option=value")
            options[key.strip()] = value.strip()
        yield match.start("name"), match["name"], options
        position = match.end()


def _build(cls: type[Pass], options: dict[str, str], where: str) -> Pass:
    hints = typing.get_type_hints(cls)
    fields = {field.name.replace("_", "-"): field.name for field in dataclasses.fields(cls)}
    values: dict[str, object] = {}
    for key, text in options.items():
        name = fields.get(key.replace("_", "-"))
        if name is None:
            expected = f"one of {', '.join(fields)}" if fields else "no options"
            raise PipelineError(f"{cls.name} has no option {key!r}", where=where, expected=expected)
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(None if text == "None" else text)
        except ValidationError as error:
            raise PipelineError(
                f"the option {key} of {cls.name} is {text!r}", where=where, expected=error.errors()[0]["msg"]
            ) from None
    return cls(**values)
