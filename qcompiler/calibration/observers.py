"""Observers: mergeable summaries of the values of a tensor, and ranges computed from the summaries.

An observer is a summary S of batches with three rules: S(batch), how two summaries combine, and the range of a summary.
Combining is exact, associative and commutative and S(x + y) = combine(S(x), S(y)), so the result depends neither on the
order of the batches nor on how they were split or spread over processes; see each class for its reason.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Self

import torch
from torch import Tensor

from qcompiler.calibration.estimators import check_percent, cross_entropy, entropy, mse, sparse_percentile, sqnr
from qcompiler.calibration.histogram import DEFAULT_BINS, Histogram, check_bins
from qcompiler.errors import CalibrationError, InputError
from qcompiler.quant.spec import QuantSpec

__all__ = [
    "OBSERVERS",
    "CrossEntropyObserver",
    "EntropyObserver",
    "HistogramObserver",
    "MSEObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "Observer",
    "PercentileObserver",
    "SQNRObserver",
    "check_single_values",
    "make_observer",
    "options_of",
]

State = dict[str, Tensor]
"""A summary as named CPU tensors, empty before the first value. Always holds `count`, and `low` with channels last."""


@dataclass(eq=False)
class Observer(ABC):
    """Collects one tensor's values batch by batch.

    Args:
        name: Name of the tensor, for messages.
        axis: Channel axis, from either end, with one range per index; None for one range of the whole tensor.
    """

    name: str
    axis: int | None = None
    _state: State = field(default_factory=dict, init=False, repr=False)

    @property
    def count(self) -> int:
        """Number of elements seen."""
        return int(self._state["count"]) if self._state else 0

    def update(self, x: Tensor, *, index: int | None = None) -> None:
        """Take in one batch; an empty one changes nothing.

        Args:
            x: Float tensor of any shape and device. It is read as float32.
            index: Position of the batch in the data set, from 0. Only observers that weigh batches by position read it.

        Raises:
            CalibrationError: A value is NaN or infinite, or the number of channels changed.
            InputError: `x` is not a float tensor or has no such axis.
        """
        rows = self._rows(x, index)
        if rows.numel() > 0:
            summary = {"count": torch.tensor(rows.numel()), **self._summarize(rows, index)}
            self._state = self._combined(self._state, summary)

    def merge(self, other: Observer) -> Self:
        """An observer of the combined data of both.

        Args:
            other: Observer of the same tensor with the same options.

        Returns:
            A new observer; both operands are unchanged.

        Raises:
            CalibrationError: The numbers of channels differ.
            InputError: The observers are of different kinds, tensors or options.
        """
        if type(self) is not type(other) or _options(self) != _options(other):
            raise InputError(
                f"a merge of {self} with {other}",
                expected="observers of the same kind and tensor, with the same options",
            )
        return self.from_state(self._combined(self._state, other.state()))

    def range(self) -> tuple[Tensor, Tensor]:
        """The range to quantize.

        Returns:
            low and high: float32, 0-D without an axis, else [C].

        Raises:
            CalibrationError: Nothing was observed.
        """
        if not self._state:
            raise CalibrationError(
                f"no values of '{self.name}' were observed",
                expected="at least one calibration batch",
                fix="Check that the calibration data is not empty",
            )
        low, high = self._estimate(self._state)
        return (low.squeeze(0), high.squeeze(0)) if self.axis is None else (low, high)

    def state(self) -> State:
        """The summary as named tensors, for saving; empty before the first value."""
        return dict(self._state)

    def from_state(self, state: State) -> Self:
        """An observer configured as this one that has seen what `state` describes."""
        loaded = replace(self)
        loaded._state = dict(state)  # noqa: SLF001 - an object of this very class
        return loaded

    @abstractmethod
    def _summarize(self, rows: Tensor, index: int | None, /) -> State:
        """Summary of one batch: float32 [C, samples, values of a sample], finite, not empty."""

    @abstractmethod
    def _combine(self, a: State, b: State, /) -> State:
        """Summary of the data of two summaries, `count` aside."""

    @abstractmethod
    def _estimate(self, state: State, /) -> tuple[Tensor, Tensor]:
        """low and high, float32 [C]."""

    def _combined(self, a: State, b: State) -> State:
        if not a or not b:
            return a or b
        if a["low"].shape[-1] != b["low"].shape[-1]:
            raise CalibrationError(
                f"'{self.name}' had {a['low'].shape[-1]} channels on axis {self.axis} and now has {b['low'].shape[-1]}",
                expected="the same number in every batch",
                fix="Pass the channel axis, not the axis of the batch or of a variable length",
            )
        return {"count": a["count"] + b["count"], **self._combine(a, b)}

    def _rows(self, x: Tensor, index: int | None) -> Tensor:
        """Channels first, then the samples, the rest flattened: float32 [C, N, M]."""
        if not x.is_floating_point():
            raise InputError(f"values of type {x.dtype} for '{self.name}'", expected="a float tensor")
        if self.axis is not None and not -x.dim() <= self.axis < x.dim():
            raise InputError(
                f"axis {self.axis} for '{self.name}' of shape {list(x.shape)}", expected="an existing axis"
            )
        if x.numel() == 0:
            return x
        x = x.detach().to(torch.float32)
        x = x.unsqueeze(0) if self.axis is None else x.movedim(self.axis, 0)
        # If the channels are on the first axis, as in a weight, there are no samples.
        has_samples = x.dim() > 2 and self.axis != 0
        rows = x.reshape(len(x), x.shape[1] if has_samples else 1, -1)
        # Minimum and maximum are NaN or infinite if any value is: one pass and no mask for healthy data.
        if not all(math.isfinite(float(end)) for end in torch.aminmax(rows)):
            nan, infinite = int(torch.isnan(rows).sum()), int(torch.isinf(rows).sum())
            batch = "a batch" if index is None else f"batch {index}"
            raise CalibrationError(
                f"{nan} NaN and {infinite} infinite values among the {rows.numel()} of {batch} of '{self.name}'",
                expected="finite float32 values",
                fix="Check the calibration data and the float model on it",
            )
        return rows


@dataclass(eq=False)
class MinMaxObserver(Observer):
    """Smallest and largest value. Exact: minimum and maximum are associative and commutative and do not round."""

    def _summarize(self, rows: Tensor, _index: int | None, /) -> State:
        low, high = _extremes(rows)
        return {"low": low, "high": high}

    def _combine(self, a: State, b: State, /) -> State:
        return {"low": torch.minimum(a["low"], b["low"]), "high": torch.maximum(a["high"], b["high"])}

    def _estimate(self, state: State, /) -> tuple[Tensor, Tensor]:
        return state["low"], state["high"]


@dataclass(eq=False)
class MovingAverageObserver(Observer):
    """Exponential average of the batches' extremes: r_0 = e_0, r_i = momentum * r_(i-1) + (1 - momentum) * e_i.

    The average itself depends on the order of the batches. So that the result does not depend on the order of the
    *calls*, the extremes e_i of every batch are kept under the batch's index, and averaged in the order of the indices
    when the range is asked for. Parts of a batch under one index join by minimum and maximum. Memory: two float32 per
    batch and channel, the only observer that grows with the number of batches.

    Args:
        momentum: Weight of the past, in [0, 1).

    Raises:
        InputError: `momentum` is out of range.

    Source:
        The running estimator of the experiments of Nagel et al. 2021, arXiv:2106.08295.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise InputError(f"momentum={self.momentum}", expected="a momentum in [0, 1)")

    def _summarize(self, rows: Tensor, index: int | None, /) -> State:
        if index is None or index < 0:
            raise InputError(
                f"the moving average of '{self.name}' has a batch with index {index}",
                expected="the position of the batch in the data set, starting at 0",
                fix="Call update(x, index=i)",
            )
        low, high = _extremes(rows)
        return {"index": torch.tensor([index]), "low": low.unsqueeze(0), "high": high.unsqueeze(0)}

    def _combine(self, a: State, b: State, /) -> State:
        low, high = torch.cat([a["low"], b["low"]]), torch.cat([a["high"], b["high"]])
        index, place = torch.unique(torch.cat([a["index"], b["index"]]), sorted=True, return_inverse=True)
        place = place.unsqueeze(1).expand_as(low)
        empty = low.new_empty(len(index), low.shape[1])
        return {
            "index": index,
            "low": empty.scatter_reduce(0, place, low, "amin", include_self=False),
            "high": empty.scatter_reduce(0, place, high, "amax", include_self=False),
        }

    def _estimate(self, state: State, /) -> tuple[Tensor, Tensor]:
        ends = torch.stack([state["low"], state["high"]], dim=1).to(torch.float64)
        average = ends[0]
        for batch in ends[1:]:
            average = self.momentum * average + (1.0 - self.momentum) * batch
        low, high = average.to(torch.float32)
        return low, high


