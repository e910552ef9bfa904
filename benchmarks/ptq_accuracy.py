"""`python -m benchmarks.ptq_accuracy`: the loss by post-training quantization of trained networks, method by method.

Every figure is the accuracy of the integer program on the test split. Finished cells are kept in a file, so that
the same call continues an interrupted run. The key of a cell covers the weights, the pipeline and the images, but not
the sources of the compiler: after a change of the sources, `--fresh` measures all cells anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qcompiler
from benchmarks.networks import load, weights_digest
from benchmarks.pages import PERFORMANCE, write_section
from benchmarks.ptq_page import Measured, section
from benchmarks.ptq_tables import NETWORKS, TABLES, Row, Run, Table
from benchmarks.rendered import SPLITS, Scenes, split
from benchmarks.train import accuracy, score
from qcompiler.errors import QCompilerError
from qcompiler.session.pipeline import print_pipeline
from qcompiler.targets import Target, load_target

__all__ = ["QUICK", "Cell", "Store", "cells", "draw", "main", "measure"]

OUTPUT = Path(__file__).resolve().parents[1] / "out" / "benchmarks"
SECTION = "accuracy of post-training quantization"
TARGET = "int8_dsp"
CALIBRATION_BATCH = 64
RUN_BATCH = 50
"""Images that the program runs at once: in larger batches what it works on leaves the caches, at half the speed."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One compile, and what its program reaches."""

    table: Table
    network: str
    width: str
    row: Row
    seed: int

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
        what = (self.network, weights, self.width, self.row.per_channel, pipeline, self.seed, *data)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:32]

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
            return {"accuracy": None, "error": str(error)}
        middle = time.perf_counter()
        logits = [compiled.run(part) for part in scenes.images.split(RUN_BATCH)]
        found = score(self.network, torch.cat([item for item in logits if isinstance(item, Tensor)]), scenes)
        seconds = {"compile": round(middle - begun, 1), "run": round(time.perf_counter() - middle, 1)}
        return {"accuracy": found, "seconds": seconds}


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


class Store:
    """Finished cells in a file."""

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self.cells: Json = {} if fresh or not path.exists() else json.loads(path.read_text(encoding="utf-8"))

    def get(self, key: str, make: Callable[[], Json]) -> Json:
        """A cell, made if it is not there."""
        if key not in self.cells:
            self.cells[key] = make()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Through a second file: a killed run leaves a whole file.
            beside = self.path.with_suffix(".new")
            beside.write_text(json.dumps(self.cells, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            beside.replace(self.path)
        found: Json = self.cells[key]
        return found


def measure(run: Run, store: Store) -> Measured:
    """All cells of a run; progress goes to standard error."""
    scenes = Scenes(*(part[: run.images] for part in split(run.split)))
    pool = split("calibration").images
    models = {name: load(name) for name in run.networks}
    result = Measured(run, {name: accuracy(name, model, scenes) for name, model in models.items()}, {})
    for cell in cells(run):

        def make(cell: Cell = cell) -> Json:
            return cell.measure(models[cell.network], scenes, draw(pool, run.calibration, cell.seed))

        found: float | None = store.get(cell.key(run), make)["accuracy"]
        place = (cell.table.title, cell.network, cell.width, cell.row.name)
        result.found.setdefault(place, []).append(found)
        reached = "fails" if found is None else f"{found:.2%}"
        line = f"seed {cell.seed}  {cell.network:<15}{cell.width:<6} {cell.row.name:<46}{reached}"
        print(line, file=sys.stderr, flush=True)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page if all of it was measured."""
    parser = argparse.ArgumentParser(prog="benchmarks.ptq_accuracy", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two networks, one seed, few images of the validation split"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="only these")
    parser.add_argument("--seeds", type=int, help="draws of the calibration images")
    parser.add_argument("--split", choices=["test", "validation"], help="`validation` while something is being chosen")
    parser.add_argument("--images", type=int, help="only the first ones")
    parser.add_argument("--fresh", action="store_true", help="forget finished cells")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the finished cells")
    options = parser.parse_args(arguments)
    base = QUICK if options.quick else Run()
    run = Run(
        tuple(options.networks or base.networks),
        options.seeds or base.seeds,
        options.split or base.split,
        options.images or base.images,
        base.calibration,
    )
    text = section(measure(run, Store(options.output / "ptq_accuracy.json", fresh=options.fresh)))
    print(text)
    if run.is_complete:
        write_section(PERFORMANCE, SECTION, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
