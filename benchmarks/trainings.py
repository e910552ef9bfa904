"""Options and loop of benchmarks that train for hours: processes share a run, and the same call continues it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.finished import CellT, Json, RunT, Store
from benchmarks.pages import write_section

__all__ = ["MINUTES", "parser", "publish", "shard", "train_missing"]

MINUTES = 100.0
"""Time that one call takes at most."""


def shard(text: str) -> tuple[int, int]:
    """Index, from 0, and number of the parts of a run, for argparse.

    Args:
        text: `1/2` for the first of two parts.

    Raises:
        ArgumentTypeError: The text is no part of a run.
    """
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part of a run: expected 1/2 for the first of two")
    return int(part) - 1, int(parts)


def parser(name: str, description: str | None, output: Path) -> argparse.ArgumentParser:
    """The options of such a benchmark.

    Args:
        name: Name of the module.
        description: Documentation of the module.
        output: Folder of the finished trainings by default.
    """
    found = argparse.ArgumentParser(prog=name, description=description)
    found.add_argument("--quick", action="store_true", help="few short trainings, validation split")
    found.add_argument("--page", action="store_true", help="train nothing: the tables of what is finished")
    found.add_argument("--collect", action="store_true", help="train nothing: write what is finished to be committed")
    found.add_argument("--only", default="", help="trainings whose name holds this text")
    found.add_argument(
        "--shard", type=shard, default=(0, 1), metavar="I/N", help="the I-th of N parts of the trainings"
    )
    found.add_argument("--minutes", type=float, default=MINUTES, help="begin no training that may end later")
    found.add_argument("--fresh", action="store_true", help="forget finished trainings")
    found.add_argument("--output", type=Path, default=output, help="folder of the finished trainings")
    return found


def train_missing(
    options: argparse.Namespace,
    run: RunT,
    store: Store[CellT, RunT],
    make: Callable[[CellT], Json],
    line: Callable[[CellT, Json], str],
    among: Callable[[CellT], bool] = lambda cell: True,
) -> int:
    """Train what is missing of a part of a run, until the time is over, and say how many trainings are left.

    Args:
        options: Options that `parser` read.
        run: The run.
        store: Finished trainings of the run.
        make: Trains, and returns figures; "seconds" is one of them.
        line: Function that makes the printed line of a finished training.
        among: Whether a training can be made here; others are left out.

    Returns:
        Number of trainings of the part that are still missing.
    """
    part, parts = options.shard
    chosen = [cell for cell in store.cells(run) if options.only in cell.name and among(cell)][part::parts]
    begun, longest = time.monotonic(), 0.0
    for index, cell in enumerate(chosen):
        if not store.fresh and store.find(cell, run) is not None:
            continue
        if time.monotonic() - begun + longest > 60.0 * options.minutes:
            return _announced(sum(store.find(other, run) is None for other in chosen[index:]), chosen)
        found = store.get(cell, run, lambda cell=cell: make(cell))  # type: ignore[misc]
        longest = max(longest, found["seconds"])
        print(line(cell, found), file=sys.stderr, flush=True)
    return 0


def _announced(missing: int, chosen: Sequence[object]) -> int:
    if missing:
        print(f"{missing} of {len(chosen)} trainings are missing: the same call continues", file=sys.stderr)
    return missing


def publish(store: Store[CellT, RunT], page: Path, title: str, text: str) -> None:
    """Write the finished trainings of the whole run into the committed file, and their section into a page."""
    dropped = store.collect()
    if dropped:
        print(f"{dropped} results were dropped: no training of this run has their key", file=sys.stderr)
    write_section(page, title, text)
