"""The tables of quantization-aware training, and the settings of each training.

Source: Nagel et al. 2021, arXiv:2106.08295, tables 7, 9 and 10 (the white paper); Nagel et al. 2022, arXiv:2203.11086,
tables 6 to 8, section 5, and the published code (oscillations).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.qat_tables import Way
from examples.imagenet.cells import Cells, Make, bits_of, gathered
from examples.imagenet.results import Line, Sheet, slug
from qcompiler.training.freezing import Freezing, Tracking
from qcompiler.training.regularizers import Dampening, Weighted
from qcompiler.training.schedules import Cosine

__all__ = ["MOMENTUM", "SCALE_RATE", "TABLES", "Cell", "Settings", "Training", "oscillations", "sheets"]

ADAM_RATE, ADAM_EPOCHS = 1e-5, 20
"""White paper: Adam, 20 epochs, and for each network and width the best learning rate, which it does not give. AIMET
recommends rates of the order 1e-6, or ten times the last rate of the float training."""
SGD_EPOCHS, MOMENTUM, SCALE_RATE = 90, 0.9, 1e-5
"""Oscillations, section 5 and code: SGD for weights, Adam for scales, both down to 0 along a cosine."""
STRENGTH = 0.1
"""Last strength of dampening: that of the code."""
FIRST_THRESHOLD = 0.1
"""First threshold of freezing, at a quarter of the steps."""
FEW_BITS = 3
"""The smaller one of the two weight widths of the paper."""


@dataclass(frozen=True)
class Settings:
    """Settings of a training in the paper on oscillations, which depend on network, method and width.

    Args:
        weight_decay: Weight decay of weights.
        threshold: Last threshold of freezing.
    """

    weight_decay: float = 2.5e-5
    threshold: float = 0.01


LITE = "efficientnet_lite"
MOBILE_SETTINGS = {("freeze", 4): Settings(5e-5, 0.01), ("freeze", 3): Settings(2.5e-5, 0.011)}
"""MobileNetV2; all other networks and methods that the paper does not list have these or the default."""
LITE_SETTINGS = {
    ("dampen", 4): Settings(1e-4),
    ("dampen", 3): Settings(5e-5),
    ("freeze", 4): Settings(1e-4, 0.015),
    ("freeze", 3): Settings(5e-5, 0.005),
}
"""EfficientNet-lite."""


@dataclass(frozen=True)
class Training:
    """The settings of a training.

    Args:
        way: Method of the quantizers, regularizers, freezing, and whether channels are equalized before.
        per_channel: Whether weights have a scale per channel.
        batch_norm: Treatment of batch norms; see `prepare_qat`.
        optimizer: `adam` for all parameters, or `sgd` with Adam for scales.
        rate: Learning rate.
        weight_decay: Weight decay of weights.
        epochs: Number of epochs.
        corrected: Whether biases are corrected before training.
        wide_ends: Whether the first and the last layer have eight bits.
    """

    way: Way
    per_channel: bool
    batch_norm: Literal["fold", "double", "keep"]
    optimizer: Literal["adam", "sgd"] = "adam"
    rate: float = ADAM_RATE
    weight_decay: float = 0.0
    epochs: int = ADAM_EPOCHS
    corrected: bool = True
    wide_ends: bool = False


@dataclass(frozen=True)
class Cell:
    """One training of a network, or its accuracy as it is.

    Args:
        network: Name of the network.
        width: Such as W4A4: bits of weights and of activations.
        training: Settings; None: the network as it is.
        seed: Seed of the calibration images, the order of the images and their augmentation.
    """

    network: str
    width: str
    training: Training | None
    seed: int

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of weights and of activations."""
        return bits_of(self.width)

    @property
    def name(self) -> str:
        """Beginning of the name of the cell's folder; rows of equal settings share a training."""
        if self.training is None:
            return slug(self.network, "FP32")
        training = self.training
        kind = "per channel" if training.per_channel else "per tensor"
        start = ("" if training.way.equalized else "unequalized ") + ("" if training.corrected else "uncorrected")
        words = (training.way.name, training.batch_norm, *([start] if start else []))
        return slug(self.network, self.width, kind, *words, self.seed)


Name = Callable[[Cell], str]


_Maker = Cells[Cell, Training | None]
_Make = Make[Cell, Training | None]
PER_TENSOR = Training(Way("LSQ"), per_channel=False, batch_norm="fold")
PER_CHANNEL = Training(Way("LSQ"), per_channel=True, batch_norm="keep")
BATCH_NORMS = {
    "static folding": PER_TENSOR,
    "double forward": Training(Way("LSQ"), per_channel=False, batch_norm="double"),
    "static folding, per channel": Training(Way("LSQ"), per_channel=True, batch_norm="fold"),
    "keep, per channel": PER_CHANNEL,
}
"""Table 7 of the white paper."""
STARTS = {
    "baseline": Training(Way("LSQ", equalized=False), per_channel=False, batch_norm="fold", corrected=False),
    "equalization": Training(Way("LSQ"), per_channel=False, batch_norm="fold", corrected=False),
    "equalization, bias correction": PER_TENSOR,
}
"""Table 9 of the white paper."""


