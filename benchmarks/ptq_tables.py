"""The measurements of post-training quantization: methods, networks and widths, and the expected results.

The tables are those of Nagel et al. 2021, arXiv:2106.08295 (the white paper), in small.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.networks import TWINS
from benchmarks.rendered import SPLITS
from qcompiler.passes import Pass
from qcompiler.passes.absorb_bias import AbsorbBias
from qcompiler.passes.adaptive_rounding.adaround import AdaRound
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.passes.cross_layer_equalization import CrossLayerEqualization
from qcompiler.passes.partition import Partition
from qcompiler.session.pipeline import default_pipeline

__all__ = [
    "ACTIVATIONS",
    "BEST",
    "BEST_PER_CHANNEL",
    "DEFAULT",
    "DEFAULT_PER_CHANNEL",
    "EQUALIZED",
    "GOALS",
    "METHODS",
    "NETWORKS",
    "TABLES",
    "WEIGHTS",
    "Goal",
    "Row",
    "Run",
    "Table",
]

NETWORKS = ("mobilenet", "resnet", "efficientnet", "unet", *TWINS)


@dataclass(frozen=True)
class Row:
    """A way to quantize.

    Args:
        name: In the table.
        per_channel: Whether weights have a scale per channel.
        before: Passes before the quantizers.
        weights: Method of the ranges of weights; None: `min_max`, and below eight bits, where it pays to clip, `mse`.
        after: Passes after the ranges of weights.
        activations: Method of the ranges of activations.
        effort: That of a compile, whatever it does, instead of the above.
    """

    name: str
    per_channel: bool = False
    before: tuple[Pass, ...] = ()
    weights: str | None = None
    after: tuple[Pass, ...] = ()
    activations: str = "percentile"
    effort: str | None = None

    def pipeline(self, weight_bits: int, activation_bits: int = 8) -> tuple[Pass, ...]:
        """The passes."""
        if self.effort is not None:
            return default_pipeline(
                self.effort,
                per_channel=self.per_channel,
                weight_bits=weight_bits,
                activation_bits=activation_bits,
            )
        weights = self.weights or ("mse" if weight_bits < 8 else "min_max")
        passes: list[Pass] = []
        for item in default_pipeline("fast"):
            if isinstance(item, Partition):
                passes += [*self.before, item]
            elif isinstance(item, CalibrateWeights):
                passes += [CalibrateWeights(method=weights), *self.after]
            elif isinstance(item, CalibrateActivations):
                passes.append(CalibrateActivations(method=self.activations))
            else:
                passes.append(item)
        return tuple(passes)


@dataclass(frozen=True)
class Table:
    """Rows by widths, once per network.

    Args:
        title: Title on the page.
        about: A sentence or two below it.
        networks: Names.
        widths: Such as W4A8: bits of weights and of activations.
        rows: Names differ.
    """

    title: str
    about: str
    networks: tuple[str, ...]
    widths: tuple[str, ...]
    rows: tuple[Row, ...]


_EQUALIZED = (CrossLayerEqualization(),)
_ABSORBED = (*_EQUALIZED, AbsorbBias())
EQUALIZED = "+ equalization"
DEFAULT, DEFAULT_PER_CHANNEL = 'effort="default"', 'per channel: effort="default"'
BEST, BEST_PER_CHANNEL = 'effort="best"', 'per channel: effort="best"'

METHODS = Table(
    "Methods",
    "Tables 3, 4 and 6 of the white paper. A row with a plus adds to the one above it, unless it says instead.",
    NETWORKS,
    ("W8A8", "W4A8", "W4A4"),
    (
        Row("plain"),
        Row("bias correction alone", after=(CorrectBias(),)),
        Row(EQUALIZED, before=_EQUALIZED),
        Row("+ absorption", before=_ABSORBED),
        Row("+ bias correction", before=_ABSORBED, after=(CorrectBias(),)),
        Row("+ adaptive rounding instead", before=_ABSORBED, after=(AdaRound(),)),
        Row('effort="fast"', effort="fast"),
        Row(DEFAULT, effort="default"),
        Row(BEST, effort="best"),
        Row("per channel: plain", per_channel=True),
        Row(DEFAULT_PER_CHANNEL, per_channel=True, effort="default"),
        Row(BEST_PER_CHANNEL, per_channel=True, effort="best"),
    ),
)
WEIGHTS = Table(
    "Ranges and rounding of weights",
    "Tables 1 and 5 of the white paper: activations have sixteen bits and cost nothing.",
    ("mobilenet", "resnet"),
    ("W8A16", "W4A16"),
    (
        Row("min-max", weights="min_max"),
        Row("least squares", weights="mse"),
        Row("least squares, adaptive rounding", weights="mse", after=(AdaRound(),)),
        Row("per channel: min-max", per_channel=True, weights="min_max"),
        Row("per channel: least squares", per_channel=True, weights="mse"),
        Row("per channel: least squares, adaptive rounding", per_channel=True, weights="mse", after=(AdaRound(),)),
    ),
)
ACTIVATIONS = Table(
    "Ranges of activations",
    "Table 2 of the white paper: weights have eight bits and a scale per channel.",
    ("mobilenet", "resnet"),
    ("W8A8", "W8A6", "W8A4"),
    (
        Row("min-max", per_channel=True, activations="min_max"),
        Row("percentile", per_channel=True),
        Row("least squares", per_channel=True, activations="mse"),
    ),
)
TABLES = (METHODS, WEIGHTS, ACTIVATIONS)


@dataclass(frozen=True)
class Goal:
    """The goal of a row of METHODS.

    Args:
        text: Text on the page.
        networks: Which have to.
        width: Width in METHODS.
        row: Row of METHODS.
        points: Most points of accuracy below float.
        share: Least share of the float accuracy.
    """

    text: str
    networks: tuple[str, ...]
    width: str
    row: str
    points: float = 100.0
    share: float = 0.0

    def is_met(self, exact: float, found: float) -> bool:
        """By accuracies in 0..1."""
        return 100 * (exact - found) <= self.points and found >= self.share * exact


GOALS = (
    Goal("hard twins, W8A8 per tensor, equalized: at least 99 % of float", tuple(TWINS), "W8A8", EQUALIZED, share=0.99),
    Goal('W4A8 per channel, `effort="best"`: within 1 point of float', NETWORKS, "W4A8", BEST_PER_CHANNEL, points=1.0),
    Goal('W4A8 per tensor, `effort="best"`: within 2 points of float', NETWORKS, "W4A8", BEST, points=2.0),
)


@dataclass(frozen=True)
class Run:
    """The settings of a run.

    Args:
        networks: Networks of each table to measure.
        seeds: Number of draws of the calibration images; draw and compile have the same seed.
        split: Name of the split of the images.
        images: The first ones of the split.
        calibration: Images of a draw.
    """

    networks: tuple[str, ...] = NETWORKS
    seeds: int = 3
    split: str = "test"
    images: int = SPLITS["test"][0]
    calibration: int = 512

    @property
    def is_complete(self) -> bool:
        """Whether it is the one that the page shows."""
        return self == Run()
