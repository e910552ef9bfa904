"""`python -m benchmarks.qat_speed`: a quantized training step over the bare float step, also for other toolkits.

`--table qat` measures quantization-aware training, `--table quantized_training` training with quantized gradients.

Each toolkit runs in a process of its own, and a peer in an environment of its own that shares torch with this one; the
float step and the quantized step are measured in turns in one process, and only ratios are reported: machines are
shared. Eager steps are over the eager float step, compiled steps over the compiled float step. Finished cells are
kept, so that the same call continues an interrupted run. `--no-deps` installs peers without what they depend on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.pages import PERFORMANCE, write_section
from benchmarks.qat_speed_step import TOOLKITS, Job

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "out" / "benchmarks"
NETWORKS = ("mobilenet_v2", "resnet18")
MODES = ("eager", "compiled")
PEERS = {
    "aimet-torch": "aimet-torch",
    "torchao PT2E": "torchao",
    "Brevitas": "brevitas",
    "torchao int8 training": "torchao",
}
"""Toolkits that get an environment, and what is installed there."""
PATIENCE_S = 1800
"""Seconds after which a cell is given up: some toolkits take torch.compile apart into thousands of graphs."""
CLOCKS = {True: "CPU seconds", False: "seconds"}


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Args:
        section: Name of its section.
        title: Heading.
        toolkits: Rows.
        note: Wanted ratios, and settings of the rows.
    """

    section: str
    title: str
    toolkits: tuple[str, ...]
    note: str


TABLES = {
    "qat": Table(
        "time of a training step",
        "Time and memory of a training step",
        ("qcompiler, folded", "qcompiler, kept", "aimet-torch", "torchao PT2E", "Brevitas"),
        "At most 1.35 eager and 1.1 compiled are wanted. `folded` is `int8_dsp`, `kept` is `int8_dsp_per_channel` "
        'with `batch_norm="keep"`; the others are as their defaults have them.',
    ),
    "quantized_training": Table(
        "time of a step with quantized gradients",
        "Time and memory of a step with quantized gradients",
        ("qcompiler, int8 training", "torchao int8 training"),
        "At most 1.6 eager and 1.25 compiled are wanted for ResNet-18. The first row is `prepare_quantized_training` "
        "for `int8_dsp`, whose layers all have quantized weights, activations and gradients. The prototype of torchao "
        "quantizes linear layers alone, so that only the classifiers of these networks change.",
    ),
}

Json = dict[str, Any]


def python_of(toolkit: str, *, dependencies: bool = True) -> Path:
    """The interpreter of a toolkit; its environment is made where there is none yet.

    Args:
        toolkit: Name of the toolkit.
        dependencies: Whether packages on which it depends are installed with it.

    Raises:
        subprocess.CalledProcessError: It cannot be made.
    """
    if toolkit not in PEERS:
        return Path(sys.executable)
    folder = OUTPUT / f"qat_{PEERS[toolkit]}"
    python = folder / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", str(folder)])
        site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        # The same torch for all: what is here counts as installed there.
        (site / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        alone = [] if dependencies else ["--no-deps"]
        run([str(python), "-m", "pip", "install", "--quiet", *alone, PEERS[toolkit]])
    return python


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float | None = None) -> str:
    """Run a command and return its output.

    Raises:
        subprocess.CalledProcessError: It fails.
        subprocess.TimeoutExpired: It takes longer than `timeout=`.
    """
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout
    ).stdout


