"""`python -m benchmarks.recurrent`: recurrent networks that read strokes of a pen, in float and in integers.

An LSTM and a GRU are trained on strokes that a program draws (`benchmarks/strokes.py`), which takes a minute. Every
figure is the share of right answers of the integer program on strokes that neither training nor calibration has seen,
and the difference from the float model is that of pairs, answer by answer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qcompiler
from benchmarks.pages import PERFORMANCE, write_section
from benchmarks.strokes import CLASSES, FEATURES, STEPS, Strokes, draw
from qcompiler.targets import Target

__all__ = ["KINDS", "ROWS", "Figure", "Reader", "Row", "main", "measure", "train"]

SECTION = "recurrent networks"
KINDS = ("LSTM", "GRU")
UNITS = 32
TRAINED, CALIBRATED, TESTED = 12_000, 512, 5_000
"""Numbers of strokes, each drawn from a seed of its own."""
SEEDS = {"training": 1, "calibration": 2, "test": 3}
EPOCHS, BATCH, LEARNING_RATE, LARGEST_GRADIENT = 10, 128, 1e-2, 1.0
RUN_BATCH = 500


class Reader(nn.Module):
    """A recurrent layer, and scores of ten digits after the last move: [N, 32, 2] -> [N, 10].

    Args:
        kind: `LSTM` or `GRU`.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer: nn.Module = getattr(nn, kind)(FEATURES, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [N, 10] of moves [N, 32, 2]."""
        y, _ = self.layer(x)
        scores: Tensor = self.head(y[:, -1])
        return scores


@dataclass(frozen=True)
class Row:
    """A way to quantize.

    Args:
        target: Name of a target.
        weight_bits: Bits of the weights.
        effort: Effort of the compile.
        at_most: Points of accuracy that may be lost.
    """

    target: str
    weight_bits: int
    effort: Literal["default", "best"]
    at_most: float

    def load(self) -> Target:
        """The target with these widths."""
        target = qcompiler.load_target(self.target)
        return target if self.weight_bits == 8 else target.override(weight_bits=self.weight_bits)

    def __str__(self) -> str:
        return f"`{self.target}`, W{self.weight_bits}, `{self.effort}`"


ROWS = (
    Row("int8_dsp", 8, "default", 0.5),
    Row("cmsis_nn", 8, "default", 0.5),
    Row("int16x8", 8, "default", 0.5),
    Row("int8_dsp_per_channel", 4, "best", 1.5),
)


@dataclass(frozen=True)
class Figure:
    """An accuracy next to that of the float model, in percent.

    Args:
        accuracy: Share of right answers.
        difference: Accuracy above that of the float model, negative if lower.
        half: Half of the 95 % interval of the difference over pairs of answers.
        same: Share of equal answers.
    """

    accuracy: float
    difference: float
    half: float
    same: float


def train(kind: str, strokes: Strokes, epochs: int = EPOCHS) -> Reader:
    """A trained network in eval mode; the same bits for each call on the same machine.

    Args:
        kind: `LSTM` or `GRU`.
        strokes: Strokes to train on.
        epochs: Number of passes over the strokes.
    """
    torch.manual_seed(0)  # the initial weights and the order draw from torch's global generator
    model = Reader(kind)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    batches = len(strokes.labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    for _ in range(epochs):
        for batch in torch.randperm(len(strokes.labels))[: batches * BATCH].split(BATCH):
            loss = F.cross_entropy(model(strokes.moves[batch]), strokes.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
    return model.eval()


def measure(model: Reader, row: Row, calibration: Tensor, test: Strokes) -> Figure:
    """Compile a network, and compare the answers of the integer program with those of the float model.

    Args:
        model: The network.
        row: The way to quantize.
        calibration: Moves.
        test: Other strokes.

    Raises:
        AssertionError: A part of the network is not in integers.
    """
    compiled = qcompiler.compile(
        model, row.load(), calibration_data=list(calibration.split(64)), effort=row.effort, verify="off"
    )
    assert not compiled.artifact.islands
    parts = test.moves.split(RUN_BATCH)
    found = torch.cat([torch.as_tensor(compiled.run(part)).argmax(1) for part in parts])
    with torch.no_grad():
        wanted = torch.cat([model(part).argmax(1) for part in parts])
    right, float_right = (answers == test.labels for answers in (found, wanted))
    differences = 100.0 * (right.double() - float_right.double())
    half = 1.96 * float(differences.std()) / len(differences) ** 0.5
    same = float((found == wanted).double().mean())
    return Figure(100.0 * float(right.double().mean()), float(differences.mean()), half, 100.0 * same)


def _float_accuracy(model: nn.Module, test: Strokes) -> float:
    with torch.no_grad():
        return 100.0 * float((model(test.moves).argmax(1) == test.labels).double().mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, print, and write the page if all networks were measured; 1 if more is lost than may be."""
    parser = argparse.ArgumentParser(prog="benchmarks.recurrent", description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only these; writes no page")
    parser.add_argument("--quick", action="store_true", help="few strokes, two epochs; writes no page")
    options = parser.parse_args(arguments)
    epochs, trained, tested = (2, 2_000, 500) if options.quick else (EPOCHS, TRAINED, TESTED)
    training = draw(trained, SEEDS["training"])
    calibration, test = draw(CALIBRATED, SEEDS["calibration"]).moves, draw(tested, SEEDS["test"])
    lines = ["| network | integers | accuracy | minus float | same answer |", "|---|---|---:|---:|---:|"]
    failed = False
    for kind in options.kinds:
        begun = time.monotonic()
        model = train(kind, training, epochs)
        print(f"{kind} is trained, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        lines.append(f"| {kind} | float | {_float_accuracy(model, test):.2f} | | |")
        for row in ROWS:
            found = measure(model, row, calibration, test)
            failed |= found.difference + found.half < -row.at_most
            difference = f"{found.difference:+.2f} ± {found.half:.2f}"
            lines.append(f"| {kind} | {row} | {found.accuracy:.2f} | {difference} | {found.same:.2f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    about = (
        f"Made by `python -m benchmarks.recurrent`: one layer of {UNITS} units reads {STEPS} moves of a pen and names "
        f"the digit, trained on {TRAINED:,} strokes that a program draws. Percent of {TESTED:,} other strokes, with "
        "all operators in integers; differences of pairs with their 95 % interval. Calibrated with "
        f"{CALIBRATED} strokes. At most 0.5 points may be lost with weights of 8 bits, and 1.5 with 4."
    )
    text = "\n".join(["## Recurrent networks", "", about, "", *lines])
    print(text)
    if tuple(options.kinds) == KINDS and not options.quick:
        write_section(PERFORMANCE, SECTION, text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
