"""`python -m examples.imagenet.qat ROOT --network ... --checkpoint ...`: tables of quantization-aware training.

Figures are the accuracy of the integer program after training. Finished trainings are kept in `--output`, as is the
state of the current one, so that the same call continues an interrupted run. With `torchrun --nproc-per-node N -m
examples.imagenet.qat ...` N processes share each batch.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import qcompiler
from examples.imagenet.data import batches
from examples.imagenet.options import (
    Data,
    add_options,
    device_of,
    exit_status,
    is_first,
    load_all,
    positive,
    seed,
    tell,
    width,
)
from examples.imagenet.qat_tables import TABLES, Cell, Training, sheets
from examples.imagenet.results import Accuracy, Json, Store, accuracy, key, program, shipped
from examples.imagenet.training import Feed, Group, Learner, Limit, OutOfTimeError
from qcompiler.passes.correct_bias import CorrectBias
from qcompiler.session.pipeline import model_as_it_is, training_passes
from qcompiler.training.batch_norm import batch_norms
from qcompiler.training.freezing import Tracking
from qcompiler.training.tracking import oscillation_statistics, together

__all__ = ["main"]

REESTIMATION = 50
"""Batches from which batch norms are estimated anew: those of the published code on oscillations."""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="examples.imagenet.qat", description=__doc__)
    add_options(parser)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=["oscillations"], help="(oscillations)")
    parser.add_argument("--widths", nargs="+", type=width, help="such as W4A4 W3A3, in place of those of the papers")
    parser.add_argument("--seed", nargs="+", type=seed, default=[0], help="seeds, one training each (0)")
    parser.add_argument("--batch", type=positive, default=128, help="images per step, over all processes (128)")
    parser.add_argument("--epochs", type=positive, help="in place of those of the papers: 20 or 90")
    parser.add_argument("--lr", type=float, help="learning rate in place of that of the paper")
    parser.add_argument("--weight-decay", type=float, help="weight decay in place of that of the paper")
    parser.add_argument(
        "--save-every", type=positive, default=1000, metavar="STEPS", help="steps between savings (1000)"
    )
    parser.add_argument("--minutes", type=float, help="save and stop after this time; the same call continues")
    parser.add_argument("--output", type=Path, default=Path("out") / "imagenet" / "qat", help="folder of the results")
    return parser.parse_args(arguments)


def _prepared(
    cell: Cell, training: Training, data: Data, base: qcompiler.Target, steps: int, device: torch.device
) -> qcompiler.QATModule:
    """The module that learns."""
    target = _target(base, cell)
    passes = training_passes(target=target)
    if not training.corrected:
        passes = tuple(item for item in passes if not isinstance(item, CorrectBias))
    hardware = target.simulation is None
    return qcompiler.prepare_qat(
        data.network.model,
        target,
        calibration_data=data.calibration(cell.seed),
        method=training.way.method,
        # In a simulation batch norms stay in float next to one scale per weight.
        batch_norm=training.batch_norm if hardware else "keep",
        regularizers=training.way.regularizers,
        freezing=training.way.freezing,
        tracking=Tracking() if training.optimizer == "sgd" else None,
        total_steps=steps,
        passes=passes if training.way.equalized else model_as_it_is(passes),
        overrides=_wide_ends(data.network.model) if training.wide_ends and hardware else None,
        seed=cell.seed,
        device=device,
    )


def _target(base: qcompiler.Target, cell: Cell) -> qcompiler.Target:
    """The hardware with the widths of a cell."""
    weight_bits, activation_bits = cell.bits
    per_channel = base.simulation is None and cell.training is not None and cell.training.per_channel
    return base.override(weight_bits=weight_bits, activation_bits=activation_bits, per_channel=per_channel)


def _wide_ends(model: nn.Module) -> dict[str, int | dict[str, int]]:
    """Eight bits for the weights of the first and the last layer, and for the outputs of the network."""
    layers = [name for name, item in model.named_modules() if isinstance(item, nn.Conv2d | nn.Linear)]
    return {layers[0]: {"weight_bits": 8}, layers[-1]: 8}


@dataclass(frozen=True)
class _Run:
    """The settings of a call.

    Args:
        group: Processes.
        output: Folder of the results.
        limit: Time of the call.
        every: Steps between savings.
        fresh: Whether saved states count for nothing.
    """

    group: Group
    output: Path
    limit: Limit
    every: int
    fresh: bool


def _measured(run: Callable[[Tensor], object], cell: Cell, data: Data, group: Group) -> Accuracy:
    """Accuracy over all processes."""
    part = group.share(data.draws[cell.seed].measured)
    found = accuracy(run, batches(part, data.network.preprocessing, data.batch, workers=data.workers))
    return Accuracy(*map(int, group.total(found.first, found.few, found.images)))


def _train(cell: Cell, name: str, data: Data, base: qcompiler.Target, run: _Run) -> Json:
    """Train, measure the integer program, and write its artifact.

    Raises:
        OutOfTimeError: The time is over; the state is saved.
    """
    training, group, begun = cell.training, run.group, time.perf_counter()
    result: Json = {"network": cell.network, "width": cell.width, "seed": cell.seed}
    if training is None:
        model = data.network.model.to(group.device)
        return result | _measured(lambda images: model(images.to(group.device)), cell, data, group).record()
    assert data.train is not None, "there is no training without images"
    feed = Feed(data.train, data.network.preprocessing, data.batch, data.workers, cell.seed, group)
    module = _prepared(cell, training, data, base, training.epochs * feed.steps, group.device)
    folder = run.output / name
    learner = Learner(module, training, feed, folder / "state.safetensors", name, fresh=run.fresh)

    def look() -> float:
        module.eval()
        found: float = _measured(lambda images: module(images.to(group.device)), cell, data, group).record()["top1"]
        return found

    if learner.restored:
        tell(f"  continues after step {learner.steps:,} of {learner.total:,}")
    if learner.start is None:
        learner.start = look()
    learner.learn(run.limit, run.every)
    result |= {"start": learner.start, "loss": learner.losses}
    if module.oscillations():
        result["oscillating"] = together(oscillation_statistics(module)).share
    if batch_norms(module):
        result["before"] = look()
        again = itertools.islice(feed.epoch(training.epochs), REESTIMATION)
        qcompiler.reestimate_batch_norm(module, ((images.to(group.device),) for images, _ in again))
    if base.simulation is not None:
        found = _measured(lambda images: module(images.to(group.device)), cell, data, group)
    else:
        compiled = qcompiler.compile(module.eval().cpu())
        found = _measured(program(compiled, group.device), cell, data, group)
        if is_first():
            compiled.save(folder / "artifact")
    return result | found.record() | {"seconds": round(time.perf_counter() - begun)}


def _run(options: argparse.Namespace, group: Group) -> None:
    base = qcompiler.load_target(options.target)
    seeds = tuple(dict.fromkeys(options.seed))
    data = {item.network.name: item for item in load_all(options, seeds, training=True)}
    facts = {(name, seed): item.facts(seed) for name, item in data.items() for seed in seeds}
    some = next(iter(data.values()))
    drawn = {seed: item.calibration.digest() for seed, item in some.draws.items()}
    images = some.train.digest(sizes=False) if some.train is not None else ""

    def settled(cell: Cell) -> Cell:
        """The cell with the settings of the command line."""
        given = {"epochs": options.epochs, "rate": options.lr, "weight_decay": options.weight_decay}
        changed = {name: value for name, value in given.items() if value is not None}
        return cell if cell.training is None else replace(cell, training=replace(cell.training, **changed))

    def name(cell: Cell) -> str:
        what = facts[cell.network, cell.seed]
        if cell.training is not None:
            training = (settled(cell).training, cell.width, cell.seed, options.batch, group.count, repr(base))
            what = (*what, drawn[cell.seed], images, *training)
        return f"{cell.name}-{key(*what)}"

    made, cells = sheets(options.tables, list(data), options.widths, seeds, name)
    for cell in cells.values():
        if cell.training is not None:
            _target(base, cell)  # a width that the hardware lacks ends the run before days of work
    store = Store(options.output / "cells", fresh=options.fresh)
    run = _Run(group, options.output, Limit(options.minutes), options.save_every, options.fresh)
    part, parts = options.shard
    chosen = [item for item, cell in cells.items() if cell.training is None or options.only in item][part::parts]
    missing = _train_missing({item: settled(cells[item]) for item in chosen}, data, base, store, run)
    if is_first():
        word = "the simulations" if base.simulation is not None else "the integer programs"
        heading = (
            f"Accuracy of {word} for `{base.name}` after training, top-1, percent; with several seeds the mean and, in "
            f"brackets, the standard deviation. `...` is not trained yet. Top-5 and losses are in `qat.json`."
        )
        sys.stdout.write(shipped(made, store, options.output, "qat", heading))
        if missing:
            print(f"{missing} of {len(chosen)} cells are missing: the same call continues", file=sys.stderr)


def _train_missing(
    chosen: dict[str, Cell], data: Mapping[str, Data], base: qcompiler.Target, store: Store, run: _Run
) -> int:
    """Train until all is done or the time is over.

    Returns:
        Number of cells that are still missing.
    """
    for index, (name, cell) in enumerate(chosen.items()):
        found = store.find(name)
        if found is None:
            tell(f"{index + 1}/{len(chosen)}  {name}")
            try:
                found = _train(cell, name, data[cell.network], base, run)
            except OutOfTimeError:
                return len(chosen) - index
            if is_first():
                store.put(name, found)
        tell(f"{index + 1}/{len(chosen)}  {name}  top-1 {found['top1']:.2%}  top-5 {found['top5']:.2%}")
    return 0


@contextmanager
def _processes(options: argparse.Namespace) -> Iterator[Group]:
    """The processes of a launcher; one without a launcher."""
    total = int(os.environ.get("WORLD_SIZE", "1"))
    name = options.device
    if total > 1 and name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = device_of(name)
    if total == 1:
        yield Group(0, 1, device)
        return
    dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield Group(dist.get_rank(), total, device)
    finally:
        dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, and print the tables."""
    options = _options(arguments)

    def run() -> None:
        with _processes(options) as group:
            _run(options, group)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
