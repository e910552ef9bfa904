"""`python -m benchmarks.calibration`: what calibration and a whole compile take, over the bare float forward passes.

The same batches go through the PyTorch model, one forward pass each, and through calibration by each method. All is
measured in turns in one run, the smallest of several rounds counts, and only ratios are reported: machines are shared.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn

import qcompiler
from benchmarks.pages import PERFORMANCE, write_section
from qcompiler.calibration.observers import OBSERVERS
from qcompiler.frontends import capture
from qcompiler.ir.graph import Module
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.session.pipeline import quantization_passes
from qcompiler.targets import load_target

OUTPUT = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "calibration.json"
SECTION = "time of calibration"
NETWORKS = ("mobilenet_v2", "resnet50")
SIZE, BATCH, BATCHES, ROUNDS = 224, 32, 4, 3
LIMITS = {"min_max": 1.3, "moving_average": 1.3, "percentile": 1.6, "mse": 1.6, "sqnr": 1.6, "entropy": 1.6}
EFFORTS = ("fast", "default", "best")

Json = dict[str, Any]


def prepared(model: nn.Module, x: Tensor) -> Module:
    """The graph just before its activations are calibrated."""
    passes = quantization_passes()
    end = next(index for index, item in enumerate(passes) if isinstance(item, CalibrateActivations))
    module = capture(model, x).module
    PassManager(passes[:end]).run(module, PassContext(load_target("int8_dsp")))
    return module


def smallest(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each job: the smallest of `rounds`, in turns."""
    seconds: dict[str, float] = {}
    for _ in range(rounds):
        for name, job in jobs.items():
            begun = time.perf_counter()
            job()
            seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - begun)
    return seconds


def measure(name: str, batches: int, rounds: int, efforts: Sequence[str]) -> Json:
    """Ratios for one network."""
    torch.manual_seed(0)
    model = cast("nn.Module", getattr(torchvision.models, name)(weights=None)).eval()
    data = [torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(i)) for i in range(batches)]
    module = prepared(model, data[0][:2])

    def forward() -> None:
        with torch.no_grad():
            for x in data:
                model(x)

    def calibrate(method: str) -> Callable[[], object]:
        def job() -> None:
            context = PassContext(load_target("int8_dsp"), calibration_data=[[x] for x in data])
            CalibrateActivations(method=method).run(module.clone().main, context)

        return job

    def compile_(effort: str) -> Callable[[], object]:
        # Verification costs what it costs whatever the data: without it, for the comparison.
        return lambda: qcompiler.compile(model, calibration_data=data, effort=cast("Any", effort), verify="off")

    forward()
    seconds = smallest({"forward": forward} | {key: calibrate(key) for key in LIMITS}, rounds)
    whole = smallest({"forward": forward} | {key: compile_(key) for key in efforts}, 1)
    methods = {key: value / seconds["forward"] for key, value in seconds.items() if key != "forward"}
    compiles = {key: value / whole["forward"] for key, value in whole.items() if key != "forward"}
    return {"images": batches * BATCH, "methods": methods, "compiles": compiles, "forward_s": seconds["forward"]}


def section(results: dict[str, Json]) -> str:
    """The section of the page."""
    images = next(iter(results.values()))["images"]
    names = list(results)
    text = (
        f"Made by `python -m benchmarks.calibration`: {images} images at {SIZE}x{SIZE} in batches of {BATCH}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}. Seconds over the seconds of the bare float forward "
        "passes of the PyTorch model on the same images, smallest of some rounds in turns. A compile is all that "
        "`compile(..., verify='off')` does."
    )
    lines = [
        "## Time of calibration and of a compile",
        "",
        text,
        "",
        "| | " + " | ".join(names) + " | at most |",
        "|---|" + "---:|" * (len(names) + 1),
    ]
    for method, limit in LIMITS.items():
        ratios = " | ".join(f"{results[name]['methods'][method]:.2f}" for name in names)
        lines.append(f"| ranges by `{method}` | {ratios} | {limit} |")
    for effort in results[names[0]]["compiles"]:
        ratios = " | ".join(f"{results[name]['compiles'][effort]:.2f}" for name in names)
        lines.append(f'| a compile, `effort="{effort}"` | {ratios} | |')
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.calibration", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one network, one batch, one round; writes no page")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--efforts", nargs="*", choices=EFFORTS, default=EFFORTS)
    options = parser.parse_args(arguments)
    assert set(LIMITS) <= set(OBSERVERS)
    names = NETWORKS[:1] if options.quick else NETWORKS
    results = {}
    for name in names:
        batches, rounds = (1, 1) if options.quick else (options.batches, options.rounds)
        results[name] = measure(name, batches, rounds, () if options.quick else options.efforts)
        print(name, json.dumps(results[name]), flush=True)
    print(section(results))
    if not options.quick:
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_section(PERFORMANCE, SECTION, section(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
