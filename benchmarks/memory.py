"""`python -m benchmarks.memory`: the most memory that a compile at best effort takes, and how long.

Each network is compiled in a process of its own. The figure is what the kernel calls its peak resident set: the
interpreter, torch and the model are in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn

import qcompiler
from benchmarks.pages import PERFORMANCE, write_section

OUTPUT = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "memory.json"
SECTION = "memory"
NETWORKS = ("resnet50", "vgg11")
SIZE, BATCH, IMAGES = 224, 32, 256
LIMIT_GIB = 6.0

Json = dict[str, Any]


class Noise:
    """Batches of Gaussian noise, made when they are asked for: what data there is takes no memory of its own."""

    def __init__(self, images: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images // BATCH

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(len(self)):
            yield torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(index))


def peak() -> float:
    """GiB of the largest resident set of this process."""
    # Not `getrusage`: its figure counts the process that started this one, too.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20


def measure(name: str, images: int) -> Json:
    """Compile one network here."""
    torch.manual_seed(0)
    model = cast("nn.Module", getattr(torchvision.models, name)(weights=None)).eval()
    before, begun = peak(), time.perf_counter()
    compiled = qcompiler.compile(model, calibration_data=Noise(images), effort="best", verify="off")
    parts = sorted(compiled.seconds.items(), key=lambda item: -item[1])[:3]
    return {"images": images, "before": before, "peak": peak(), "s": time.perf_counter() - begun, "parts": dict(parts)}


def in_a_process(name: str, images: int) -> Json:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--one", name, "--images", str(images)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root)
    result: Json = json.loads(done.stdout.splitlines()[-1])
    return result


def section(results: dict[str, Json]) -> str:
    """The section of the page."""
    images = next(iter(results.values()))["images"]
    text = (
        f'Made by `python -m benchmarks.memory`: `effort="best"` on `int8_dsp` with {images} images at {SIZE}x{SIZE}, '
        f"peak resident set of the process, GiB; at most {LIMIT_GIB:g} is wanted. `memory=`, what is kept of "
        "activations, is as it is by default."
    )
    lines = [
        "## Memory of a compile",
        "",
        text,
        "",
        "| | interpreter, torch, model | peak | longest steps |",
        "|---|---:|---:|---|",
    ]
    for name, row in results.items():
        parts = ", ".join(f"{part} {seconds / row['s']:.0%}" for part, seconds in row["parts"].items())
        lines.append(f"| {name} | {row['before']:.2f} | {row['peak']:.2f} | {parts} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__)
    parser.add_argument("--one", choices=NETWORKS, help="measure this network here, and print the figures")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="fewer: writes no page")
    parser.add_argument("--images", type=int, default=IMAGES, help="fewer: writes no page")
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options.one, options.images)))
        return 0
    results = {}
    for name in options.networks:
        results[name] = in_a_process(name, options.images)
        print(name, json.dumps(results[name]), flush=True)
    print(section(results))
    if tuple(options.networks) == NETWORKS and options.images == IMAGES:
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_section(PERFORMANCE, SECTION, section(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
