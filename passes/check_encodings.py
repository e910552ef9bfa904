"""Check a graph against the encodings, before the other tensors are calibrated.

Every name must match a tensor, every named tensor must have its given scale and zero point, and without data every
tensor must have an encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.errors import EncodingsError, InputError
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.types import Stage
from qcompiler.ops.layers import Layer
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import grid, is_leaf, is_quantizer, leaf_tensor, quantizer_of, quantizers_reading
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.encoding_names import Names, Place, Role
from qcompiler.passes.common.fixed_grids import fixed_grid, is_dictated
from qcompiler.quant.encoding import BIAS_BITS, Encoding, Encodings
from qcompiler.targets import Target

SHOWN = 8
"""Largest number of names that a message lists."""


@dataclass(frozen=True)
class CheckEncodings(Pass):
    """Refuse encodings that cannot be applied.

    Args:
        unmatched: Treatment of unmatched names in the file: `error`, or `ignore`, which lists them in the record.

    Raises:
        EncodingsError: A name is unknown; a tensor has another grid, which the target fixes or derives; or encodings
            are missing without data.
        InputError: `unmatched` has another value.
    """

    name: ClassVar[str] = "check-encodings"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"encodings", "fixed-ranges", "ties"})
    unmatched: str = "error"

    def __post_init__(self) -> None:
        if self.unmatched not in ("error", "ignore"):
            raise InputError(f"unmatched={self.unmatched!r}", expected="error or ignore")

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text."""
        target = context.require_target(self.name)
        encodings = context.require_encodings(self.name)
        names = Names(graph, encodings.by_name)
        places = {item.name: names.find(item.name) for item in encodings.tensors}
        unknown = [name for name, found in places.items() if not found]
        if encodings.own:
            self._check_own(graph, encodings, places, context)
            return
        if unknown and self.unmatched == "error":
            listed = _listed([f"{name!r} ({names.explain(name)})" for name in unknown])
            raise EncodingsError(
                f"{len(unknown)} of {len(encodings.tensors)} encodings match no tensor: {listed}",
                expected="names from the ONNX file of an artifact, from the model, or of its modules",
                fix="Correct the names, or ignore the encodings: unmatched_encodings='ignore', or --ignore-unmatched.",
            )
        missing = [node.name for node in graph.nodes if _is_open(node)]
        if missing and context.calibration_data is None:
            raise EncodingsError(
                f"{len(missing)} tensors have no encoding, and there is no calibration_data: {_listed(missing)}",
                expected="an encoding for each tensor, or calibration_data",
                fix="Pass calibration_data, from which the ranges of these tensors are found.",
            )
        for item in encodings.tensors:
            for place in places[item.name]:
                _check(item, place, target)
        metrics = context.record.metrics
        metrics.update({"given": len(encodings.tensors) - len(unknown), "calibrated": len(missing)})
        if unknown:
            metrics["unmatched"] = _listed(unknown)

    def _check_own(
        self, graph: Graph, encodings: Encodings, places: Mapping[str, list[Place]], context: PassContext
    ) -> None:
        """Check the quantizers of a model that has been quantized already, and list all that the program lacks."""
        target = context.require_target(self.name)
        lacking = {}
        for item in encodings.tensors:
            for place in places[item.name]:
                try:
                    _check(item, place, target)
                except EncodingsError as error:
                    reason = _reason(item, place, target) or error
                    found = reason.found.partition(" has ")[2]
                    lacking[item.name] = f"{item.name!r} ({found}; expected {reason.expected})"
        if lacking and self.unmatched == "error":
            raise EncodingsError(
                f"{target.name} lacks {len(lacking)} of the {len(encodings.tensors)} grids of the quantized model: "
                f"{_listed(list(lacking.values()))}",
                expected="a target with these grids",
                fix="Choose another target, or let the ranges of these tensors be found again: "
                "unmatched_encodings='ignore', or --ignore-unmatched.",
            )
        added = [node.name for node in graph.nodes if _is_open(node)]
        if added and context.calibration_data is None:
            raise EncodingsError(
                f"{len(added)} tensors have no quantizer in the model, or one that {target.name} lacks, and there is "
                f"no calibration_data: {_listed(added)}",
                expected="calibration_data, from which the ranges of these tensors are found",
                fix="Pass calibration_data.",
            )
        given = encodings.by_name
        nodes = {node.name: node for node in graph.nodes}
        lost = [name for name in given if not places[name] and not _repeats(nodes.get(name), given)]
        metrics = context.record.metrics
        metrics.update({"given": len(given) - len(lost) - len(lacking), "calibrated": len(added)})
        metrics.update({"added": _listed(added), "lacking": _listed(list(lacking.values())), "lost": _listed(lost)})