def _summary(make: _Maker, networks: Sequence[str], widths: Sequence[str] | None) -> Iterator[Sheet]:
    chosen = tuple(widths or ("W8A8", "W4A8", "W4A4"))
    kinds = {"per tensor": PER_TENSOR, "per channel": PER_CHANNEL}
    columns = ("FP32", *(f"{word} {width}" for word in kinds for width in chosen))
    lines = tuple(
        Line((name,), (make.exact(name), *(make.place(name, w, kinds[word]) for word in kinds for w in chosen)))
        for name in networks
    )
    about = "Table 10 of the white paper. Per tensor batch norms are folded before training, per channel after it."
    yield Sheet("Networks", about, ("network",), columns, lines)


def _batch_norm(make: _Maker, networks: Sequence[str], widths: Sequence[str] | None) -> Iterator[Sheet]:
    chosen = tuple(widths or ("W4A8", "W4A4"))
    for name in networks:
        lines = tuple(
            Line((word,), tuple(make.place(name, width, training) for width in chosen))
            for word, training in BATCH_NORMS.items()
        )
        exact = Line(("FP32",), (make.exact(name),) * len(chosen))
        yield Sheet(f"Batch norms: {name}", "Table 7 of the white paper.", ("",), chosen, (exact, *lines))


def _initialization(make: _Maker, networks: Sequence[str], widths: Sequence[str] | None) -> Iterator[Sheet]:
    chosen = tuple(widths or ("W4A8",))
    columns = tuple(f"{width} {word}" for width in chosen for word in ("before training", "trained"))
    for name in networks:
        lines = [Line(("FP32",), tuple(make.exact(name) for _ in columns))]
        for word, training in STARTS.items():
            places = [make.place(name, width, training) for width in chosen]
            lines.append(Line((word,), tuple(place for place in places for _ in range(2))))
        figures = ("start", "top1") * len(chosen)
        about = "Table 9 of the white paper: weights have one scale per tensor."
        yield Sheet(f"Start of training: {name}", about, ("",), columns, tuple(lines), figures)


def oscillations(network: str, width: str) -> dict[str, Training]:
    """The methods of the paper on oscillations for a network and a width, with its settings."""
    bits = int(width.removeprefix("W").split("A")[0])
    family = LITE_SETTINGS if LITE in network else MOBILE_SETTINGS
    # The paper gives settings for four and three bits, and none for plain LSQ: it gets those of dampening.
    few = FEW_BITS if bits <= FEW_BITS else FEW_BITS + 1
    dampen = family.get(("dampen", few), Settings())
    freeze = family.get(("freeze", few), Settings())
    threshold = Cosine(FIRST_THRESHOLD, freeze.threshold, before=0.0)
    damped = (Weighted(Dampening(), Cosine(0.0, STRENGTH)),)
    rate = 0.01 if few == FEW_BITS else 0.0033

    def training(way: Way, weight_decay: float) -> Training:
        return Training(way, True, "keep", "sgd", rate, weight_decay, SGD_EPOCHS, wide_ends=True)

    return {
        "LSQ": training(Way("LSQ"), dampen.weight_decay),
        "LSQ + dampening": training(Way("LSQ + dampening", regularizers=damped), dampen.weight_decay),
        "LSQ + freezing": training(
            Way("LSQ + freezing", freezing=Freezing(threshold, Tracking())), freeze.weight_decay
        ),
    }


def _oscillations(make: _Maker, networks: Sequence[str], widths: Sequence[str] | None) -> Iterator[Sheet]:
    chosen = tuple(widths or ("W4A4", "W3A3"))
    words = ("", ", without re-estimation", ", oscillating weights")
    columns = tuple(f"{width}{word}" for width in chosen for word in words)
    for name in networks:
        lines = [Line(("FP32",), tuple(make.exact(name) for _ in columns))]
        for method in oscillations(name, chosen[0]):
            places = [make.place(name, width, oscillations(name, width)[method]) for width in chosen]
            lines.append(Line((method,), tuple(place for place in places for _ in words)))
        about = (
            "Tables 2 and 6 to 8 of the paper on oscillations: the first and the last layer have eight bits. Weights "
            "have a scale per channel, into which batch norms are folded after training."
        )
        figures = ("top1", "before", "oscillating") * len(chosen)
        yield Sheet(f"Oscillations: {name}", about, ("",), columns, tuple(lines), figures)


TABLES: dict[str, _Make] = {
    "summary": _summary,
    "batch-norm": _batch_norm,
    "initialization": _initialization,
    "oscillations": _oscillations,
}
"""Tables by the name in `--tables`."""


def sheets(
    tables: Sequence[str], networks: Sequence[str], widths: Sequence[str] | None, seeds: Sequence[int], name: Name
) -> tuple[list[Sheet], dict[str, Cell]]:
    """The tables, and their cells by name in the order in which they are trained.

    Args:
        tables: Names in `TABLES`.
        networks: Names of the networks.
        widths: Widths of all tables; None: those of the papers.
        seeds: Seeds of the trainings.
        name: Function from a cell to the name of its file.
    """
    cells: _Maker = Cells(Cell, None, seeds, name)
    return gathered(cells, TABLES, tables, networks, widths)
