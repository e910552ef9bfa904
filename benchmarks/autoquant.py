"""`python -m benchmarks.autoquant`: the search for a way to quantize, against all combinations.

Networks that lose accuracy in eight or four bits, each with one weight scale per tensor: the score that the search
reaches, its evaluations, and those of trying all combinations of ranges, equalization, rounding, granularity and
widths.
Where the search is not within its drop, the combinations are tried one by one until one of them is. One search is also
killed ten times and started again.

Finished searches are kept in `build/autoquant` and in `benchmarks/results/autoquant.jsonl`; a run that is killed goes
on. `--shard 1/3` makes a third of the searches, `--short` two small ones.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

import qcompiler
from benchmarks.finished import Json, Store
from benchmarks.networks import load
from benchmarks.pages import PERFORMANCE, write_section
from benchmarks.real_networks import NETWORKS, AbsentError
from benchmarks.rendered import Scenes, split
from benchmarks.scaled_networks import Residual, Transformer, fitted
from benchmarks.train import score as rendered_score
from benchmarks.trainings import shard
from examples.digits.data import load_data
from qcompiler.analysis.search_space import ROUNDING, Candidate, Hardware, given_hardware, wider_targets
from qcompiler.errors import QCompilerError
from qcompiler.session.options import Options

__all__ = ["Case", "Run", "combinations", "main", "section"]

HERE = Path(__file__).resolve().parent
FOLDER, ROWS = HERE.parent / "build" / "autoquant", HERE / "results" / "autoquant.jsonl"
SECTION = "autoquant"
TARGET = "int8_dsp"
DROP = 0.01
CALIBRATION, IMAGES = 64, 500
KILLS = 10
OWN = ("residual", "vit")
RENDERED = ("mobilenet", "mobilenet_hard", "resnet", "efficientnet", "mobilenet_v3", "unet")
LITE = "EfficientNet-Lite0"
REAL_IMAGES = 200
RANGES = ("", "ranges by min_max", "ranges by percentile", "ranges by mse")
EQUALIZATION = ("", "equalization by ranges")


@dataclass(frozen=True)
class Case:
    """One search.

    Args:
        network: Name of the network.
        weight_bits: Default width of weights; activations have 8 bits.
    """

    network: str
    weight_bits: int

    @property
    def name(self) -> str:
        """Name of the search."""
        return f"{self.network}-w{self.weight_bits}a8"


@dataclass(frozen=True)
class Run:
    """Searches of a run."""

    networks: tuple[str, ...]
    widths: tuple[int, ...] = (8, 4)


WHOLE, SHORT = Run((*OWN, *RENDERED, LITE)), Run(("residual", "vit"), (8,))
KILLED = Case("residual", 8)
"""The search that is killed."""

Score = Callable[[nn.Module], float]


def cases(run: Run) -> Iterable[Case]:
    """The searches of a run."""
    return [Case(network, bits) for network in run.networks for bits in run.widths]


def key(case: Case, run: Run) -> str:
    """Key of a result; a search does not depend on the others of its run."""
    sizes = (CALIBRATION, REAL_IMAGES if case.network == LITE else IMAGES)
    parts = (metadata.version("qcompiler"), TARGET, str(DROP), str(sizes), case.name)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def problem(case: Case) -> tuple[nn.Module, qcompiler.Target, list[Tensor], Score]:
    """The arguments of a search.

    Raises:
        AbsentError: The packages of a network with real weights are missing.
    """
    target = qcompiler.load_target(TARGET).override(weight_bits=case.weight_bits)
    if case.network in OWN:
        data = load_data()
        model = fitted(Residual() if case.network == "residual" else Transformer(), data)
        if case.network == "vit":
            target = target.override(fallback="float")  # the target has no attention
        batches = list(data.calibration_images[:CALIBRATION].split(32))
        return model, target, batches, _accuracy(data.test_images, data.test_labels)
    if case.network == LITE:
        network = next(item for item in NETWORKS if item.name == LITE)
        model, photographs = network.load(), network.data(CALIBRATION, REAL_IMAGES)
        return model, target, photographs.calibration, _accuracy(photographs.test, _answers(model, photographs.test))
    batches = list(split("calibration").images[:CALIBRATION].split(32))
    test = split("test")
    scenes = Scenes(test.images[:IMAGES], test.labels[:IMAGES], test.masks[:IMAGES])
    return load(case.network), target, batches, _score(case.network, scenes)


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    """The class that a model gives to each image."""
    with torch.no_grad():
        found: list[Tensor] = [model(batch).argmax(1) for batch in images.split(50)]
    return torch.cat(found)


def _score(network: str, scenes: Scenes) -> Score:
    """Share of right answers of a classifier, mean intersection over union of a segmenter."""

    def score(model: nn.Module) -> float:
        found: list[Tensor] = [model(batch) for batch in scenes.images.split(250)]
        return rendered_score(network, torch.cat(found), scenes)

    return score


def _accuracy(images: Tensor, labels: Tensor) -> Score:
    def score(model: nn.Module) -> float:
        found: list[Tensor] = [model(batch).argmax(1) for batch in images.split(250)]
        return float((torch.cat(found) == labels).double().mean())

    return score


def hardware_of(target: qcompiler.Target) -> list[Hardware]:
    """All hardware that a search may choose, without widths of single layers."""
    given = given_hardware(target, {})
    finer = given.per_channel()
    bases = [given] if finer is None else [given, finer]
    return [item for base in bases for item in (base, *wider_targets(base))]


def combinations(target: qcompiler.Target) -> Iterator[Candidate]:
    """All combinations of ranges, equalization, rounding and hardware; the dearest hardware first."""
    for hardware in reversed(hardware_of(target)):
        for chosen in itertools.product((ROUNDING, ""), EQUALIZATION, RANGES):
            candidate = Candidate(hardware)
            for name in filter(None, chosen):
                candidate = candidate.with_technique(name)
            yield candidate


def search(case: Case, output: Path | None = None) -> qcompiler.Search:
    """The search of a case."""
    model, target, batches, score = problem(case)
    return qcompiler.autoquant(model, target, batches, score, DROP, output=output)


def _result(case: Case) -> Json:
    begun = time.perf_counter()
    found = search(case)
    plain = found.to_dict()
    model, target, batches, score = problem(case)
    result = {name: plain[name] for name in ("score", "float", "wanted", "met", "evaluations", "reason")}
    return {
        **result,
        "default": found.tried[0].score,
        "seconds": time.perf_counter() - begun,
        "name": next(item.name for item in reversed(found.tried) if item.best),
        "combinations": sum(1 for _ in combinations(target)),
        "any": True if found.met else _any(model, target, batches, score, found.wanted),
    }


def _any(model: nn.Module, target: qcompiler.Target, batches: list[Tensor], score: Score, wanted: float) -> bool:
    """Whether any combination is within the drop, tried one by one."""
    for candidate in combinations(target):
        options = candidate.options(Options(calibration_data=batches))
        try:
            compiled = qcompiler.compile(
                model,
                candidate.hardware.target,
                calibration_data=batches,
                effort=options.effort,
                pipeline=options.pipeline,
                verify="off",
            )
        except QCompilerError:
            continue
        if score(cast("nn.Module", compiled.simulate)) >= wanted:
            return True
    return False


def killed(case: Case, kills: int) -> Json:
    """A search that is killed at random times and started again, compared with one that is not."""
    dice = random.Random(0)  # noqa: S311  # times
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        command = [sys.executable, "-P", "-m", "benchmarks.autoquant", "--only", case.name, "--output", str(output)]
        done = 0
        while done < kills:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(timeout=6.0 + 6.0 * dice.random())
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
            else:
                break  # it is finished
        resumed = search(case, output)
    return {"kills": done, "same": json.dumps(resumed.to_dict()) == json.dumps(search(case).to_dict())}


def failures(results: Mapping[Case, Json], interrupted: Json | None) -> list[str]:
    """Unwanted results, in sentences."""
    found = []
    for case, row in results.items():
        if row["any"] and not row["met"]:
            found.append(f"{case.name}: a combination is within the drop, and the search is not")
        if row["evaluations"] > row["combinations"] / 2:
            found.append(f"{case.name}: {row['evaluations']} evaluations of {row['combinations']} combinations")
    if interrupted is not None and not interrupted["same"]:
        found.append("the search that was killed ended differently")
    return found


ABOUT = f"""## Search for accuracy

