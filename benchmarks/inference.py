"""`python -m benchmarks.inference`: the emitted C, ONNX Runtime, OpenVINO and PyTorch, one image, one thread.

Every contender is a process that is made ready once. They are then timed in turns, round by round, on one core: what
slows the machine slows all of them, and the ratios of one round are compared. The figure is the median of the rounds.
Weights are random, batch norms settled: what is timed does not depend on them. Of the C one image is compared with the
integer program, every element.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import qcompiler
from benchmarks import networks, rendered
from benchmarks.pages import PERFORMANCE, write_section
from qcompiler.backends.integer import c

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "out" / "benchmarks" / "inference"
SECTION = "inference"
ROUNDS, IMAGES = 9, 8
TARGET = "int8_dsp"
CFLAGS = {"c": ("-O3", "-march=native"), "c_portable": ("-O3",)}
TITLES = {
    "c": "C",
    "c_portable": "C without vectors",
    "onnxruntime_float": "ONNX Runtime float",
    "onnxruntime_int8": "ONNX Runtime int8",
    "openvino_int8": "OpenVINO int8",
    "eager": "PyTorch float",
}

Json = dict[str, Any]


def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """A model of random weights with batch norms that have seen what they norm."""
    with torch.no_grad():
        for _ in range(2):
            model.train()(images)
    return model.eval()


def torchvision_network(name: str) -> tuple[nn.Module, Tensor]:
    """At 224x224."""
    torch.manual_seed(0)
    images = torch.randn(IMAGES, 3, 224, 224)
    return settled(cast("nn.Module", getattr(torchvision.models, name)(weights=None)), images), images


def small_network(name: str) -> tuple[nn.Module, Tensor]:
    """One of the trained networks of the accuracy tables, at 32x32."""
    return networks.load(name), rendered.split("calibration").images[:IMAGES]


NETWORKS: dict[str, Callable[[str], tuple[nn.Module, Tensor]]] = {
    **dict.fromkeys(("mobilenet_v2", "resnet18", "resnet50"), torchvision_network),
    **dict.fromkeys(("mobilenet", "resnet", "efficientnet", "unet"), small_network),
}


def prepare(name: str, target: str, folder: Path) -> None:
    """Write what the contenders read: images, the float model in two formats, the C and its two libraries."""
    folder.mkdir(parents=True, exist_ok=True)
    model, images = NETWORKS[name](name)
    np.save(folder / "images.npy", images.numpy())
    torch.onnx.export(model, (images[:1],), folder / "model.onnx", dynamo=False, opset_version=17, input_names=["x"])
    torch.export.save(torch.export.export(model, (images[:1],)), folder / "model.pt2")
    compiled = qcompiler.compile(model, target, calibration_data=[images], effort="fast", verify="off")
    np.save(folder / "expected.npy", cast("Tensor", compiled.artifact.run(images[:1])).numpy())
    files = compiled.artifact.program
    assert files.program.memory is not None
    source = folder / "c"
    source.mkdir(exist_ok=True)
    for file, content in c.emit(files, "model", files.program.memory).items():
        (source / file).write_bytes(content)
    strict = ["-std=c99", "-ffp-contract=off", "-fPIC"]
    gcc = c.find_compiler()
    _build([*gcc, *strict, "-O1", "-c", "weights.c", "-o", "weights.o"], source)
    for kind, flags in CFLAGS.items():
        library = folder / kind
        library.mkdir(exist_ok=True)
        parts = ["model.c", "kernels.c", "model_float.c", "weights.o"]
        _build([*gcc, *strict, *flags, "-shared", *parts, "-o", str(library / "model.so")], source)
        for shared in ("c", "images.npy"):
            link = library / shared
            if not link.exists():
                link.symlink_to(folder / shared)


def _build(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True)


def interpreter(kind: str) -> Path:
    """The Python that runs a contender; makes the environment of a peer.

    Raises:
        CalledProcessError: It cannot be made.
    """
    if kind != "openvino_int8":
        return Path(sys.executable)
    folder = OUTPUT.parent / "environments" / "openvino"
    python = folder / "bin" / "python"
    requirements = ROOT / "benchmarks" / "requirements" / "openvino.txt"
    stamp = folder / "stamp"
    if not stamp.is_file() or stamp.read_bytes() != requirements.read_bytes():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
        stamp.write_bytes(requirements.read_bytes())
    return python


class Contender:
    """A process that is ready to be timed.

    Args:
        kind: Key of `TITLES`.
        folder: Folder of the network.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        place = folder / kind if kind in CFLAGS else folder
        command = [str(interpreter(kind)), "-m", "benchmarks.contenders", "c" if kind in CFLAGS else kind, str(place)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        log = (folder / f"{kind}.log").open("w", encoding="utf-8")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        self.version = str(self._answer()["version"])

    def _answer(self) -> Any:  # noqa: ANN401  # JSON
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("{", *"0123456789")):
                return json.loads(line)
        raise RuntimeError(f"a contender ended: {self.process.args!r}")

    def measure(self) -> float:
        """Milliseconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def measure(name: str, target: str, kinds: Sequence[str], rounds: int) -> Json:
    """One network: milliseconds by contender, round by round."""
    folder = OUTPUT / target / name
    prepare(name, target, folder)
    with ExitStack() as stack:
        contenders = {}
        for kind in kinds:
            contenders[kind] = Contender(kind, folder)
            stack.callback(contenders[kind].close)
        expected = np.load(folder / "expected.npy")
        for kind in CFLAGS:
            found = np.load(folder / kind / "c.npy")
            if not (found == expected).all():
                raise RuntimeError(f"{kind} of {name} differs from the integer program")
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, contender in contenders.items():
                times[kind].append(contender.measure())
        versions = {kind: contender.version for kind, contender in contenders.items()}
    return {"ms": times, "versions": versions}


def ratio(row: Json, kind: str) -> float:
    """How many times as long as the C the contender takes: median over rounds."""
    pairs = zip(row["ms"][kind], row["ms"]["c"], strict=True)
    return float(statistics.median(theirs / ours for theirs, ours in pairs))


def section(results: dict[str, Json], target: str, compiler: str) -> str:
    """The section of the page."""
    kinds = list(TITLES)
    versions = next(iter(results.values()))["versions"]
    named = ", ".join(f"{TITLES[kind]} {version}" for kind, version in versions.items() if version)
    text = (
        f"Made by `python -m benchmarks.inference`: target `{target}`, C built by {compiler} with "
        f"`{' '.join(CFLAGS['c'])}`, one image, one thread, real numbers to real numbers. Milliseconds of the C, and "
        f"how many times as long others take: medians of {ROUNDS} rounds in turns. {named}. ONNX Runtime's integers by "
        "its own tool (QDQ), OpenVINO's by NNCF. The output of the C is that of the integer program in every element."
    )
    lines = [
        "## Time of one inference",
        "",
        text,
        "",
        "| | C, ms | " + " | ".join(TITLES[kind] for kind in kinds[1:]) + " |",
        "|---|" + "---:|" * len(kinds),
    ]
    for name, row in results.items():
        own = statistics.median(row["ms"]["c"])
        cells = [f"{ratio(row, kind):.2f}" for kind in kinds[1:]]
        lines.append(f"| {name} | {own:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.inference", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="fewer: no page")
    parser.add_argument("--target", default=TARGET, help="another: no page")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="others: no page")
    options = parser.parse_args(arguments)
    compiler = c.find_compiler()
    shown = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True).stdout
    version = shown.splitlines()[0]
    results: dict[str, Json] = {}
    for name in options.networks:
        results[name] = measure(name, options.target, list(TITLES), options.rounds)
        line = {kind: round(ratio(results[name], kind), 2) for kind in TITLES}
        print(name, f"{statistics.median(results[name]['ms']['c']):.3f} ms", json.dumps(line), flush=True)
    print(section(results, options.target, version))
    whole = (list(NETWORKS), TARGET, ROUNDS) == (list(options.networks), options.target, options.rounds)
    if whole:
        (OUTPUT / "inference.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_section(PERFORMANCE, SECTION, section(results, options.target, version))
    return 0


if __name__ == "__main__":
    sys.exit(main())
