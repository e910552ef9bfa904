"""`python -m benchmarks.analysis_speed`: what `analyze` and its table of parts take, over calibration.

    calibrate   ranges of all activations from 256 images
    quantize    capture, equalization and calibration: all that a compile does before it lowers to integers
    table       each part quantized alone, and left in float alone, on 32 images; only what follows it is computed again
    analyze     `qcompiler.analyze` with its defaults and without `evaluate`: quantize, table, scores, remedies

Seconds of the CPU on one thread, because machines are shared. Networks have the shapes of torchvision, random weights,
and batch norms whose statistics come from one batch. `--aimet PYTHON` also runs QuantAnalyzer of aimet-torch with the
interpreter of an environment that has it. Finished measurements are kept in `build/analysis_speed` and in
`benchmarks/results/analysis_speed.jsonl`; a run that is killed goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar, cast

import torch
import torchvision
from scipy.stats import spearmanr
from torch import Tensor, nn

import qcompiler
from benchmarks.finished import Json, Store
from benchmarks.pages import PERFORMANCE, write_section
from qcompiler.analysis.parts import table
from qcompiler.ir.interpret import interpret
from qcompiler.passes.base import Pass
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.session.options import Options
from qcompiler.session.session import Session
from qcompiler.session.source import load_model
from qcompiler.targets import load_target

__all__ = [
    "IMAGES",
    "SAMPLES",
    "Measurement",
    "failures",
    "main",
    "measurements",
    "network",
    "pictures",
    "section",
    "speed",
]

HERE = Path(__file__).resolve().parent
FOLDER, ROWS = HERE.parent / "build" / "analysis_speed", HERE / "results" / "analysis_speed.jsonl"
SECTION = "time of an analysis"
TARGET = "int8_dsp"
NETWORKS = ("mobilenet_v2", "resnet50")
KINDS = ("speed", "ranks", "aimet")
IMAGES, SAMPLES, BATCH, SIZE = 256, 32, 32, 224
TABLE_LIMIT, ANALYZE_LIMIT, LEAST_CORRELATION = 10.0, 3.0, 0.9

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """One measurement of one network.

    Args:
        network: Name in torchvision.
        kind: `speed`, `ranks`: the table on `SAMPLES` and on all images, or `aimet`.
    """

    network: str
    kind: str

    @property
    def name(self) -> str:
        """Name of the measurement."""
        return f"{self.network}-{self.kind}"


Run = tuple[str, ...]
"""Names of networks."""


def measurements(run: Run) -> Iterable[Measurement]:
    """All measurements of a run."""
    return [Measurement(network, kind) for network in run for kind in KINDS]


def key(measurement: Measurement, run: Run) -> str:
    """Key of a result."""
    del run
    parts = (metadata.version("qcompiler"), TARGET, str((IMAGES, SAMPLES, SIZE)), measurement.name)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def pictures(count: int = IMAGES, size: int = SIZE) -> list[Tensor]:
    """Batches of noise."""
    return [
        torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(index))
        for index in range(-(-count // BATCH))
    ]


def network(name: str, batch: Tensor) -> nn.Module:
    """A network with random weights, in eval mode; its batch norms have the statistics of a batch."""
    torch.manual_seed(0)
    model = cast("nn.Module", getattr(torchvision.models, name)(weights=None)).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    with torch.no_grad():
        model(batch)
    return model.eval()


def timed(job: Callable[[], T]) -> tuple[T, float]:
    """The result of a job, and its seconds of the CPU."""
    begun = time.process_time()
    return job(), time.process_time() - begun


def _session(model: nn.Module, data: list[Tensor]) -> tuple[Session, list[float]]:
    """A session, and the seconds of the CPU of each calibration of activations, once they ran."""
    options, target = Options(calibration_data=data), load_target(TARGET)
    seconds: list[float] = []
    last = [time.process_time()]

    def between(before: Pass | None, *_: object) -> None:
        now = time.process_time()
        if isinstance(before, CalibrateActivations):
            seconds.append(now - last[0])
        last[0] = now

    passes = options.deployment_passes(target)
    return Session(load_model(model), target, options, passes, between=between), seconds


def _table(session: Session, data: Sequence[Tensor], samples: int) -> tuple[list[tuple[float, float]], float]:
    """Decibels of each part alone and of all but this part on some images, and the seconds of the CPU."""
    captured = session.captured.module.main
    images = [torch.cat(list(data))[:samples]]
    with torch.no_grad():
        wanted = interpret(captured, images, captured.module.tensors)[0]
    canonical, graph = session.canonical.module.main, session.quantized.module.main
    found, seconds = timed(lambda: table(canonical, graph, images, wanted, session.options.memory))
    return [(part.alone_db, part.without_db) for part in found.parts], seconds


def speed(name: str, images: int = IMAGES, samples: int = SAMPLES, size: int = SIZE) -> Json:
    """Seconds of the CPU of each step, for a network of torchvision.

    Args:
        name: Name of the network in torchvision.
        images: Images of the calibration.
        samples: Images of the table.
        size: Side of an image, pixels.
    """
    data = pictures(images, size)
    model = network(name, data[0])
    session, calibrations = _session(model, data)
    _, quantize = timed(lambda: session.quantized)
    parts, seconds = _table(session, data, samples)
    analysis, whole = timed(lambda: qcompiler.analyze(model, TARGET, data, samples=samples))
    return {
        "calibrate": sum(calibrations) / len(calibrations),
        "quantize": quantize,
        "table": seconds,
        "parts": len(parts),
        "analyze": whole,
        "evaluations": analysis.evaluations,
    }


def _ranks(name: str, images: int = IMAGES, samples: int = SAMPLES, size: int = SIZE) -> Json:
    data = pictures(images, size)
    session, _ = _session(network(name, data[0]), data)
    (few, _), (every, _) = _table(session, data, samples), _table(session, data, images)
    pairs = [spearmanr([row[side] for row in few], [row[side] for row in every]).statistic for side in (0, 1)]
    return {"alone": float(pairs[0]), "without": float(pairs[1])}


def _aimet(name: str, python: Path) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [str(python), "-m", "benchmarks.analysis_speed_aimet", name, str(output)]
        subprocess.run(command, check=True, cwd=HERE.parent, stdout=sys.stderr)
        result: Json = json.loads(output.read_text(encoding="utf-8"))
    return result


def failures(results: Mapping[Measurement, Json]) -> list[str]:
    """Unwanted results, in sentences."""
    found = []
    for measurement, row in results.items():
        name = measurement.network
        if measurement.kind == "speed":
            whole, parts = row["analyze"] / row["quantize"], row["table"] / row["calibrate"]
            if whole > ANALYZE_LIMIT:
                found.append(f"{name}: analyze takes {whole:.1f} quantizations")
            if parts > TABLE_LIMIT:
                found.append(f"{name}: the table takes {parts:.1f} calibrations")
        elif measurement.kind == "ranks":
            low = [side for side in ("alone", "without") if row[side] < LEAST_CORRELATION]
            found += [f"{name}: rank correlation {row[side]:.2f} ({side})" for side in low]
    return found


ABOUT = f"""## Time of an analysis