Made by `python -m benchmarks.autoquant` on `{TARGET}` with one scale per weight: `qcompiler.autoquant` with an allowed
drop of {DROP:.0%} of the float score and at most 40 evaluations. `all` is the number of combinations of ranges,
equalization, rounding, granularity and widths of all layers, without the techniques for biases and smoothing, which the
search also tries. Residual network and transformer have badly scaled channels, and read digits; attention runs in float
islands. {LITE} has its published weights and reads {REAL_IMAGES} crops of photographs of other pictures than those of
the calibration; its score is the share of answers that are those of the float network. The others are networks of this
page, on {IMAGES} images; the score of `unet` is the mean intersection over union."""


def section(results: Mapping[Case, Json], interrupted: Json | None) -> str:
    """The section of the page."""
    lines = [
        "| network | default widths | float | default | search | within the drop | evaluations | all | chosen |",
        "|---|---|---:|---:|---:|---|---:|---:|---|",
    ]
    for case, row in results.items():
        met = "yes" if row["met"] else "no, nor is any combination" if not row["any"] else "no"
        cells = (
            case.network,
            f"W{case.weight_bits}A8",
            f"{row['float']:.1%}",
            "failed" if row["default"] is None else f"{row['default']:.1%}",
            f"{row['score']:.1%}",
            met,
            str(row["evaluations"]),
            str(row["combinations"]),
            row["name"],
        )
        lines.append("| " + " | ".join(cells) + " |")
    if interrupted is not None:
        same = "ended like" if interrupted["same"] else "did not end like"
        lines += ["", f"The search of {KILLED.name}, killed {interrupted['kills']} times, {same} one that was not."]
    return "\n".join([ABOUT, "", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Search what is missing, print the section, and write the page once the whole run is finished."""
    parser = argparse.ArgumentParser(prog="benchmarks.autoquant", description=__doc__)
    parser.add_argument("--shard", type=shard, default=(0, 1), help="part of the searches, such as 1/3")
    parser.add_argument("--short", action="store_true", help="two small searches; writes no page")
    parser.add_argument("--fresh", action="store_true", help="make finished searches again")
    parser.add_argument("--kill", action="store_true", help=f"also kill one search {KILLS} times")
    parser.add_argument("--only", help="make this search alone, and keep nothing but its output")
    parser.add_argument("--output", type=Path, help="folder of the artifact, for --only")
    options = parser.parse_args(arguments)
    run = SHORT if options.short else WHOLE
    if options.only is not None:
        search(next(case for case in cases(WHOLE) if case.name == options.only), options.output)
        return 0
    store: Store[Case, Run] = Store(FOLDER, key, cases, WHOLE, rows=ROWS, fresh=options.fresh)
    index, parts = options.shard
    for case in list(cases(run))[index::parts]:
        try:
            store.get(case, run, lambda case=case: _result(case))  # type: ignore[misc]
        except AbsentError as error:
            print(f"{case.name}: {error}", file=sys.stderr)
        print(case.name, file=sys.stderr, flush=True)
    store.fresh = False
    done = store.done(run)
    interrupted = killed(KILLED, KILLS) if options.kill else None
    text = section(done, interrupted)
    print(text)
    wrong = failures(done, interrupted)
    print("\n".join(wrong), file=sys.stderr)
    if not options.short and options.kill and len(done) == len(list(cases(run))):
        store.collect()
        write_section(PERFORMANCE, SECTION, text)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
