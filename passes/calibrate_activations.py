"""Find the range of each activation quantizer from data or from batch-norm statistics.

One run over the calibration batches serves all quantizers; only the statistics are kept, never the activations.
Quantizers that share a scale are calibrated on the union of their values; what a `maximum` or `minimum` alone reads, on
its result.

Logits may have a separate method. Logits are outputs of the model, directly or through ops that only move elements; a
softmax or an argmax usually reads them, so small logits do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from qcompiler.calibration.data_free import DEFAULT_INPUT_RANGE, Stop, describe
from qcompiler.calibration.distribution import Distribution
from qcompiler.calibration.gaussian import ALPHA
from qcompiler.calibration.histogram import DEFAULT_BINS
from qcompiler.calibration.joint_ranges import joint_ranges
from qcompiler.calibration.observers import Observer, check_options, check_single_values, make_observer, options_of
from qcompiler.calibration.runner import observe
from qcompiler.errors import CalibrationError, InputError, PassError
from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Graph, Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.types import Stage
from qcompiler.ops.layers import Layer, is_weighted
from qcompiler.ops.quantization import is_calibrated
from qcompiler.ops.quantizers import is_quantizer, leaf_tensor
from qcompiler.passes.base import Pass, PassContext
from qcompiler.passes.common.covered_values import covered
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.spec import QuantSpec
from qcompiler.validation.contracts import THRESHOLDS, Contract

Groups = dict[Value, list[Node]]
"""Scale -> the quantizers that share it."""
Range = tuple[torch.Tensor, torch.Tensor]


OBSERVED = Sentence("range-observed", "range {low:.6g} to {high:.6g} from {batches} batches by {method}")
ASSUMED = Sentence("range-without-data", "range {low:.6g} to {high:.6g} from {source}")
SHARED_GRID = Sentence("logits-share-grid", "it shares its grid with {others}, so {method} replaces {logits}")


@dataclass(frozen=True)
class CalibrateActivations(Pass):
    """Ranges of activations from data by a named method, or from batch-norm statistics without data.

    Args:
        method: `min_max`, `moving_average`, `percentile`, `mse`, `sqnr` or `entropy`; see `calibration.observers`. The
            default is the range of least error in which clipping weighs ten times, because clipping errors of one sign
            add up while rounding errors average out; decision 41.
        percentile: Percentage of the values below the upper end, for `percentile`.
        momentum: Weight of the past, for `moving_average`.
        bins: Bins of a histogram, for `percentile`, `mse`, `sqnr` and `entropy`.
        clipping: Weight of clipping errors, for `sqnr`.
        alpha: Half width, in standard deviations, of a range without data.
        logits: Method for outputs of the model with at least two classes, usually `cross_entropy`; None: as for other
            values. Classes are on axis 1, after a linear layer on the last axis. If an output shares its grid
            with other values, or with outputs of other classes, `method` finds the grid, and the record says so.
        rows: Logit vectors kept, for `cross_entropy`.

    Raises:
        InputError: The method is unknown or only for logits, or an option is out of range.

    Source: Nagel et al. 2021, arXiv:2106.08295, section 3.1 (range setting; alpha = 6 for batch-norm statistics).
    """

    name: ClassVar[str] = "calibrate-activations"
    stages: ClassVar[frozenset[Stage]] = frozenset({Stage.QUANTIZED})
    requires: ClassVar[frozenset[str]] = frozenset({"quantizers", "weight-ranges", "ties"})
    establishes: ClassVar[frozenset[str]] = frozenset({"activation-ranges"})
    method: str = "sqnr"
    percentile: float = 99.99
    momentum: float = 0.9
    bins: int = DEFAULT_BINS
    clipping: float = 10.0
    alpha: float = ALPHA
    logits: str | None = None
    rows: int = 4096

    def __post_init__(self) -> None:
        check_single_values(self.method)
        if not 0 < self.alpha < math.inf:
            raise InputError(f"alpha={self.alpha}", expected="a finite number above 0")
        for method in (self.method, self.logits):
            if method is not None:
                options_of(method)
        check_options(self.options())

    @property
    def contract(self) -> Contract:
        """Activations lose information."""
        return THRESHOLDS["calibrate"]

    def run(self, graph: Graph, context: PassContext) -> None:
        """See the module text.

        Raises:
            CalibrationError: The data is empty or not finite.
            InputError: A batch does not fit the graph.
            PassError: There is no data, and a value has no range without data; the message names the functions.
        """
        rewriter = context.rewriter(graph)
        groups: Groups = {}
        for node in graph.nodes:
            if is_quantizer(node) and not is_calibrated(leaf_tensor(node.inputs[1])):
                groups.setdefault(node.inputs[1], []).append(node)
        if context.calibration_data is None:
            ranges, sources = self._without_data(graph, context, groups)
            found = {scale: partial(ASSUMED, source=source) for scale, source in sources.items()}
        else:
            methods = {scale: self._method(group, rewriter) for scale, group in groups.items()}
            observers = {scale: self._observe(group, methods[scale]) for scale, group in groups.items()}
            shown = {covered(quantizer): observers[scale] for scale, group in groups.items() for quantizer in group}
            count, seen = observe(graph, context.calibration_data, shown, context.processes, context.progress)
            by_scale = {scale: seen[covered(group[0])] for scale, group in groups.items()}
            ranges = joint_ranges(by_scale)
            ranges |= {s: _at(groups[s], observer.range) for s, observer in by_scale.items() if s not in ranges}
            ranges = {scale: ranges[scale] for scale in groups}
            found = {scale: partial(OBSERVED, batches=count, method=method) for scale, method in methods.items()}
        for scale, (low, high) in ranges.items():
            quantizer = groups[scale][0]
            spec = quantizer.spec
            new_scale, zero_point = _at(groups[scale], partial(qparams_from_range, low, high, spec))
            rewriter.write_tensor(scale, new_scale)
            rewriter.write_tensor(quantizer.inputs[2], zero_point)
            for member in groups[scale]:
                rewriter.note(member, found[scale](low=float(low), high=float(high)))

    def _method(self, group: list[Node], rewriter: Rewriter) -> str:
        """The method for the quantizers of one scale."""
        shapes = {_classes(quantizer) for quantizer in group}
        outputs = [quantizer for quantizer in group if _classes(quantizer) is not None]
        if self.logits is None or not outputs:
            return self.method
        if len(shapes) == 1:
            return self.logits
        for quantizer in outputs:
            others = tuple(other.name for other in group if other is not quantizer)
            rewriter.refuse(quantizer, SHARED_GRID(others=others, method=self.method, logits=self.logits))
        return self.method

    def _observe(self, group: list[Node], method: str) -> Observer:
        classes = _classes(group[0])
        axis = classes[0] if classes is not None else 1
        return self._observer(method, group[0].spec, group[0].name, axis)

    def _observer(self, method: str, spec: QuantSpec, name: str, class_axis: int = 1) -> Observer:
        known = {**self.options(), "class_axis": class_axis}
        options = {key: known[key] for key in options_of(method) if key in known}
        return make_observer(method, spec, name, options=options)

    def _without_data(
        self, graph: Graph, context: PassContext, groups: Groups
    ) -> tuple[dict[Value, Range], dict[Value, str]]:
        """Ranges and their sources, by scale."""
        known = describe(graph, context.input_range or DEFAULT_INPUT_RANGE, self.alpha)
        found = {scale: [known[covered(quantizer)] for quantizer in group] for scale, group in groups.items()}
        stops = dict.fromkeys(item for items in found.values() for item in items if isinstance(item, Stop))
        if stops:
            raise _unknown(list(stops))
        ranges: dict[Value, Range] = {}
        sources: dict[Value, str] = {}
        for scale, items in found.items():
            spread = [item for item in items if isinstance(item, Distribution)]
            low, high = min(item.range[0] for item in spread), max(item.range[1] for item in spread)
            ranges[scale] = (torch.tensor(low), torch.tensor(high))
            basis = sorted(frozenset().union(*(item.basis for item in spread)))
            sources[scale] = " and ".join(basis) or "its own values"
        return ranges, sources


NAMED = 5
"""Largest number of nodes that an error lists."""


def _unknown(stops: list[Stop]) -> PassError:
    """All nodes after which no range is known, with their places."""
    reasons = [f"{stop.why} (at {stop.node.where})" for stop in stops[:NAMED]]
    more = f"; and {len(stops) - NAMED} more" if len(stops) > NAMED else ""
    return PassError(
        f"without calibration_data no range is known after {'this' if len(stops) == 1 else f'these {len(stops)}'}: "
        f"{'; '.join(reasons)}{more}",
        fix="Pass calibration_data.",
    )


def _classes(quantizer: Node) -> tuple[int, int] | None:
    """Axis and number of the classes of a quantizer of logits; None for other quantizers."""
    value = quantizer.inputs[0]
    maker = value.producer
    axis = Layer(maker).output_axis if maker is not None and is_weighted(maker) else 1
    count = value.type.shape[axis] if value.type.rank > 1 else 1
    if not isinstance(count, int) or count < 2 or not _leads_out(quantizer.output):
        return None
    return axis, count


def _leads_out(value: Value) -> bool:
    """Whether an output of the model is `value`, or `value` after ops that only move elements."""
    if value.producer is not None and value.producer.graph.is_output(value):
        return True
    # A concat changes the rows.
    movers = [user for user in value.users if user.definition.has(Trait.MOVEMENT) and len(user.inputs) == 1]
    return any(_leads_out(user.output) for user in movers)


def _at(group: list[Node], found: Callable[[], Range]) -> Range:
    """The result of `found`; its error is extended by the location.

    Raises:
        CalibrationError: `found` fails, for example for negative values on a grid without negative values.
    """
    try:
        return found()
    except CalibrationError as error:
        where = error.where or group[0].where
        raise CalibrationError(error.found, where=where, expected=error.expected, fix=error.fix) from None