Made by `python -m benchmarks.analysis_speed` on `{TARGET}`: networks with the shapes of torchvision and random weights
at {SIZE}x{SIZE}, calibrated on {IMAGES} images; seconds of the CPU on one thread. `quantize` is all that a compile does
before it lowers to integers, with these images; `calibrate` is its share for the ranges of activations. `table`
measures each part alone, and all but this part, on {SAMPLES} images. `analyze` is the whole call with its defaults and
without `evaluate`, with all models that it scores; {ANALYZE_LIMIT:g} quantizations are wanted at most, and for the
table {TABLE_LIMIT:g} calibrations. The rank correlation is that of the table on {SAMPLES} and on {IMAGES} images.
QuantAnalyzer of `aimet-torch` has the same images, and evaluates the signal-to-noise ratio of the outputs on the
{SAMPLES} images."""


def section(results: Mapping[Measurement, Json]) -> str:
    """The section of the page."""
    head = (
        "network",
        "parts",
        "calibrate",
        "quantize",
        "table",
        "/ calibrate",
        "analyze",
        "/ quantize",
        "scored models",
    )
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for measurement, row in results.items():
        if measurement.kind == "speed":
            cells = (
                measurement.network,
                str(row["parts"]),
                f"{row['calibrate']:.0f} s",
                f"{row['quantize']:.0f} s",
                f"{row['table']:.0f} s",
                f"{row['table'] / row['calibrate']:.1f}",
                f"{row['analyze']:.0f} s",
                f"{row['analyze'] / row['quantize']:.1f}",
                str(row["evaluations"]),
            )
            lines.append("| " + " | ".join(cells) + " |")
    sentences = []
    for measurement, row in results.items():
        if measurement.kind == "ranks":
            sentences.append(
                f"- {measurement.network}: rank correlation {row['alone']:.3f} for parts alone, "
                f"{row['without']:.3f} for all but one part"
            )
        if measurement.kind == "aimet":
            sentences.append(
                f"- {measurement.network}: QuantAnalyzer of `aimet-torch` {row['version']}: {row['analyze']:.0f} s, "
                f"with {row['evaluations']} evaluations"
            )
    missing = [item.name for item in measurements(NETWORKS) if item not in results]
    sentences += [f"- not measured: {', '.join(missing)}"] if missing else []
    return "\n".join([ABOUT, "", *lines, "", *sentences])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print the section, and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.analysis_speed", description=__doc__)
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--aimet", type=Path, help="interpreter of an environment with aimet-torch")
    parser.add_argument("--fresh", action="store_true", help="measure finished ones again")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    store: Store[Measurement, Run] = Store(FOLDER, key, measurements, NETWORKS, rows=ROWS, fresh=options.fresh)
    for item in measurements(tuple(options.networks)):
        if item.kind not in options.kinds or (item.kind == "aimet" and options.aimet is None):
            continue
        make = {
            "speed": lambda item=item: speed(item.network),
            "ranks": lambda item=item: _ranks(item.network),
            "aimet": lambda item=item: _aimet(item.network, options.aimet),
        }[item.kind]
        print(item.name, json.dumps(store.get(item, NETWORKS, make)), file=sys.stderr, flush=True)
    store.fresh = False
    done = store.done(NETWORKS)
    text = section(done)
    print(text)
    wrong = failures(done)
    print("\n".join(wrong), file=sys.stderr)
    store.collect()
    write_section(PERFORMANCE, SECTION, text)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