def _reason(item: Encoding, place: Place, target: Target) -> EncodingsError | None:
    """The reason why the target cannot have a grid at a place."""
    for quantizer in _quantizers(place):
        spec = quantizer.spec
        channels = None if spec.axis is None else quantizer.inputs[0].type.size(spec.axis)
        try:
            item.on(spec, channels, target.name)
        except EncodingsError as error:
            return error
    return None


def _repeats(node: Node | None, given: Mapping[str, Encoding]) -> bool:
    """Whether the activation after a node has the same grid."""
    if node is None or len(node.output.users) != 1:
        return False
    following = given.get(next(iter(node.output.users)).name)
    return following is not None and following.same_grid(given[node.name])


def _is_open(node: Node) -> bool:
    """Whether `node` is a quantizer of an activation without a range."""
    return is_quantizer(node) and not is_leaf(node.inputs[0]) and not is_calibrated(leaf_tensor(node.inputs[1]))


def _listed(items: list[str]) -> str:
    rest = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + rest


def _check(item: Encoding, place: Place, target: Target) -> None:
    """Refuse a tensor whose grid differs from that of `item`."""
    if place.role is Role.BIAS:
        _check_bias(item, place.node)
        return
    candidates = _quantizers(place)
    if any(_is_on(quantizer, item, target) for quantizer in candidates):
        return
    quantizer = candidates[0] if candidates else None
    fixed = None if quantizer is None else fixed_grid(quantizer, target)
    if quantizer is not None and fixed is not None and is_dictated(quantizer, target):
        half = item.half if target.activation_spec().signed else 0
        raise item.misfit(
            f"scale {item.scale[0]!r} and zero point {item.zero_point[0]}",
            f"scale {fixed.scale!r} and zero point {fixed.zero_point + half}, which {target.name} fixes there",
        )
    raise item.misfit(
        f"scale {item.scale[0]!r} and zero point {item.zero_point[0]}",
        "the grid of the input, because the operator only moves elements" if quantizer is not None else "a quantizer",
    )


def _quantizers(place: Place) -> list[Node]:
    """The quantizers whose grid a tensor may have."""
    node = place.node
    if place.role in (Role.ACTIVATION, Role.PARAMETER):
        return [node]
    own = quantizers_reading(node.output)
    source = quantizer_of(node.inputs[0])
    found = [] if source is None or place.role is Role.AFTER else [source]
    return found if place.role is Role.AVERAGE else found + own


def _is_on(quantizer: Node, item: Encoding, target: Target) -> bool:
    if not is_calibrated(leaf_tensor(quantizer.inputs[1])):
        return False
    params, spec = grid(quantizer)
    channels = int(params.scale.shape[0]) if params.scale.dim() else None
    try:
        scale, zero_point = item.on(spec, channels, target.name)
        if spec.block and channels is not None:
            own = leaf_tensor(quantizer.inputs[3])
            if not torch.equal(item.factors_on(spec, (channels, own.shape[1]), target.name), own):
                return False
    except EncodingsError:
        return False
    return torch.equal(scale, params.scale) and torch.equal(zero_point, params.zero_point)


def _check_bias(item: Encoding, layer: Node) -> None:
    """Check a bias, whose scale is the product of the scales of input and weight."""
    source, weight = quantizer_of(layer.inputs[0]), Layer(layer).quantizer
    if item.bits != BIAS_BITS or any(zero != item.half for zero in item.zero_point):
        raise item.misfit(
            f"{item.bits} bits and zero point {item.zero_point[0]}",
            f"{BIAS_BITS} signed bits with zero point 0: a bias is added to the accumulator",
        )
    if source is None or weight is None:
        return
    factors = [leaf_tensor(quantizer.inputs[1]) for quantizer in (source, weight)]
    open_ones = [q.name for q, factor in zip((source, weight), factors, strict=True) if not is_calibrated(factor)]
    if open_ones:
        raise EncodingsError(
            f"the bias {item.name!r} has an encoding, but {' and '.join(open_ones)} have none",
            expected="encodings of input and weight, because the bias scale is the product of their scales",
            fix="Remove the encoding of the bias.",
        )
    expected = (factors[0] * factors[1]).reshape(-1)
    given = torch.tensor(item.scale, dtype=torch.float32)
    if given.numel() not in (1, expected.numel()) or not torch.equal(given.expand_as(expected), expected):
        raise item.misfit(
            f"the scale {item.scale[0]!r}",
            f"{float(expected[0])!r}, the product of the scales of input and weight",
            fix="Remove the encoding of the bias.",
        )
