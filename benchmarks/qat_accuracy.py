"""`python -m benchmarks.qat_accuracy`: accuracy and oscillations of training with quantization, method by method.

Networks start from their committed weights. Each finished training is a file in out/benchmarks/qat_accuracy, so that
the same call continues an interrupted run. `--collect` writes finished trainings to benchmarks/results, which is
committed, and the page. The key of a result covers the training, its data, the weights and `NUMERICS`, but not the
sources of the compiler.

A training takes about three minutes on one core, the whole run about five hours; one call ends within 100 minutes. Two
processes share a run with `--shard 1/2` and `--shard 2/2`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import qcompiler
from benchmarks.networks import load, weights_digest
from benchmarks.pages import PERFORMANCE
from benchmarks.qat_page import section
from benchmarks.qat_results import COMMITTED, EARLIER, Earlier, Json, Store
from benchmarks.qat_tables import BASELINE, CHOICES, QUICK, TWIN, WHOLE, Cell, Place, Run, Way, cells
from benchmarks.rendered import SPLITS, Scenes, split
from benchmarks.train import SMOOTHING, accuracy, turned
from benchmarks.trainings import parser, publish, train_missing
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.session.pipeline import model_as_it_is, training_passes
from qcompiler.training.choose_codes import BinaryOptimization, optimize_codes, sample_codes
from qcompiler.training.freezing import Tracking
from qcompiler.training.tracking import oscillation_statistics, together

__all__ = ["NUMERICS", "Data", "key", "main", "measure", "prepare", "train"]

OUTPUT = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "qat_accuracy"
SECTION = "accuracy of quantization-aware training"
CALIBRATION = 512
RATE, SCALE_RATE, DECAY, MOMENTUM = 0.05, 1e-3, 2.5e-5, 0.9
"""SGD with momentum for the model, Adam for scales. Rates chosen on the validation split."""
REESTIMATION = 50
"""Batches from which batch norms are estimated anew."""
LOSS_SCENES = 6_400
"""Training scenes of which table 3 gives the loss."""
RUN_BATCH = 50
NUMERICS = 2
"""Version of what the compiler computes in training: to be raised with every change, first scales included, after which
the same training gives other numbers, rounding aside. `tests/benchmarks/test_qat_accuracy.py` holds some of them.

1: the gradients of scales are divided by sqrt(N qmax), N counts the batch.
2: decision 27; first scales have the least squared error of all scales, before that of some.
"""
EQUALIZATION = 4
"""Version of the rescaling of channels before training, which only the hard twin has: to be raised when it changes.

1: equal ranges of weights.
2: least expected noise, decision 38.
3: grids before activations and clipping count as well; ranges of activations clip less, decision 41.
4: equal ranges of weights again, decision 53.
"""


class Data:
    """The scenes of a run.

    Args:
        run: Which.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        drawn = Scenes(*(part[: run.scenes] for part in split("train")))
        self.train = drawn._replace(images=_channels_last(drawn.images))
        self.test = Scenes(*(part[: run.images] for part in split(run.split)))
        self.calibration = list(split("calibration").images[:CALIBRATION].split(64))

    def few(self) -> list[Tensor]:
        """Batches from which batch norms are estimated anew."""
        return list(self.train.images[: REESTIMATION * self.run.batch].split(self.run.batch))


def _channels_last(images: Tensor) -> Tensor:
    """The same values in the layout in which small convolutions train a quarter faster on processors."""
    return images.contiguous(memory_format=torch.channels_last)


def prepare(place: Place, way: Way, data: Data) -> qcompiler.QATModule:
    """The module that learns: for the paper's scheme, or of a twin for hardware with one scale per weight."""
    weight_bits, activation_bits = place.bits
    hardware = place == TWIN
    target = qcompiler.load_target("int8_dsp" if hardware else "lsq_paper")
    target = target.override(weight_bits=weight_bits, activation_bits=activation_bits, per_channel=False)
    freezing, momentum = way.freezing, data.run.momentum
    if freezing is not None:
        freezing = dataclasses.replace(freezing, tracking=dataclasses.replace(freezing.tracking, momentum=momentum))
    passes = tuple(item for item in training_passes(target=target) if not isinstance(item, CorrectBias))
    module = qcompiler.prepare_qat(
        load(place.network),
        target,
        calibration_data=data.calibration,
        method=way.method,
        regularizers=way.regularizers,
        freezing=freezing,
        tracking=None if hardware else Tracking(momentum, largest_bits=weight_bits if weight_bits < 8 else 7),
        total_steps=data.run.steps,
        passes=passes if way.equalized else model_as_it_is(passes),
    )
    return module.to(memory_format=torch.channels_last)


