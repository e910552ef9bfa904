"""`make bench`: how the compiler's own time grows, and what quantization costs two small networks.

Times are ratios within one run; machines are shared and noisy.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from qcompiler.frontends import capture
from qcompiler.passes import PassContext, PassManager
from qcompiler.session.pipeline import default_pipeline
from qcompiler.targets import load_target
from qcompiler.validation.exact import output_codes


class Chain(nn.Module):
    """Residual blocks of 1x1 convolutions: as many nodes as wanted, and next to nothing to compute."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU()) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Every second block adds its input."""
        for index, layer in enumerate(self.layers):
            y = layer(x)
            x = x + y if index % 2 else y
        return x


def passes_on(nodes: int) -> dict[str, float]:
    """Seconds of each pass on a graph of about `nodes` nodes, contracts and verification between passes included."""
    torch.manual_seed(0)
    x = torch.randn(2, 2, 2, 2)
    # A block of the captured graph has a convolution, a batch norm, an activation, half an addition and five tensors.
    module = capture(Chain(nodes * 2 // 17).eval(), x).module
    seconds: dict[str, float] = {"nodes": float(len(module.main))}
    begun = time.perf_counter()

    def between(before: object, *_: object) -> None:
        nonlocal begun
        now = time.perf_counter()
        name = "set-up" if before is None else str(before)
        seconds[name] = seconds.get(name, 0.0) + now - begun
        begun = now

    context = PassContext(load_target("int8_dsp"), [[x]], [[x]])
    PassManager(default_pipeline(), between=between).run(module, context)
    seconds["all passes"] = sum(value for key, value in seconds.items() if key != "nodes")
    return seconds


def growth() -> dict[str, object]:
    """1,000 against 10,000 nodes."""
    passes_on(200)  # imports and caches
    small = [passes_on(1_000) for _ in range(3)]
    large = passes_on(10_000)
    middle = {key: statistics.median(run[key] for run in small) for key in small[0]}
    return {
        "nodes": [int(middle["nodes"]), int(large["nodes"])],
        "seconds": {key: [round(middle[key], 3), round(large[key], 3)] for key in large if key != "nodes"},
        "ratio": round(large["all passes"] / middle["all passes"], 2),
    }


def executor() -> dict[str, object]:
    """The executor of the integer program against eager float, on the digits network."""
    import qcompiler
    from examples.digits.data import load_data
    from examples.digits.model import load_digits_net

    data, model = load_data(), load_digits_net()
    compiled = qcompiler.compile(model, calibration_data=[data.calibration_images])
    images = data.test_images

    def seconds(run: Callable[[Tensor], object]) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            with torch.no_grad():
                run(images)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    eager = seconds(model)
    arithmetic, graph = compiled.target.arithmetic, compiled.quantized.main
    return {
        "images": len(images),
        "executor / eager": round(seconds(compiled.run) / eager, 2),
        "exact simulation / eager": round(seconds(lambda x: output_codes(graph, [x], arithmetic)) / eager, 2),
    }


def ptq_accuracy() -> dict[str, object]:
    """Accuracies of two small networks, percent; `python -m benchmarks.ptq_accuracy` measures all, for hours."""
    from benchmarks import ptq_accuracy as benchmark
    from benchmarks.finished import Store

    with tempfile.TemporaryDirectory() as folder:
        data = benchmark.Data(benchmark.QUICK)
        path, rows = Path(folder), benchmark.COMMITTED
        store = Store(path, benchmark.Cell.key, benchmark.cells, benchmark.WHOLE, rows=rows, fresh=True)
        for cell in benchmark.cells(data.run):
            store.get(cell, data.run, functools.partial(data.measure, cell))
        measured = benchmark.measured(data, store)
    cells = {", ".join(place): values[0] for place, values in measured.found.items()}
    return {
        "float": {name: round(100 * value, 2) for name, value in measured.exact.items()},
        "quantized": {name: None if value is None else round(100 * value, 2) for name, value in cells.items()},
    }


BENCHMARKS: dict[str, Callable[[], dict[str, object]]] = {
    "growth": growth,
    "executor": executor,
    "ptq_accuracy": ptq_accuracy,
}


def main() -> int:
    """Run the benchmarks named on the command line, or all, and print JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="all when none is named")
    names = parser.parse_args().names or list(BENCHMARKS)
    json.dump({name: BENCHMARKS[name]() for name in names}, sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
