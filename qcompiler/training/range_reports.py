"""Ranges that follow statistics, by quantizer: scalars for a logger, and a plot.

    watch_ranges(module)
    ... a training step ...
    for name, value in range_scalars(module).items():
        writer.add_scalar(name, value, step)          # TensorBoard, or any logger that takes names and numbers
    Path("ranges.svg").write_text(range_plot(module))

The share of clipped elements and the cosine distance take two passes over each tensor, so that they are computed only
while a module is watched.
"""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.errors import InputError
from qcompiler.pages.plots import Bars
from qcompiler.training.module import QATModule
from qcompiler.training.tracker import RangeTracker

__all__ = ["TrackedStatistics", "range_plot", "range_scalars", "range_statistics", "watch_ranges"]


@dataclass(frozen=True)
class TrackedStatistics:
    """The range of one quantizer, and the effect of its quantization on its last tensor.

    Args:
        low: Low end of the range for the next step; NaN while it is not known.
        high: High end.
        saturation: Share of elements outside of the grid, in [0, 1]; NaN unless watched.
        distance: 1 minus the cosine of the angle between the tensor before and after quantization; NaN unless watched.
    """

    low: float
    high: float
    saturation: float
    distance: float


def watch_ranges(module: QATModule, on: bool = True) -> None:
    """Compute, or stop computing, saturation and cosine distance of each tensor that is quantized in a step."""
    for tracker in _trackers(module).values():
        tracker.watch(on)


def range_statistics(module: QATModule) -> dict[str, TrackedStatistics]:
    """The statistics by quantizer, in the order of the module.

    Gradients have the names `LAYER.gradient` and `LAYER.scaled_gradient`, activations that of their quantizer.

    Args:
        module: Module with ranges that follow statistics.

    Raises:
        InputError: The module has none.
    """
    found = {}
    for name, tracker in _trackers(module).items():
        below, above = tracker.reach.tolist()
        saturation, distance = (float("nan"),) * 2 if tracker.watched is None else tracker.watched.tolist()
        found[name] = TrackedStatistics(-below, above, saturation, distance)
    return found


def range_scalars(module: QATModule) -> dict[str, float]:
    """Scalars for any logger: `low/<name>`, `high/<name>`, and `saturation/<name>`, `distance/<name>` while watched.

    Arguments and errors: see `range_statistics`. Values that are not known are left out.
    """
    fields = ("low", "high", "saturation", "distance")
    scalars = {
        f"{field}/{name}": float(getattr(item, field))
        for name, item in range_statistics(module).items()
        for field in fields
    }
    return {name: value for name, value in scalars.items() if value == value}


def range_plot(module: QATModule) -> str:
    """An `svg` bar chart of the percentage of clipped elements and of the cosine distance by quantizer.

    Arguments and errors: see `range_statistics`.

    Raises:
        InputError: The module is not watched, or no step has run since.
    """
    items = {name: item for name, item in range_statistics(module).items() if item.saturation == item.saturation}
    if not items:
        raise InputError(
            "no tensor was watched", fix="Call watch_ranges(module) before a training step, range_plot after it."
        )
    return Bars(
        "clipped elements and cosine distance, %",
        tuple(items),
        {
            "clipped": tuple(100 * item.saturation for item in items.values()),
            "cosine distance": tuple(100 * item.distance for item in items.values()),
        },
    ).svg()


def _trackers(module: QATModule) -> dict[str, RangeTracker]:
    found = {
        name.replace(".products.", ".").removesuffix(".range"): tracker for name, tracker in module.trackers().items()
    }
    if not found:
        raise InputError(
            "no range of the module follows statistics",
            fix="Use prepare_quantized_training, or prepare_qat with ranges='in_hindsight'.",
        )
    return found