def _optimizers(module: qcompiler.QATModule, way: Way) -> list[torch.optim.Optimizer]:
    if way.rate is not None:
        return [torch.optim.Adam(map(dict, module.parameter_groups(way.rate, scale_lr=way.rate, weight_decay=0.0)))]
    groups = [dict(group) for group in module.parameter_groups(RATE, scale_lr=SCALE_RATE, weight_decay=DECAY)]
    scales = [group for group in groups if group["name"] in ("scales", "ranges")]
    others = [group for group in groups if group not in scales]
    return [torch.optim.SGD(others, momentum=MOMENTUM), torch.optim.Adam(scales)]


def train(module: qcompiler.QATModule, cell: Cell, data: Data) -> list[float]:
    """Train; the mean loss of the task of each epoch, nats."""
    way, floor = cell.way, cell.place.floor
    generator = torch.Generator().manual_seed(cell.seed)
    optimizers = _optimizers(module, way)

    def decay(step: int) -> float:
        return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * min(1.0, step / data.run.steps))) / 2.0

    schedules = [torch.optim.lr_scheduler.LambdaLR(item, decay) for item in optimizers]
    batch, count = data.run.batch, len(data.train.labels)
    per_epoch = count // batch
    losses = []
    module.train()
    for _ in range(data.run.epochs):
        total = 0.0
        for chosen in torch.randperm(count, generator=generator)[: per_epoch * batch].split(batch):
            images, labels = turned(data.train.images[chosen], data.train.labels[chosen], generator)
            loss = F.cross_entropy(_logits(module, images), labels, label_smoothing=SMOOTHING)
            total += loss.item()
            if way.regularizers:
                loss = loss + module.regularization()
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            module.step()
        losses.append(round(total / per_epoch, 5))
    return losses


def measure(cell: Cell, data: Data, folder: Path) -> Json:
    """Train and look at what came out."""
    begun = time.perf_counter()
    if cell.way == CHOICES:
        return _choose(cell, data, folder) | {"seconds": round(time.perf_counter() - begun)}
    module = prepare(cell.place, cell.way, data)
    name = cell.place.network
    result: Json = {"at first": accuracy(name, module.eval(), data.test)}
    result["loss"] = train(module, cell, data)
    module.eval()
    result["before"] = accuracy(name, module, data.test)
    if cell.place == TWIN:
        result["differing"] = _differing(module, data.test.images)
    else:
        result |= _movements(module)
        found = qcompiler.batch_norm_divergence(module, data.few())
        result["divergence"] = {norm: [item.largest, item.mean] for norm, item in found.items()}
        qcompiler.reestimate_batch_norm(module, data.few())
        result["after"] = accuracy(name, module, data.test)
    if cell.way == BASELINE and cell.seed == 0:
        learned = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
        save_file(learned, _state(cell, data, folder))
    return result | {"seconds": round(time.perf_counter() - begun)}


def _movements(module: qcompiler.QATModule) -> Json:
    if not module.oscillations():
        return {}
    layers = oscillation_statistics(module)
    whole = together(layers)
    shares = {layer: round(item.share, 6) for layer, item in layers.items()}
    return {"oscillating": whole.share, "frozen": whole.frozen_share, "layers": shares}


def _differing(module: qcompiler.QATModule, images: Tensor) -> int | str:
    """Elements in which the integer program is not what the module computes in eval mode, or why there is none."""
    try:
        compiled = qcompiler.compile(module, verify="off")
    except qcompiler.errors.CalibrationError as refused:
        return refused.found
    parts = ((_logits(module, part), compiled.run(part)) for part in images.split(RUN_BATCH))
    return sum(int((ours != theirs).sum()) for ours, theirs in parts if isinstance(theirs, Tensor))


