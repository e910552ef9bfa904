"""`python -m benchmarks.scale`: how the cost of a compile grows with the network.

| row | figure |
|---|---|
| chains of 500 to 5,000 layers | CPU seconds of a whole compile, verification included; exponent of growth |
| concat of 1,000 parts | CPU seconds |
| MobileNetV2, best effort | work of its convolutions, in forward passes over the calibration data |
| CoaT tiny with float islands | peak resident set, GiB; needs timm, which `--install` puts into a folder of its own |

Each row is a process of its own with one thread. CPU seconds are those of the process and of the compilers that it
starts, without imports; they differ between machines, the exponent does not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import qcompiler
from benchmarks.__main__ import Chain
from benchmarks.memory import peak
from benchmarks.pages import PERFORMANCE, write_section
from qcompiler.targets import Target

__all__ = ["ROWS", "Json", "Row", "exponent", "main", "measure", "section"]

OUTPUT = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "scale.json"
FOLDER = OUTPUT.with_name("scale_packages")
SECTION = "scale"
PACKAGES = ("timm==1.0.31", "huggingface_hub", "httpx", "filelock", "fsspec", "pyyaml", "tqdm", "packaging")
"""Packages for CoaT, installed without their dependencies."""
LAYERS = (500, 1000, 2000, 5000)
MOST_SECONDS, MOST_EXPONENT, MOST_PASSES, MOST_GIB = 180.0, 1.2, 15.0, 3.0

Json = dict[str, Any]


class Repeated(nn.Module):
    """One value a thousand times in a concat.

    Args:
        parts: Number of parts.
    """

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.layer, self.parts = nn.Conv2d(3, 4, 1), parts

    def forward(self, x: Tensor) -> Tensor:
        """The concatenated parts."""
        return torch.cat([self.layer(x)] * self.parts, 1)


class Sliced(Repeated):
    """A concat of as many slices of one value.

    Args:
        parts: Number of parts.
    """

    def __init__(self, parts: int) -> None:
        super().__init__(parts)
        self.layer = nn.Conv2d(3, parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The concatenated parts."""
        y = self.layer(x)
        return torch.cat([y[:, index : index + 1] for index in range(self.parts)], 1)


def _compiled(model: nn.Module, x: Tensor, target: str | Target = "int8_dsp") -> Json:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.process_time()
    qcompiler.compile(model.eval(), target, calibration_data=[x])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = time.process_time() - begun + (after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime)
    return {"s": seconds, "gib": peak()}


def _chain(layers: int) -> Json:
    return _compiled(Chain(layers), torch.randn(2, 2, 2, 2))


def _concat(kind: type[Repeated]) -> Json:
    qcompiler.compile(kind(2).eval(), calibration_data=[torch.randn(2, 3, 4, 4)])  # imports, and finding the compiler
    return _compiled(kind(1000), torch.randn(2, 3, 4, 4))


def _passes(images: int = 64, size: int = 64) -> Json:
    """Work of all convolutions, backward ones included, divided by that of one pass over the data."""
    model = torchvision.models.mobilenet_v2(weights=None).eval()
    data = list(torch.randn(images, 3, size, size).split(16))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for batch in data:
            model(batch)
    once = _convolutions(counter)
    with FlopCounterMode(display=False) as counter:
        qcompiler.compile(model, "int8_dsp_per_channel", calibration_data=data, effort="best", verify="off")
    return {"passes": _convolutions(counter) / once, "gib": peak()}


def _convolutions(counter: FlopCounterMode) -> float:
    counts = counter.get_flop_counts()["Global"]
    return float(sum(count for name, count in counts.items() if "conv" in str(name) and isinstance(count, int)))


def _coat() -> Json:
    sys.path.append(str(FOLDER))
    try:
        import timm  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        return {"absent": f"{error}; install with python -m benchmarks.scale --install"}
    target = qcompiler.load_target("int8_dsp").override(fallback="float")
    return _compiled(timm.create_model("coat_tiny"), torch.randn(2, 3, 224, 224), target)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        measure: Function that measures it in this process.
        figure: Key of the figure.
        wanted: Largest figure that is wanted; None if none is.
    """

    measure: Callable[[], Json]
    figure: str
    wanted: float | None = None


ROWS: dict[str, Row] = {
    **{f"{count:,} layers": Row(lambda count=count: _chain(count), "s") for count in LAYERS[:-1]},  # type: ignore[misc]
    f"{LAYERS[-1]:,} layers": Row(lambda: _chain(LAYERS[-1]), "s", MOST_SECONDS),
    "concat of one value 1,000 times": Row(lambda: _concat(Repeated), "s", 5.0),
    "concat of 1,000 slices": Row(lambda: _concat(Sliced), "s", 5.0),
    "MobileNetV2, best effort": Row(_passes, "passes", MOST_PASSES),
    "CoaT tiny with float islands": Row(_coat, "gib", MOST_GIB),
}
UNITS = {"s": "CPU s", "passes": "forward passes", "gib": "GiB"}


def measure(name: str) -> Json:
    """Measure one row in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return ROWS[name].measure()


def in_a_process(name: str) -> Json:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
    result: Json = json.loads(done.stdout.splitlines()[-1])
    return result


def exponent(seconds: dict[int, float]) -> float:
    """Exponent of growth: slope of the least-squares line through log seconds against log layers."""
    x = [math.log(count) for count in seconds]
    y = [math.log(value) for value in seconds.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def section(results: dict[str, Json]) -> str:
    """The section of the page."""
    text = (
        "Made by `python -m benchmarks.scale`: each row in a process of its own, one thread. The layers are 1x1 "
        "convolutions of two channels with batch norm, ReLU and additions, so that nearly all of the time is the "
        "compiler's own. CPU seconds are those of a whole compile with verification; they depend on the machine."
    )
    lines = [
        "## Scale",
        "",
        text,
        "",
        "| | figure | wanted |",
        "|---|---:|---:|",
    ]
    for name, result in results.items():
        row = ROWS[name]
        limit = "" if row.wanted is None else f"at most {row.wanted:g}"
        found = (
            f"not run: {result['absent']}" if "absent" in result else f"{result[row.figure]:.1f} {UNITS[row.figure]}"
        )
        lines.append(f"| {name} | {found} | {limit} |")
    chains = {count: results[f"{count:,} layers"]["s"] for count in LAYERS if f"{count:,} layers" in results}
    if len(chains) > 1:
        lines.append(f"| exponent of growth | {exponent(chains):.2f} | at most {MOST_EXPONENT:g} |")
    return "\n".join(lines)


def install() -> None:
    """Install timm without its dependencies into a folder that only the row about CoaT reads.

    Raises:
        CalledProcessError: The package index cannot be reached, or a package is not there.
    """
    command = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--target", str(FOLDER), *PACKAGES]
    subprocess.run(command, check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--one", choices=list(ROWS), help="measure this row here, and print the figures")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="fewer: writes no page")
    parser.add_argument("--install", action="store_true", help="get timm and end")
    options = parser.parse_args(arguments)
    if options.install:
        install()
        return 0
    if options.one:
        print(json.dumps(measure(options.one)))
        return 0
    results = {}
    for name in options.rows:
        results[name] = in_a_process(name)
        print(name, json.dumps(results[name]), flush=True)
    print(section(results))
    if list(options.rows) == list(ROWS):
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_section(PERFORMANCE, SECTION, section(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
