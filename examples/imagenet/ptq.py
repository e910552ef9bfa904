"""`python -m examples.imagenet.ptq ROOT --network ... --checkpoint ...`: tables of post-training quantization.

Every figure is the accuracy of the integer program. Finished cells are kept in `--output`, so that the same call
continues an interrupted run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import qcompiler
from examples.imagenet.data import batches
from examples.imagenet.options import Data, add_options, device_of, exit_status, load_all, positive, seed, tell, width
from examples.imagenet.ptq_tables import TABLES, Cell, sheets
from examples.imagenet.results import Json, Store, accuracy, key, program, shipped
from qcompiler.errors import InputError, QCompilerError

__all__ = ["main"]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="examples.imagenet.ptq", description=__doc__)
    add_options(parser)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=["summary"], help="tables (summary)")
    parser.add_argument("--widths", nargs="+", type=width, help="such as W8A8 W4A8, in place of those of the papers")
    parser.add_argument("--seed", nargs="+", type=seed, default=[0], help="draws of calibration images (0)")
    parser.add_argument("--batch", type=positive, default=50, help="images that are evaluated at once (50)")
    parser.add_argument("--output", type=Path, default=Path("out") / "imagenet" / "ptq", help="folder of the results")
    return parser.parse_args(arguments)


def _measure(cell: Cell, data: Data, target: qcompiler.Target, device: torch.device) -> Json:
    """The accuracy of the integer program of a cell, or the reason why there is none."""
    network, begun = data.network, time.perf_counter()
    result: Json = {
        "network": cell.network,
        "width": cell.width,
        "per_channel": cell.row.per_channel,
        "seed": cell.seed,
        "pipeline": cell.pipeline,
    }
    measured = data.draws[cell.seed].measured
    if cell.is_float:
        model = network.model.to(device)
        run = lambda images: model(images.to(device))  # noqa: E731
    else:
        calibration = data.calibration(cell.seed)
        try:
            compiled = qcompiler.compile(
                network.model,
                target,
                calibration_data=calibration,
                passes=cell.row.pipeline(*cell.bits),
                # The tests of the compiler compare the forms; here every cell would compile C.
                verify="off",
                seed=cell.seed,
                device=device,
            )
        except QCompilerError as error:
            return result | {"error": " ".join(str(error).split())}
        run = program(compiled, device)
    middle = time.perf_counter()
    images = batches(measured, network.preprocessing, data.batch, workers=data.workers)
    result |= accuracy(run, images).record()
    return result | {"seconds": {"compile": round(middle - begun, 1), "run": round(time.perf_counter() - middle, 1)}}


def _run(options: argparse.Namespace) -> None:
    base = qcompiler.load_target(options.target)
    if base.simulation is not None:
        raise InputError(
            f"{base.name} has no integer program: {base.simulation.reason}", fix="Choose another --target."
        )
    device = device_of(options.device)
    seeds = tuple(dict.fromkeys(options.seed))
    data = {item.network.name: item for item in load_all(options, seeds)}
    exact = {(name, seed): item.facts(seed) for name, item in data.items() for seed in seeds}
    drawn = {seed: item.calibration.digest() for seed, item in next(iter(data.values())).draws.items()}

    def name(cell: Cell) -> str:
        facts = exact[cell.network, cell.seed]
        if not cell.is_float:
            way = (cell.width, cell.row.per_channel, cell.pipeline, cell.seed, repr(base))
            facts = (*facts, drawn[cell.seed], *way)
        return f"{cell.name}-{key(*facts)}"

    made, cells = sheets(options.tables, list(data), options.widths, seeds, name)
    # All targets first: a width that the hardware lacks ends the run before hours of work.
    targets = {}
    for cell_name, cell in cells.items():
        if not cell.is_float:
            weights, activations = cell.bits
            targets[cell_name] = base.override(
                weight_bits=weights, activation_bits=activations, per_channel=cell.row.per_channel
            )
    store = Store(options.output / "cells", fresh=options.fresh)
    part, parts = options.shard
    chosen = [item for item, cell in cells.items() if cell.is_float or options.only in f"{item} {cell.row.name}"]
    chosen = chosen[part::parts]
    for index, cell_name in enumerate(chosen):
        found = store.find(cell_name)
        if found is None:
            cell = cells[cell_name]
            found = _measure(cell, data[cell.network], targets.get(cell_name, base), device)
            store.put(cell_name, found)
        reached = f"top-1 {found['top1']:.2%}  top-5 {found['top5']:.2%}" if "top1" in found else found["error"]
        tell(f"{index + 1}/{len(chosen)}  {cell_name.rpartition('-')[0]}  {cells[cell_name].row.name}  {reached}")
    heading = (
        f"Accuracy of the integer programs for `{base.name}`, top-1, percent; with several seeds the mean and, in "
        f"brackets, the standard deviation. `...` is not measured yet. Top-5 is in `ptq.json`."
    )
    sys.stdout.write(shipped(made, store, options.output, "ptq", heading))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, and print the tables."""
    options = _options(arguments)
    return exit_status(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
