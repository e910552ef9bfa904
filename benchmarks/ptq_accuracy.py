"""`python -m benchmarks.ptq_accuracy`: the loss by post-training quantization of trained networks, method by method.

Every figure is the accuracy of the integer program on the test split. Each finished cell is a file in
out/benchmarks/ptq_accuracy, so that the same call continues an interrupted run. `--collect` writes finished cells to
benchmarks/results, which is committed, and the page. The key of a cell covers the weights, the pipeline, the images and
`NUMERICS`, but not the sources of the compiler.

A cell takes from five seconds to two minutes on one core, the whole run about six hours; one call ends within 100
minutes. Two processes share a run with `--shard 1/2` and `--shard 2/2`.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import qcompiler
from benchmarks.finished import Json, Store, plain
from benchmarks.networks import load, weights_digest
from benchmarks.pages import PERFORMANCE
from benchmarks.ptq_page import EARLIER, Measured, read_earlier, section
from benchmarks.ptq_tables import TABLES, Row, Run, Table
from benchmarks.rendered import SPLITS, Scenes, split
from benchmarks.train import accuracy, score
from benchmarks.trainings import parser, publish, train_missing
from qcompiler.errors import QCompilerError
from qcompiler.session.pipeline import print_pipeline
from qcompiler.targets import Target, load_target

__all__ = ["COMMITTED", "NUMERICS", "QUICK", "WHOLE", "Cell", "Data", "cells", "draw", "main", "measured"]

OUTPUT = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "ptq_accuracy"
COMMITTED = Path(__file__).with_name("results") / "ptq_accuracy.jsonl"
"""Finished cells of the whole run."""
SECTION = "accuracy of post-training quantization"
TARGET = "int8_dsp"
CALIBRATION_BATCH = 64
RUN_BATCH = 50
"""Images that the program runs at once: in larger batches what it works on leaves the caches, at half the speed."""
NUMERICS = 1
"""To be raised with every change of what a pipeline of the same text computes, rounding aside."""


@dataclass(frozen=True)
class Cell:
    """One compile, and what its program reaches."""

    table: Table
    network: str
    width: str
    row: Row
    seed: int

    @property
    def name(self) -> str:
        """Name of the cell."""
        return plain(self.table.title, self.network, self.width, self.row.name, self.seed)

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of weights and of activations."""
        weights, activations = self.width.removeprefix("W").split("A")
        return int(weights), int(activations)

    def target(self) -> Target:
        """The hardware."""
        weight_bits, activation_bits = self.bits
        return load_target(TARGET).override(
            weight_bits=weight_bits, activation_bits=activation_bits, per_channel=self.row.per_channel
        )

    def key(self, run: Run) -> str:
        """Everything on which the result depends, except the sources."""
        pipeline = print_pipeline(self.row.pipeline(*self.bits))
        weights = weights_digest(self.network)
        data = (SPLITS, run.split, run.images, run.calibration)
        what = (NUMERICS, self.network, weights, self.width, self.row.per_channel, pipeline, self.seed, *data)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]

    def measure(self, model: nn.Module, scenes: Scenes, calibration: Sequence[Tensor]) -> Json:
        """Compile without verification, which tests do, and run the integer program."""
        begun = time.perf_counter()
        try:
            compiled = qcompiler.compile(
                model,
                self.target(),
                calibration_data=calibration,
                passes=self.row.pipeline(*self.bits),
                verify="off",
                seed=self.seed,
            )
        except QCompilerError as error:
            return {"accuracy": None, "error": str(error), "seconds": round(time.perf_counter() - begun, 1)}
        middle = time.perf_counter()
        logits = [compiled.run(part) for part in scenes.images.split(RUN_BATCH)]
        found = score(self.network, torch.cat([item for item in logits if isinstance(item, Tensor)]), scenes)
        compiling, running = middle - begun, time.perf_counter() - middle
        return {"accuracy": found, "compile": round(compiling, 1), "seconds": round(compiling + running, 1)}


WHOLE = Run()
QUICK = Run(("resnet", "resnet_hard"), seeds=1, split="validation", images=500, calibration=128)


def cells(run: Run) -> Iterator[Cell]:
    """All cells; the first seed of all before the second one, so that an unfinished run has whole tables."""
    for seed in range(run.seeds):
        for table in TABLES:
            for network in (name for name in table.networks if name in run.networks):
                for width in table.widths:
                    for row in table.rows:
                        yield Cell(table, network, width, row, seed)


def draw(pool: Tensor, count: int, seed: int) -> list[Tensor]:
    """Calibration batches: `count` images of the pool."""
    chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:count]
    return list(pool[chosen].split(CALIBRATION_BATCH))


class Data:
    """Networks and images of a run, loaded when they are asked for."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.model = functools.cache(load)

    @functools.cached_property
    def scenes(self) -> Scenes:
        """Images on which programs run."""
        return Scenes(*(part[: self.run.images] for part in split(self.run.split)))

    @functools.cached_property
    def pool(self) -> Tensor:
        """Images of which calibration draws."""
        return split("calibration").images

    def measure(self, cell: Cell) -> Json:
        """The result of a cell."""
        calibration = draw(self.pool, self.run.calibration, cell.seed)
        return cell.measure(self.model(cell.network), self.scenes, calibration)

    def exact(self) -> dict[str, float]:
        """Accuracy of each network in float."""
        return {name: accuracy(name, self.model(name), self.scenes) for name in self.run.networks}


def measured(data: Data, store: Store[Cell, Run]) -> Measured:
    """The finished cells of a run."""
    found: dict[tuple[str, str, str, str], list[float | None]] = {}
    for cell, result in store.done(data.run).items():
        place = (cell.table.title, cell.network, cell.width, cell.row.name)
        found.setdefault(place, []).append(result["accuracy"])
    return Measured(data.run, data.exact(), found)


def _line(cell: Cell, found: Json) -> str:
    reached = "fails" if found["accuracy"] is None else f"{found['accuracy']:.2%}"
    return f"seed {cell.seed}  {cell.network:<15}{cell.width:<6} {cell.row.name:<46}{reached:<8}{found['seconds']} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print the tables, and write the page if all of it was measured."""
    options = parser("benchmarks.ptq_accuracy", __doc__, OUTPUT).parse_args(arguments)
    torch.set_num_threads(1)  # sums of other threads come in another order
    run = QUICK if options.quick else WHOLE
    store: Store[Cell, Run] = Store(options.output, Cell.key, cells, WHOLE, rows=COMMITTED, fresh=options.fresh)
    data = Data(run)
    missing = 0 if options.page or options.collect else train_missing(options, run, store, data.measure, _line)
    if missing or options.only or options.shard[1] > 1:
        return 0
    text = section(measured(data, store), read_earlier(EARLIER))
    print(text)
    if options.collect or (run == WHOLE and not options.page):
        publish(store, PERFORMANCE, SECTION, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
