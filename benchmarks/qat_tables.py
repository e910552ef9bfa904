"""The measurements of quantization-aware training: methods, networks, widths, and the tables that show them.

The tables are those of Nagel et al. 2022, arXiv:2203.11086 (oscillations), in small, and table 9 of Nagel et al. 2021,
arXiv:2106.08295 (the white paper).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qcompiler.training.freezing import Freezing
from qcompiler.training.regularizers import BinRegularization, Dampening, Weighted
from qcompiler.training.schedules import Constant, Cosine

__all__ = [
    "ABLATION",
    "BASELINE",
    "CHOICES",
    "DAMPENING",
    "FLOOR",
    "FREEZING",
    "GATED",
    "HELD",
    "HELD_WAYS",
    "LOW",
    "METHODS",
    "PLACES",
    "QUICK",
    "TWIN",
    "TWIN_WAYS",
    "WHOLE",
    "WIDTHS_OF_TABLE_2",
    "Cell",
    "Place",
    "Run",
    "Way",
    "cells",
]

FLOOR = 0.02
"""Share of the rates that is left at the end of their cosine."""
STRENGTH = 0.1
"""Final strength of dampening: that of the paper's code."""
THRESHOLDS = (0.04, 0.005)
"""Thresholds of freezing, first and last. The paper ends at 0.011; trainings are short here, and one weight in 1,000 is
above that, so that it ends where a weight begins to count as one that oscillates."""


@dataclass(frozen=True)
class Way:
    """A way to train.

    Args:
        name: In the tables.
        method: Training method of the quantizers.
        regularizers: On weights.
        freezing: Settings for freezing codes.
        rate: Learning rate of Adam for everything, instead of the rates of `benchmarks.qat_accuracy`.
        equalized: Whether channels are equalized before training, where the target is hardware.
    """

    name: str
    method: str = "lsq"
    regularizers: tuple[Weighted, ...] = ()
    freezing: Freezing | None = None
    rate: float | None = None
    equalized: bool = True


def _damped(strength: float | Cosine) -> tuple[Weighted, ...]:
    return (Weighted(Dampening(), strength),)


BASELINE = Way("LSQ")
_DAMPED = Way("LSQ + dampening", regularizers=_damped(Cosine(0.0, STRENGTH)))
_FROZEN = Way("LSQ + freezing", freezing=Freezing(Cosine(*THRESHOLDS, before=0.0)))
HELD_WAYS = (BASELINE, _DAMPED, _FROZEN)
METHODS = (
    BASELINE,
    Way("EWGS", "ewgs"),
    Way("PSG", "psg"),
    Way("DSQ", "dsq"),
    Way("LSQ + bin regularization", regularizers=(Weighted(BinRegularization(), Constant(1.0, begin=0.3)),)),
    _DAMPED,
    _FROZEN,
)
"""Table 6."""
DAMPENING = (
    *(Way(f"dampening {value:g}", regularizers=_damped(value)) for value in (STRENGTH / 10, STRENGTH, STRENGTH * 10)),
    *(
        Way(f"dampening cos(0, {value:g})", regularizers=_damped(Cosine(0.0, value)))
        for value in (STRENGTH / 10, STRENGTH, STRENGTH * 10)
    ),
)
"""Table 4."""
FREEZING = (
    *(Way(f"freezing {value:g}", freezing=Freezing(Constant(value, begin=0.25))) for value in (0.01, 0.0075, 0.005)),
    *(
        Way(f"freezing cos({first:g}, {last:g})", freezing=Freezing(Cosine(first, last, before=0.0)))
        for first, last in ((0.04, 0.0075), THRESHOLDS)
    ),
)
"""Table 5."""