@dataclass(eq=False)
class HistogramObserver(Observer):
    """Base of the observers that keep a histogram; `Histogram` proves that merging is exact.

    Args:
        bins: Bins per channel, at least 2. Their width, a power of two, is below 2 * observed range / (bins - 1), or
            per_sample: Least number of counted values of a sample, all channels together; of larger samples every k-th
            value is counted, so that calibration does not take longer than the network. The smallest and largest value
            are always exact. The choice depends only on the shape of a sample, not on the batches.

    Raises:
        InputError: There are fewer than two bins, or values per sample.
    """

    bins: int = DEFAULT_BINS
    per_sample: int = 1 << 14

    def __post_init__(self) -> None:
        check_bins(self.bins)
        if self.per_sample < 1:
            raise InputError(f"per_sample={self.per_sample}", expected="at least one value")

    def _summarize(self, rows: Tensor, _index: int | None, /) -> State:
        low, high = _extremes(rows)
        step = _step(rows.shape[2], max(1, self.per_sample // len(rows))) if rows.shape[1] > 1 or self.axis != 0 else 1
        return _as_state(Histogram.of(rows[:, :, ::step].flatten(1), self.bins, (low, high)))

    def _combine(self, a: State, b: State, /) -> State:
        return _as_state(_as_histogram(a).merge(_as_histogram(b)))


@dataclass(eq=False)
class PercentileObserver(HistogramObserver):
    """The range without the most extreme values of either side; see `estimators.sparse_percentile`.

    Resolution: each end lies at most one bin width outside the exact percentile, and never beyond the observed values.

    Args:
        percentile: Percentage in (50, 100] of the values that lie below the upper end, and as many above the lower.

    Raises:
        InputError: `percentile` is out of range.
    """

    percentile: float = 99.99

    def __post_init__(self) -> None:
        super().__post_init__()
        check_percent(self.percentile)

    def _estimate(self, state: State, /) -> tuple[Tensor, Tensor]:
        return sparse_percentile(_as_histogram(state), self.percentile)


@dataclass(eq=False)
class MSEObserver(HistogramObserver):
    """The range with the smallest mean squared quantization error; see `estimators.mse`.

    Args:
        spec: Grid that defines the error.
    """

    spec: QuantSpec = field(kw_only=True)

    def _estimate(self, state: State, /) -> tuple[Tensor, Tensor]:
        return mse(_as_histogram(state), self.spec)


@dataclass(eq=False)
class SQNRObserver(HistogramObserver):
    """The range with the best signal-to-noise ratio, clipping weighted; see `estimators.sqnr`.

    Args:
        spec: Grid that defines the noise.
        clipping: Weight of clipping errors.

    Raises:
        InputError: The weight is negative or not finite.
    """

    spec: QuantSpec = field(kw_only=True)
    clipping: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.clipping < float("inf"):
            raise InputError(f"clipping={self.clipping}", expected="a weight, at least 0")

    def _estimate(self, state: State, /) -> tuple[Tensor, Tensor]:
        return sqnr(_as_histogram(state), self.spec, self.clipping)


@dataclass(eq=False)
class EntropyObserver(HistogramObserver):
    """The range with the quantized distribution closest to that of the data; see `estimators.entropy`.

    Args:
        spec: The grid.
    """

    spec: QuantSpec = field(kw_only=True)

    def _estimate(self, state: State, /) -> tuple[Tensor, Tensor]:
        return entropy(_as_histogram(state), self.spec)


@dataclass(eq=False)
class CrossEntropyObserver(Observer):
    """The range of logits that changes their probabilities least; see `estimators.cross_entropy`.

    Of all rows, one per sample and position, those `rows` different ones with the lowest hashes are kept, each with the
    number of times that it occurred, and the extremes of all. **Merging is exact**: the hash is that of a row's values
    alone, so that a row among the lowest of the whole is among the lowest of every part that holds it, with all its
    occurrences there; numbers of occurrences add up. Rows of one hash, which are one row but for accidents of 64 bits,
    merge by the smaller values, in any order.

    Args:
        spec: The grid.
        rows: Largest number of kept rows, at least 1. Memory: rows times classes, in float32.
        class_axis: Axis of the classes; a row runs along it.

    Raises:
        InputError: `rows` is below 1, or there is a channel axis: softmax is over all classes, on one grid.
    """

    spec: QuantSpec = field(kw_only=True)
    rows: int = 4096
    class_axis: int = 1

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError(f"rows={self.rows}", expected="at least 1")
        if self.axis is not None:
            raise InputError(
                f"cross-entropy cannot find a range per index of axis {self.axis} of '{self.name}'",
                expected="one range for all classes",
                fix="Use 'mse', which handles each channel separately",
            )

    def _rows(self, x: Tensor, index: int | None) -> Tensor:
        """Classes last, the rest flattened: float32 [R, classes]."""
        if not -x.dim() <= self.class_axis < x.dim():
            raise InputError(
                f"'{self.name}' has shape {list(x.shape)}, which is not a shape of logits",
                expected=f"logits for the method cross-entropy, with the classes on axis {self.class_axis}",
            )
        classes = x.shape[self.class_axis]
        rows = super()._rows(x.movedim(self.class_axis, -1), index)
        return rows.reshape(-1, classes) if rows.numel() else rows

    def _summarize(self, rows: Tensor, _index: int | None, /) -> State:
        rows = rows + 0.0  # one zero, whose bits are hashed
        low, high = _extremes(rows.reshape(1, 1, -1))
        once = torch.ones(len(rows), dtype=torch.int64, device=rows.device)
        return {"low": low, "high": high, **_lowest(_hash(rows), once, rows, self.rows)}

    def _combine(self, a: State, b: State, /) -> State:
        before, after = a["rows"].shape[1], b["rows"].shape[1]
        if before != after:
            raise CalibrationError(
                f"'{self.name}' had {before} classes and now has {after}", expected="the same number in every batch"
            )
        hashes, weights, rows = (torch.cat([a[key], b[key]]) for key in ("hashes", "weights", "rows"))
        low, high = torch.minimum(a["low"], b["low"]), torch.maximum(a["high"], b["high"])
        return {"low": low, "high": high, **_lowest(hashes, weights, rows, self.rows)}

    def _estimate(self, state: State, /) -> tuple[Tensor, Tensor]:
        return cross_entropy(state["rows"], state["weights"], state["low"], state["high"], self.spec)


OBSERVERS: dict[str, type[Observer]] = {
    "min_max": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "mse": MSEObserver,
    "sqnr": SQNRObserver,
    "entropy": EntropyObserver,
    "cross_entropy": CrossEntropyObserver,
}
"""Name of a range-setting method -> class of its observer. A new method is a new entry; its fields are its options."""


def check_single_values(method: str) -> None:
    """Refuse a method for logits only, where any tensor may occur.

    Raises:
        InputError: The method is `cross_entropy`.
    """
    if OBSERVERS.get(method) is CrossEntropyObserver:
        raise InputError(
            f"method='{method}' is not possible for all tensors",
            expected="a method for single values; cross-entropy needs rows of logits",
            fix=f"Use the option logits={method} of calibrate-activations",
        )


def options_of(method: str) -> tuple[str, ...]:
    """Names of the options that the observer of a method takes.

    Example:
        >>> options_of("percentile")
        ('bins', 'per_sample', 'percentile')

    Raises:
        InputError: There is no such method.
    """
    if method not in OBSERVERS:
        raise _unknown("range-setting method", method, list(OBSERVERS))
    given = ("name", "axis", "spec")
    return tuple(part.name for part in fields(OBSERVERS[method]) if part.init and part.name not in given)


def check_options(options: Mapping[str, object]) -> None:
    """Check option values of all methods, in use or not.

    Args:
        options: Values by name; names that no observer has are ignored.

    Raises:
        InputError: A value is out of range.
    """
    for method in OBSERVERS:
        known = {key: options[key] for key in options_of(method) if key in options}
        make_observer(method, QuantSpec(8), "a tensor", options=known)


def make_observer(
    method: str,
    spec: QuantSpec,
    name: str,
    axis: int | None = None,
    *,
    options: Mapping[str, object] | None = None,
) -> Observer:
    """Make the observer of a named method.

    Example:
        >>> make_observer("percentile", QuantSpec.parse("u8"), "relu1", options={"percentile": 99.9}).count
        0

    Args:
        method: A name in `OBSERVERS`.
        spec: The quantizer that the range is for.
        name: Name of the tensor.
        axis: Channel axis; None takes that of `spec`.
        options: Further arguments of the observer, such as `percentile`, `momentum` or `bins`.

    Returns:
        An observer that has seen nothing.

    Raises:
        InputError: No such method or option, or the quantizer works in blocks.
    """
    allowed = options_of(method)
    if spec.block is not None:
        raise InputError(
            f"the observer of '{name}' has the block quantizer '{spec}'",
            expected="one range per tensor or per channel",
            fix="Reshape the tensor so that each block is a channel",
        )
    kind = OBSERVERS[method]
    arguments: dict[str, object] = {"name": name, "axis": spec.axis if axis is None else axis}
    if any(part.name == "spec" for part in fields(kind)):
        arguments["spec"] = spec
    for option, value in (options or {}).items():
        if option not in allowed:
            raise _unknown(f"option of '{method}'", option, list(allowed))
        arguments[option] = value
    return kind(**arguments)  # type: ignore[arg-type]  # the names were checked against the fields


def _unknown(kind: str, found: str, known: list[str]) -> InputError:
    nearest = difflib.get_close_matches(found, known, n=1)
    listed = ", ".join(f"'{name}'" for name in known) or "none"
    return InputError(
        f"unknown {kind} '{found}'",
        expected=f"one of {listed}" if known else "none",
        fix=f"Did you mean '{nearest[0]}'?" if nearest else None,
    )


def _options(observer: Observer) -> tuple[object, ...]:
    return tuple(getattr(observer, part.name) for part in fields(observer) if part.init)


def _extremes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each row, on the CPU. A zero is +0.0: which one wins otherwise depends on the order."""
    return rows.amin((1, 2)).cpu() + 0.0, rows.amax((1, 2)).cpu() + 0.0


def _step(size: int, least: int) -> int:
    """The largest step that leaves at least `least` of `size` values, and hits all columns of pictures alike."""
    step = max(1, size // least)
    while math.gcd(step, size) > 1:
        step -= 1
    return step


def _lowest(hashes: Tensor, weights: Tensor, rows: Tensor, count: int) -> State:
    """The `count` lowest hashes, each once and in order, with their weights and rows; on the CPU."""
    lowest, place = torch.unique(hashes, return_inverse=True)
    kept = place < count
    lowest, place, rows = lowest[:count], place[kept], rows[kept]
    total = torch.zeros_like(lowest).index_add_(0, place, weights[kept])
    places = place.unsqueeze(1).expand_as(rows)
    joined = rows.new_empty(len(lowest), rows.shape[1]).scatter_reduce(0, places, rows, "amin", include_self=False)
    return {"hashes": lowest.cpu(), "weights": total.cpu(), "rows": joined.cpu()}


def _hash(rows: Tensor) -> Tensor:
    """64 bits of each row of float32 [R, C], the same on every machine: of the values and of their places."""
    places = _mixed(torch.arange(1, rows.shape[1] + 1, device=rows.device))
    size = max(1, _HASHED // rows.shape[1])
    parts = [_mixed(part.view(torch.int32).to(torch.int64) ^ places).sum(1) for part in rows.contiguous().split(size)]
    return _mixed(torch.cat(parts))


_HASHED = 1 << 20
"""Elements hashed at a time, which bounds the memory for any batch."""


def _mixed(x: Tensor) -> Tensor:
    """A permutation of the 64-bit integers without visible order; products and sums wrap around.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (OOPSLA), variant 13.
    """
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _as_state(histogram: Histogram) -> State:
    return {part.name: getattr(histogram, part.name) for part in fields(histogram)}


def _as_histogram(state: State) -> Histogram:
    return Histogram(**{part.name: state[part.name] for part in fields(Histogram)})