def _state(cell: Cell, data: Data, folder: Path) -> Path:
    return folder / f"{cell.name}-{key(dataclasses.replace(cell, way=BASELINE), data.run)}.safetensors"


def _choose(cell: Cell, data: Data, folder: Path) -> Json:
    """Table 3: what choosing the codes of oscillating weights afterwards gives."""
    source = Cell(cell.place, BASELINE, cell.seed)
    module = prepare(source.place, source.way, data)
    path = _state(source, data, folder)
    if path.exists():
        module.load_state_dict(load_file(path))
    else:
        train(module, source, data)
    learned = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def look() -> Json:
        qcompiler.reestimate_batch_norm(module, data.few())
        return {
            "loss": _loss_of(module.eval(), data.train),
            "accuracy": accuracy(cell.place.network, module, data.test),
        }

    result: Json = {"as it is": look(), "samples": []}
    for seed in range(data.run.samples):
        module.load_state_dict(learned)
        moved = sample_codes(module, seed=seed)
        result["samples"].append(look() | {"moved": moved})
    module.load_state_dict(learned)
    generator = torch.Generator().manual_seed(cell.seed)

    def batches() -> Sequence[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(data.train.labels), generator=generator)[: data.run.choosing * data.run.batch]
        return [(data.train.images[part], data.train.labels[part]) for part in order.split(data.run.batch)]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(_logits(model, batch[0]), batch[1])

    moved = optimize_codes(module, _Epochs(batches), loss, BinaryOptimization(steps=data.run.choosing))
    return result | {"optimised": look() | {"moved": moved}}


class _Epochs:
    """Batches in another order each time."""

    def __init__(self, make: Callable[[], Sequence[tuple[Tensor, Tensor]]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.make())


@torch.no_grad()
def _loss_of(module: nn.Module, scenes: Scenes) -> float:
    """Mean cross-entropy, nats."""
    parts = zip(scenes.images[:LOSS_SCENES].split(500), scenes.labels[:LOSS_SCENES].split(500), strict=True)
    return statistics.fmean(
        value for x, y in parts for value in F.cross_entropy(_logits(module, x), y, reduction="none").tolist()
    )


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    found = module(images)
    assert isinstance(found, Tensor)
    return found


def key(cell: Cell, run: Run) -> str:
    """Key of a result: 12 hexadecimal digits of a hash of the training, its data, the weights and the numerics."""
    settings = (NUMERICS, RATE, SCALE_RATE, DECAY, MOMENTUM, SMOOTHING, REESTIMATION, CALIBRATION)
    # How many seeds a row has, and of how many rows a run, changes no training.
    cell = dataclasses.replace(cell, place=dataclasses.replace(cell.place, seeds=1))
    what: tuple[object, ...] = (cell, dataclasses.replace(run, whole=True), settings, SPLITS)
    what += (weights_digest(cell.place.network),)
    if cell.place == TWIN:
        what += (EQUALIZATION,)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def _line(cell: Cell, found: Json) -> str:
    figures = [f"{key} {found[key]:.2%}" for key in ("before", "after", "oscillating", "frozen") if key in found]
    return f"{cell.name:<58}{'  '.join(figures)}  {found['seconds']} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, print the tables, and write the page if all of it was trained."""
    options = parser("benchmarks.qat_accuracy", __doc__, OUTPUT).parse_args(arguments)
    torch.set_num_threads(1)  # sums of other threads come in another order
    run = QUICK if options.quick else WHOLE
    store = Store(options.output, key, rows=COMMITTED, fresh=options.fresh)
    if not (options.page or options.collect):
        data = functools.cache(lambda: Data(run))
        train_missing(options, run, store, lambda cell: measure(cell, data(), store.folder), _line)
    done = store.done(run)
    text = section(run, done, Earlier.read(EARLIER))
    print(text)
    if options.collect or (run == WHOLE and len(done) == len(list(cells(run)))):
        publish(store, PERFORMANCE, SECTION, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