@dataclass(frozen=True)
class Place:
    """A network at a width.

    Args:
        network: Network of `benchmarks.networks`.
        width: Such as W4A8: bits of weights and of activations; the first and the last layer have eight.
        seeds: How many runs.
        floor: Share of the rates that is left at the end of their cosine.
    """

    network: str
    width: str
    seeds: int = 1
    floor: float = FLOOR

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of weights and of activations."""
        weights, activations = self.width.removeprefix("W").split("A")
        return int(weights), int(activations)


LOW = Place("mobilenet", "W3A3", seeds=3)
HELD = Place("mobilenet", "W3A3", seeds=3, floor=0.2)
"""The same with rates that end where those of the paper begin, so that weights flip to the end."""
PLACES = (LOW, Place("mobilenet", "W4A4"), Place("resnet", "W4A4"), Place("mobilenet", "W4A8"))
"""Places of table 6."""
GATED = tuple(
    Place(network, width, seeds=seeds)
    for network in ("mobilenet_v3", "efficientnet")
    for width, seeds in (("W4A4", 1), ("W3A3", 3))
)
"""Networks with squeeze and excite: tables 7 and 8."""
ABLATION = Place("mobilenet", "W3A8")
"""Place of tables 3 to 5: activations cost almost nothing, as in the paper, which leaves them in float."""
WIDTHS_OF_TABLE_2 = (
    Place("resnet", "W4A8"),
    Place("resnet", "W3A8"),
    Place("mobilenet", "W8A8"),
    Place("mobilenet", "W4A8"),
    ABLATION,
)
TWIN = Place("mobilenet_hard", "W4A8")
TWIN_WAYS = tuple(
    Way(f"{word} equalization, rate {rate:g}", rate=rate, equalized=word == "with")
    for word in ("without", "with")
    for rate in (1e-3, 1e-4)
)
"""Table 9 of the white paper: for the target int8_dsp, one scale per weight, batch norms folded, Adam at two rates."""
CHOICES = Way("codes chosen afterwards")
"""Table 3: begins with what the baseline of the ablation learned."""


@dataclass(frozen=True)
class Cell:
    """One training."""

    place: Place
    way: Way
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the training's file."""
        words = "".join(c if c.isalnum() or c == "." else " " for c in self.way.name).split()
        held = "" if self.place.floor == FLOOR else f"-floor_{self.place.floor:g}"
        return f"{self.place.network}-{self.place.width}{held}-{'_'.join(words)}-{self.seed}"


@dataclass(frozen=True)
class Run:
    """The settings of a run.

    Args:
        epochs: Epochs of a training.
        scenes: Training scenes, the first ones.
        batch: Scenes of a step.
        images: Images of the split on which accuracy is measured.
        split: Which.
        samples: Samples of table 3.
        choosing: Steps of the optimisation of table 3.
        whole: All cells; else a row of each kind.
    """

    epochs: int = 8
    scenes: int = 24_000
    batch: int = 64
    images: int = 5_000
    split: str = "test"
    samples: int = 10
    choosing: int = 2_000
    whole: bool = True

    @property
    def steps(self) -> int:
        """Number of steps of a training."""
        return self.epochs * (self.scenes // self.batch)

    @property
    def momentum(self) -> float:
        """Momentum of oscillation frequencies: that of the paper, or larger for a training of few steps."""
        return max(0.001, 0.5 / self.steps)


WHOLE = Run()
QUICK = Run(epochs=1, scenes=3_200, images=1_000, split="validation", samples=2, choosing=50, whole=False)


def cells(run: Run) -> Iterator[Cell]:
    """All trainings, the most informative first, so that an unfinished run is useful."""
    if not run.whole:
        for way in METHODS:
            yield Cell(LOW, way)
        yield from (Cell(ABLATION, BASELINE), Cell(ABLATION, CHOICES))
        yield from (Cell(ABLATION, DAMPENING[-1]), Cell(ABLATION, FREEZING[-1]), Cell(PLACES[2], _FROZEN))
        yield from (Cell(TWIN, way) for way in TWIN_WAYS[1::2])
        yield from (Cell(place, _DAMPED) for place in GATED[1::2])
        return
    found: dict[Cell, None] = {}
    for seed in range(LOW.seeds):
        found |= dict.fromkeys(Cell(LOW, way, seed) for way in (BASELINE, _FROZEN, _DAMPED))
    found |= dict.fromkeys(Cell(place, way) for place in GATED for way in HELD_WAYS)
    found |= dict.fromkeys(Cell(LOW, way) for way in METHODS)
    found |= dict.fromkeys([*(Cell(TWIN, way) for way in TWIN_WAYS), Cell(ABLATION, BASELINE), Cell(ABLATION, CHOICES)])
    for place in PLACES:
        found |= dict.fromkeys(Cell(place, way) for way in METHODS)
    found |= dict.fromkeys(Cell(place, BASELINE) for place in WIDTHS_OF_TABLE_2)
    found |= dict.fromkeys(Cell(place, way, n) for place in GATED for n in range(place.seeds) for way in HELD_WAYS)
    for seed in range(HELD.seeds):
        found |= dict.fromkeys(Cell(HELD, way, seed) for way in HELD_WAYS)
    for seed in range(LOW.seeds):
        found |= dict.fromkeys(Cell(LOW, way, seed) for way in METHODS)
    found |= dict.fromkeys(Cell(ABLATION, way) for way in (*DAMPENING, *FREEZING))
    yield from found
