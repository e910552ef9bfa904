"""`python -m benchmarks.quantized_training`: accuracy of training with quantized gradients, estimator by estimator.

Small networks learn from scratch on rendered pictures of 64x64 pixels in 48 classes. The tables have the form of
Fournarakis and Nagel 2021, arXiv:2105.04246: only gradients, only activations, everything quantized to 8 bits; and
gradients of 4 bits. Their figures are those of this scale, not the paper's.

Each finished training is a file in out/benchmarks/quantized_training, so that the same call continues an interrupted
run. `--collect` writes finished trainings to benchmarks/results, which is committed, and the page. Two processes share
a run with `--shard 1/2` and `--shard 2/2`. `--quick` trains a few short ones in minutes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qcompiler
from benchmarks.finished import Json, Store
from benchmarks.pages import PERFORMANCE
from benchmarks.quantized_training_page import MODES, Cell, section
from benchmarks.scratch_networks import NETWORKS, new
from benchmarks.textured import SPLITS, Pictures, split
from benchmarks.trainings import parser, publish, train_missing
from qcompiler.training.range_estimators import ESTIMATORS

__all__ = ["NUMERICS", "QUICK", "WHOLE", "Data", "Run", "cells", "key", "main", "measure"]

OUTPUT = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "quantized_training"
COMMITTED = Path(__file__).with_name("results") / "quantized_training.jsonl"
SECTION = "accuracy of quantized training"
RATE, DECAY, WARMUP = 0.006, 0.02, 0.15
"""AdamW on one cycle, as the networks of the other benchmarks are trained. With SGD at 0.05 the small ResNet-18 reached
13 % in float after 60,000 pictures."""
EVALUATION_BATCH = 50
"""The intermediate results of an exact evaluation fit in the cache: a third faster than 250."""
NUMERICS = 2
"""Version of pictures, networks, and what the compiler computes in quantized training: to be raised with every change,
rounding aside."""


@dataclass(frozen=True)
class Run:
    """The size of a run.

    Args:
        pictures: Number of pictures to train on.
        epochs: Number of passes over them.
        batch: Pictures per step.
        split: Part of the data set to test on.
        images: Number of pictures to test on.
        whole: Whether it is the run that is committed.
    """

    pictures: int
    epochs: int
    batch: int
    split: str
    images: int
    whole: bool

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.epochs * (self.pictures // self.batch)


WHOLE = Run(12_000, 5, 64, "test", 5_000, whole=True)
"""60,000 pictures a training."""
QUICK = Run(3_840, 2, 64, "validation", 500, whole=False)
SEEDS = {"resnet18": 5, "mobilenet_v2": 5, "vgg": 1}


TELLING = ("current", "running", "in_hindsight")
"""Estimators between which the method decides."""


def cells(run: Run) -> list[Cell]:
    """The trainings of a run; those that say most are first."""
    networks = list(NETWORKS) if run.whole else ["resnet18", "mobilenet_v2"]
    estimators = list(ESTIMATORS) if run.whole else TELLING
    found = []
    for network in networks:
        modes = [mode for mode in MODES if run.whole or network == "resnet18" or mode == "everything"]
        for seed in range(SEEDS[network] if run.whole else 1):
            found.append(Cell(network, "float", "", seed))
            found += [Cell(network, mode, estimator, seed) for mode in modes for estimator in estimators]
    return sorted(found, key=_turn)


def _turn(cell: Cell) -> tuple[int, int]:
    """Order of trainings: seed 0 with 8 bits everywhere or gradients of 4, all seeds with few estimators, the rest."""
    if cell.mode not in ("float", "everything", "four_bits"):
        return 2, cell.seed
    if cell.seed == 0 and SEEDS[cell.network] > 1:
        return 0, 0
    return (1, cell.seed) if cell.estimator in ("", *TELLING) else (2, cell.seed)


class Data:
    """The pictures of a run.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.train = split("train", run.pictures)
        self.test = split(run.split, run.images)


