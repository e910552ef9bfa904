"""Command-line options that both programs share, and what they load: networks and images."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.imagenet.data import DataError, Draw, Part, batches, draw, read_classes, read_part
from examples.imagenet.networks import Network, load_network
from examples.imagenet.results import write
from qcompiler.errors import InputError, QCompilerError

__all__ = [
    "Data",
    "add_options",
    "count",
    "device_of",
    "exit_status",
    "is_first",
    "load_all",
    "positive",
    "seed",
    "shard",
    "tell",
    "width",
]

CALIBRATION_BATCH = 32
WIDTH = re.compile(r"W\d+A\d+")
INTERRUPTED = 130
"""Exit status after an interrupt from the keyboard, as shells have it."""


@dataclass(frozen=True)
class Data:
    """A network with its images.

    Args:
        network: The network.
        draws: Images to calibrate and to measure, by seed.
        train: Training images; None if there are none.
        batch: Images that are read and evaluated at once.
        workers: Processes that read images.
    """

    network: Network
    draws: Mapping[int, Draw]
    train: Part | None
    batch: int
    workers: int

    def calibration(self, seed: int) -> list[Tensor]:
        """Calibration batches."""
        part = self.draws[seed].calibration
        found = batches(part, self.network.preprocessing, CALIBRATION_BATCH, workers=self.workers)
        return [images for images, _ in found]

    def facts(self, seed: int) -> tuple[object, ...]:
        """Everything on which the accuracy of the network as it is depends."""
        item, chosen = self.network, self.draws[seed]
        preprocessing = dataclasses.replace(item.preprocessing, source="")
        return (item.name, item.digest, preprocessing, chosen.measured.digest())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both programs share."""
    parser.add_argument("root", type=Path, help="folder with val/ and, for calibration and training, train/")
    parser.add_argument("--network", action="append", required=True, help="torchvision:NAME or timm:NAME; repeatable")
    parser.add_argument("--checkpoint", action="append", required=True, type=Path, help="weights, one per --network")
    parser.add_argument(
        "--network-options", type=_options, default={}, metavar="JSON", help="arguments of the networks"
    )
    parser.add_argument("--classes", type=positive, default=1000, help="outputs of the networks (1000)")
    parser.add_argument(
        "--class-names", type=Path, help="names of class folders, one per line, in order of the outputs"
    )
    parser.add_argument("--labels", type=Path, help="lines <image> <label> for a val/ folder without class folders")
    parser.add_argument("--weights", help="torchvision weights whose preprocessing applies, such as IMAGENET1K_V1")
    parser.add_argument("--resize", type=positive, help="shorter side, pixels, in place of that of the network")
    parser.add_argument("--crop", type=positive, help="side of the crop, pixels, in place of that of the network")
    parser.add_argument("--images", type=positive, help="measure on so many images, drawn by seed; default: all")
    parser.add_argument("--calibration", type=positive, default=1024, help="calibration images (1024)")
    parser.add_argument("--target", default="int8_dsp", help="name or TOML file of the hardware (int8_dsp)")
    parser.add_argument("--workers", type=count, default=0, help="processes that read images (0: the program itself)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--only", default="", help="only cells whose name contains this text")
    parser.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help="the I-th of N parts of the cells")
    parser.add_argument("--fresh", action="store_true", help="ignore the finished cells of earlier calls")


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def count(text: str) -> int:
    """A whole number."""
    return 0 if text == "0" else positive(text)


def seed(text: str) -> int:
    """A seed: a whole number below 2^31."""
    found = count(text)
    if found >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: expected a whole number below 2^31")
    return found


def width(text: str) -> str:
    """Bits of weights and of activations, such as W4A8."""
    if WIDTH.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no width, such as W4A8")
    return text


def _options(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object, such as {{"width_mult": 0.5}}')
    return found


def shard(text: str) -> tuple[int, int]:
    """Index, from 0, and number of the parts of a run."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part of a run: expected 1/2 for the first of two")
    return int(part) - 1, int(parts)


def device_of(name: str) -> torch.device:
    """The device of a name.

    Raises:
        InputError: There is no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"the device {name!r} cannot be used: {reason}", expected="cpu, cuda or cuda:N") from None
    return device


def load_all(options: argparse.Namespace, seeds: tuple[int, ...], *, training: bool = False) -> list[Data]:
    """Load the networks, find and draw the images, print the preprocessing, and record the draws in `--output`.

    Args:
        options: Parsed options.
        seeds: Seeds of the draws.
        training: Whether there must be training images.

    Raises:
        QCompilerError: A network, a checkpoint or the images are missing or do not fit.
    """
    if len(options.network) != len(options.checkpoint):
        found = f"{len(options.network)} --network, but {len(options.checkpoint)} --checkpoint"
        raise InputError(found, expected="one --checkpoint after each --network")
    if len(set(options.network)) < len(options.network):
        raise InputError("a network was given twice", fix="Measure its second checkpoint with another --output.")
    if not options.root.is_dir():
        raise InputError(f"there is no folder {options.root}", expected="a folder with val/ and train/")
    # Images first: to read folders takes seconds, to load all networks may take longer.
    train, val = _parts(options, training=training)
    draws = {
        seed: draw(val, train, calibration=options.calibration, images=options.images, seed=seed) for seed in seeds
    }
    loaded = []
    for name, checkpoint in zip(options.network, options.checkpoint, strict=True):
        network = load_network(
            name,
            checkpoint,
            outputs=options.classes,
            options=options.network_options,
            weights=options.weights,
            resize=options.resize,
            crop=options.crop,
        )
        tell(f"{name}: {network.preprocessing}")
        loaded.append(Data(network, draws, train, options.batch, options.workers))
    for seed, item in draws.items():
        note = f"seed {seed}: {len(item.calibration):,} images of {item.source} calibrate"
        tell(f"{note}, {len(item.measured):,} of val are measured")
        if is_first():
            write(options.output / f"draw-{seed}.json", json.dumps(item.record(seed), indent=1) + "\n")
    return loaded


def _parts(options: argparse.Namespace, *, training: bool) -> tuple[Part | None, Part]:
    """Training images, if there are any, and those to measure."""
    folder = options.root / "train"
    names = None if options.class_names is None else read_classes(options.class_names)
    train = read_part(folder, options.classes, classes=names) if folder.is_dir() or training else None
    trained = () if train is None else tuple(sorted({name.partition("/")[0] for name in train.names}))
    if options.labels is not None:
        names = names or trained or None
    val = read_part(options.root / "val", options.classes, classes=names, labels=options.labels)
    if train is not None and options.labels is None and names is None:
        measured = {name.partition("/")[0] for name in val.names}
        if differing := sorted(measured.symmetric_difference(trained)):
            found = f"train and val of {options.root} have different class folders, such as {differing[0]}"
            raise DataError(found, fix="Name all classes with --class-names.")
    return train, val


def is_first() -> bool:
    """Whether this is the first process of a launcher, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def tell(text: str) -> None:
    """Print progress on standard error, in one process."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


def exit_status(run: Callable[[], None]) -> int:
    """Run a program: 0, or 2 after an error, which is one line on standard error."""
    try:
        run()
    except QCompilerError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder without permission, a full disk
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same call continues after the last finished work", file=sys.stderr)
        return INTERRUPTED
    return 0
