"""Oscillation statistics layer by layer: scalars for a logger, and a plot.

    for name, value in oscillation_scalars(module).items():
        writer.add_scalar(name, value, step)          # TensorBoard, or any logger that takes names and numbers
    Path("oscillations.svg").write_text(oscillation_plot(module))

A weight oscillates if its oscillation frequency, averaged over about 1 / momentum steps, is above a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qcompiler.errors import InputError
from qcompiler.pages.plots import Bars
from qcompiler.training.module import QATModule
from qcompiler.training.oscillations import OSCILLATING, Oscillations

__all__ = ["LayerOscillations", "oscillating", "oscillation_plot", "oscillation_scalars", "oscillation_statistics"]

WHOLE = "all"
"""Name of all layers together in the names of scalars."""


@dataclass(frozen=True)
class LayerOscillations:
    """Oscillation statistics of the weights of one layer, or of all layers.

    Args:
        weights: Number of weights.
        oscillating: Number of unfrozen weights with a frequency above the threshold.
        frozen: Number of frozen weights.
        frequency: Mean frequency of the unfrozen weights, in [0, 1]; 0 if all are frozen.
        largest: Largest frequency of the unfrozen weights.
    """

    weights: int
    oscillating: int
    frozen: int
    frequency: float
    largest: float

    @property
    def share(self) -> float:
        """Share of oscillating weights, in [0, 1]."""
        return self.oscillating / self.weights

    @property
    def frozen_share(self) -> float:
        """Share of frozen weights, in [0, 1]."""
        return self.frozen / self.weights


def oscillating(state: Oscillations, threshold: float = OSCILLATING) -> torch.Tensor:
    """Mask of the oscillating weights, bool in the shape of the weight; frozen weights do not oscillate."""
    return (state.frequency > threshold) & ~state.frozen


def oscillation_statistics(module: QATModule, threshold: float = OSCILLATING) -> dict[str, LayerOscillations]:
    """Oscillation statistics by layer, in the order of the model.

    Args:
        module: Training module with `tracking` or `freezing`.
        threshold: Frequency above which a weight oscillates; the tables of Nagel et al. 2022 use 0.005, with a
            momentum of 0.001. Use a few times the momentum; otherwise a single oscillation exceeds the threshold.

    Raises:
        InputError: The module tracks no weight.
    """
    states = module.oscillations()
    if not states:
        raise InputError(
            "no weight of the module is tracked",
            fix="Use tracking=Tracking() or freezing=Freezing() in prepare_qat; both apply only to low-bit weights.",
        )
    found = {}
    for layer, state in states.items():
        free = state.frequency[~state.frozen]
        found[layer] = LayerOscillations(
            state.frequency.numel(),
            int(oscillating(state, threshold).sum()),
            int(state.frozen.sum()),
            float(free.mean()) if free.numel() else 0.0,
            float(free.max()) if free.numel() else 0.0,
        )
    return found


def together(layers: Mapping[str, LayerOscillations]) -> LayerOscillations:
    """Statistics of all layers together."""
    items = list(layers.values())
    free = sum(item.weights - item.frozen for item in items)
    total = sum(item.frequency * (item.weights - item.frozen) for item in items)
    return LayerOscillations(
        sum(item.weights for item in items),
        sum(item.oscillating for item in items),
        sum(item.frozen for item in items),
        total / free if free else 0.0,
        max(item.largest for item in items),
    )


def oscillation_scalars(module: QATModule, threshold: float = OSCILLATING) -> dict[str, float]:
    """Scalars in [0, 1] for any logger: `oscillating/<layer>`, `frozen/<layer>`, `frequency/<layer>`.

    The first two are shares of weights, the third is the mean frequency of the unfrozen weights. The layer name `all`
    stands for all layers. Arguments and errors: see `oscillation_statistics`.
    """
    layers = oscillation_statistics(module, threshold)
    found = {}
    for layer, item in {WHOLE: together(layers), **layers}.items():
        found[f"oscillating/{layer}"] = item.share
        found[f"frozen/{layer}"] = item.frozen_share
        found[f"frequency/{layer}"] = item.frequency
    return found


def oscillation_plot(module: QATModule, threshold: float = OSCILLATING) -> str:
    """An `svg` bar chart of the percentages of oscillating and of frozen weights per layer.

    Arguments and errors: see `oscillation_statistics`.
    """
    layers = oscillation_statistics(module, threshold)
    return Bars(
        "weights that oscillate or are frozen, %",
        tuple(layers),
        {
            "oscillating": tuple(100 * item.share for item in layers.values()),
            "frozen": tuple(100 * item.frozen_share for item in layers.values()),
        },
    ).svg()