def cell(job: Job, *, dependencies: bool = True) -> Json:
    """The results of `benchmarks.qat_speed_step`; see `python_of`."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONPATH": str(ROOT)}
    try:
        python = python_of(job.toolkit, dependencies=dependencies)
        text = run([str(python), "-m", "benchmarks.qat_speed_step", json.dumps(asdict(job))], environment, PATIENCE_S)
    except subprocess.TimeoutExpired:
        return {"skipped": f"no end after {PATIENCE_S} s"}
    except subprocess.CalledProcessError as failed:
        return {"skipped": reason(failed.stderr)}
    found: Json = json.loads(text.strip().splitlines()[-1])
    return found


def reason(trace: str) -> str:
    """The line of an error message that says what the error was: the last one that begins with the name of one."""
    lines = trace.strip().splitlines() or ["no message"]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Unsupported)\b", line)]
    return (named or lines)[-1]


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """All cells."""
    size, batch, rounds = (64, 2, 1) if options.quick else (224, 16, options.rounds)
    for compiled in [mode == "compiled" for mode in options.modes]:
        for network in options.networks:
            for toolkit in options.toolkits:
                for memory in (False, True):
                    yield Job(toolkit, network, size, batch, rounds, options.threads, compiled, memory)


def section(cells: dict[str, Json], wanted: Sequence[Job], options: argparse.Namespace) -> str:
    """The text of the page."""
    found = {(j.toolkit, j.network, j.compiled, j.memory): cells[key(j)] for j in wanted}
    columns = [(network, mode == "compiled") for network in options.networks for mode in options.modes]
    head = [f"{name}, {'compiled' if compiled else 'eager'}: time / memory" for name, compiled in columns]
    first = wanted[0]
    torch_version = next((cell["torch"] for cell in found.values() if "torch" in cell), "")
    text = (
        f"Made by `python -m benchmarks.qat_speed --table {options.table}`: zero_grad, forward, cross entropy, "
        f"backward and SGD with momentum, {first.batch} images of {first.size}x{first.size}, {first.threads} "
        f"thread(s), {platform.machine()}, torch {torch_version}. Each number is over the bare float step in the same "
        f"process, in turns: the shortest of {first.rounds}, in {CLOCKS[first.threads == 1]}, and the bytes that "
        "forward and backward need beyond model and optimizer. Compiled steps are over the compiled float step."
    )
    table = TABLES[options.table]
    lines = [
        f"## {table.title}",
        "",
        *textwrap.wrap(f"{text} {table.note}", 120, break_long_words=False),
        "",
        f"| | {' | '.join(head)} |",
        f"|---|{'---:|' * len(head)}",
    ]
    notes = []
    for toolkit in options.toolkits:
        versions = {cell["version"] for (name, *_), cell in found.items() if name == toolkit and "version" in cell}
        label = f"{toolkit}{' ' + versions.pop() if versions and toolkit in PEERS else ''}"
        figures = []
        for network, compiled in columns:
            pair = [found[toolkit, network, compiled, memory] for memory in (False, True)]
            figures.append(" / ".join(map(ratio, pair)))
            where = f"{toolkit}, {network}, {'compiled' if compiled else 'eager'}"
            notes += [f"{where}: {item['skipped']}" for item in pair if "skipped" in item]
        lines.append(f"| {label} | {' | '.join(figures)} |")
    lines += ["", *(f"- {note}" for note in dict.fromkeys(notes))]
    return "\n".join(lines)


def ratio(cell: Json) -> str:
    """Quantized over float."""
    return "-" if "skipped" in cell else f"{cell['quantized'] / cell['float']:.2f}"


def key(job: Job) -> str:
    """The key of a cell."""
    return json.dumps(asdict(job), sort_keys=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.qat_speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small images, one step, no peers; writes no page")
    parser.add_argument("--table", choices=TABLES, default="qat")
    parser.add_argument("--no-deps", action="store_true", help="install peers alone")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--toolkits", nargs="+", choices=TOOLKITS, help="rows; by default those of the table")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="the page has columns for these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fresh", action="store_true", help="forget what is finished")
    options = parser.parse_args(arguments)
    table = TABLES[options.table]
    options.toolkits = options.toolkits or table.toolkits
    if options.quick:
        options.toolkits = [name for name in options.toolkits if name not in PEERS]
    path = OUTPUT / "qat_speed.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells: dict[str, Json] = {} if options.fresh or not path.exists() else json.loads(path.read_text(encoding="utf-8"))
    wanted = list(jobs(options))
    for job in wanted:
        if key(job) not in cells:
            cells[key(job)] = cell(job, dependencies=not options.no_deps)
            path.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
        found = cells[key(job)]
        what = f"{job.network} {'compiled' if job.compiled else 'eager'} {'memory' if job.memory else 'time'}"
        print(f"{job.toolkit:<20}{what:<32}{found.get('skipped') or ratio(found)}", flush=True)
    text = section(cells, wanted, options)
    print(text)
    is_whole = tuple(options.networks) == NETWORKS and tuple(options.toolkits) == table.toolkits
    if is_whole and not options.quick:
        write_section(PERFORMANCE, table.section, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
