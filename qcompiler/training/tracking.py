"""What the movements of codes look like, layer by layer: numbers for a logger, and a picture.

    for name, value in oscillation_scalars(module).items():
        writer.add_scalar(name, value, step)          # TensorBoard, or any logger that takes names and numbers
    Path("oscillations.svg").write_text(oscillation_plot(module))

A weight oscillates where the frequency of its code, an average over about 1 / momentum steps, is above a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qcompiler.errors import InputError
from qcompiler.training.module import TrainingModule
from qcompiler.training.oscillations import OSCILLATING, Oscillations
from qcompiler.training.plots import Bars

__all__ = ["LayerOscillations", "oscillating", "oscillation_plot", "oscillation_scalars", "oscillation_statistics"]

WHOLE = "all"
"""Stands for the layers together in the names of scalars."""


@dataclass(frozen=True)
class LayerOscillations:
    """The weights of a layer, or of all.

    Args:
        weights: How many there are.
        oscillating: How many have a frequency above the threshold and are not frozen.
        frozen: How many are frozen.
        frequency: Mean frequency of those that are not frozen, in [0, 1]; 0 where all are.
        largest: Largest frequency of those that are not frozen.
    """

    weights: int
    oscillating: int
    frozen: int
    frequency: float
    largest: float

    @property
    def share(self) -> float:
        """Of oscillating weights among all, in [0, 1]."""
        return self.oscillating / self.weights

    @property
    def frozen_share(self) -> float:
        """Of frozen weights among all, in [0, 1]."""
        return self.frozen / self.weights


def oscillating(state: Oscillations, threshold: float = OSCILLATING) -> torch.Tensor:
    """Which weights oscillate, bool in the shape of the weight; a frozen one does not."""
    return (state.frequency > threshold) & ~state.frozen


def oscillation_statistics(module: TrainingModule, threshold: float = OSCILLATING) -> dict[str, LayerOscillations]:
    """By layer, in the order of the model.

    Args:
        module: With `tracking` or `freezing`.
        threshold: Frequency above which a weight oscillates; the tables of Nagel et al. 2022 take 0.005, with a
            momentum of 0.001. It should be a few times the momentum, or a single oscillation passes it.

    Raises:
        InputError: The module tracks nothing.
    """
    states = module.oscillations()
    if not states:
        raise InputError(
            "no weight of the module is tracked",
            fix="Prepare it with tracking=Tracking() or freezing=Freezing(); both look at weights of few bits alone.",
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
    """All layers as one."""
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


def oscillation_scalars(module: TrainingModule, threshold: float = OSCILLATING) -> dict[str, float]:
    """Numbers in [0, 1] by name, for any logger: `oscillating/<layer>`, `frozen/<layer>`, `frequency/<layer>`.

    The first two are shares of weights, the last one is the mean frequency of those that are free. The layers
    together are called `all`. The arguments and errors are those of `oscillation_statistics`.
    """
    layers = oscillation_statistics(module, threshold)
    found = {}
    for layer, item in {WHOLE: together(layers), **layers}.items():
        found[f"oscillating/{layer}"] = item.share
        found[f"frozen/{layer}"] = item.frozen_share
        found[f"frequency/{layer}"] = item.frequency
    return found


def oscillation_plot(module: TrainingModule, threshold: float = OSCILLATING) -> str:
    """A bar for each layer: percentage of its weights that oscillate, and that are frozen; an `svg` document.

    The arguments and errors are those of `oscillation_statistics`.
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