def prepare(cell: Cell, data: Data) -> nn.Module:
    """The network with random weights, quantized as the cell says."""
    model = new(cell.network, cell.seed)
    if cell.mode == "float":
        return model.train()
    mode = MODES[cell.mode]
    return qcompiler.prepare_quantized_training(
        model,
        "int8_dsp",
        example_inputs=(data.train.images[: data.run.batch],),
        gradient_bits=mode.gradient_bits,
        operands=mode.operands,
        estimator=cell.estimator,
        seed=cell.seed,
    )


def train(module: nn.Module, cell: Cell, data: Data) -> list[float]:
    """Train; the mean loss of each epoch, nats."""
    run, losses = data.run, []
    generator = torch.Generator().manual_seed(cell.seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=run.steps, pct_start=WARMUP)
    module.train()
    for _ in range(run.epochs):
        total = 0.0
        order = torch.randperm(len(data.train.labels), generator=generator)
        for chosen in order[: len(order) // run.batch * run.batch].split(run.batch):
            images, labels = data.train.images[chosen], data.train.labels[chosen]
            loss = F.cross_entropy(_logits(module, images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if isinstance(module, qcompiler.QATModule):
                module.step()
            total += loss.item()
        losses.append(round(total / (len(order) // run.batch), 5))
    return losses


def measure(cell: Cell, data: Data) -> Json:
    """Train and test; with everything quantized, also the integer program and quantization after float training."""
    begun = time.perf_counter()
    module = prepare(cell, data)
    losses = train(module, cell, data)
    module.eval()
    result: Json = {"loss": losses, "accuracy": accuracy(module, data.test)}
    if MODES.get(cell.mode) is not None and isinstance(module, qcompiler.QATModule) and module.exact:
        compiled = qcompiler.compile(module, verify="off")
        few = data.test.images[:50]
        program = compiled.run(few)
        assert isinstance(program, Tensor)
        result["differing"] = int((program != _logits(module, few)).sum())
    if cell.mode == "float":
        compiled = qcompiler.compile(module, "int8_dsp", calibration_data=[data.train.images[:256]], verify="off")
        result["after quantization"] = accuracy(compiled.module().eval(), data.test)
    return result | {"seconds": round(time.perf_counter() - begun)}


@torch.no_grad()
def accuracy(module: nn.Module, pictures: Pictures) -> float:
    """Share of right answers."""
    parts = zip(pictures.images.split(EVALUATION_BATCH), pictures.labels.split(EVALUATION_BATCH), strict=True)
    return sum(int((_logits(module, x).argmax(1) == y).sum()) for x, y in parts) / len(pictures.labels)


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    found = module(images)
    assert isinstance(found, Tensor)
    return found


def key(cell: Cell, run: Run) -> str:
    """Key of a result: 12 hexadecimal digits of a hash of the training, its data and the numerics."""
    settings = (NUMERICS, RATE, DECAY, WARMUP, SPLITS, MODES.get(cell.mode))
    what = (cell, dataclasses.replace(run, whole=True), settings)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def _line(cell: Cell, found: Json) -> str:
    return f"{cell.name:<44}{found['accuracy']:>8.2%}  {found['seconds']} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, print the tables, and write the page if all of it was trained."""
    options = parser("benchmarks.quantized_training", __doc__, OUTPUT).parse_args(arguments)
    torch.set_num_threads(1)  # sums of other threads come in another order
    run = QUICK if options.quick else WHOLE
    store: Store[Cell, Run] = Store(options.output, key, cells, WHOLE, rows=COMMITTED, fresh=options.fresh)
    if not (options.page or options.collect):
        data = functools.cache(lambda: Data(run))
        train_missing(options, run, store, lambda cell: measure(cell, data()), _line)
    done = store.done(run)
    text = section(done, run.pictures * run.epochs, len(cells(run)))
    print(text)
    if options.collect or (run == WHOLE and len(done) == len(cells(run))):
        publish(store, PERFORMANCE, SECTION, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
