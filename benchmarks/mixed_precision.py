"""`python -m benchmarks.mixed_precision`: fronts between bit operations and accuracy of three networks.

The points of `qcompiler.mixed_precision`, and what other ways reach at the same cost, all on the integer program:

    uniform   one pair of widths for all layers
    greedy    from the dearest widths down, always the group whose narrower width adds the least expected noise per bit
              operation saved; the assignment at the cost of each point
    random    assignments that are drawn: how well expected and measured noise agree

All are compared on images that no search has seen.

`--aimet PYTHON` also runs the automatic mixed precision of aimet-torch on each network, with the interpreter of an
environment that has it. Finished networks are kept in `build/mixed_precision` and in
`benchmarks/results/mixed_precision.jsonl`; a run that is killed goes on. `--shard 1/3` measures a third of the
networks, `--short` one network with few points.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import cast

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import qcompiler
from benchmarks.finished import Json, Store, plain
from benchmarks.networks import load, weights_digest
from benchmarks.pages import PERFORMANCE, write_section
from benchmarks.rendered import split
from benchmarks.trainings import shard
from qcompiler.analysis.assignment import Problem, Widths
from qcompiler.pages.plots import Points
from qcompiler.validation.noise import decibels

__all__ = ["Network", "Run", "aimet", "compare", "figure", "greedy", "main", "section"]

HERE = Path(__file__).resolve().parent
FOLDER, ROWS = HERE.parent / "build" / "mixed_precision", HERE / "results" / "mixed_precision.jsonl"
IMAGES = HERE.parent / "docs" / "howto" / "images"
AIMET_ROWS = HERE / "results" / "mixed_precision_aimet.jsonl"
SECTION = "mixed precision"
TARGET = "int8_dsp"
CALIBRATION = 64
WIDTHS = ((8, 4), (8, 8), (16, 4), (16, 8))
LEAST_CORRELATION = 0.8
"""Rank correlation that is wanted on every network."""
SAME_COST = 0.005
"""Relative difference of two costs that is none: AIMET leaves out the products of some small operators."""
ALLOWED_DB = 0.3
"""Signal-to-noise ratio that a front may lack against another way at equal cost: the noise of both is an estimate."""


@dataclass(frozen=True)
class Network:
    """One network of the benchmark.

    Args:
        model: Name of the trained network.
        per_channel: Whether its weights have a scale per channel.
    """

    model: str
    per_channel: bool = False

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.model}, per channel" if self.per_channel else self.model

    @property
    def target(self) -> qcompiler.Target:
        """The hardware."""
        target = qcompiler.load_target(TARGET)
        return target.override(per_channel=True) if self.per_channel else target


@dataclass(frozen=True)
class Run:
    """How much is measured.

    Args:
        networks: Names of networks, each of which is measured with a scale per weight and with one per channel.
        points: Points of a front.
        drawn: Random assignments.
        images: Images on which signal-to-noise ratios and the share of correct answers are measured.
    """

    networks: tuple[str, ...]
    points: int
    drawn: int
    images: int


WHOLE = Run(("mobilenet", "resnet", "efficientnet"), 12, 16, 1_000)
SHORT = Run(("resnet",), 4, 6, 200)


def key(network: Network, run: Run) -> str:
    """Key of a network's results."""
    parts = (weights_digest(network.model), metadata.version("qcompiler"), str(run), str(WIDTHS), network.target.name)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def greedy(problem: Problem, budget: float) -> Widths | None:
    """Widths of a greedy search: narrower ones, the least noise per saved cost first, until the budget is met."""
    widths = [max(noise) for noise in problem.noise]
    while problem.cost(widths) > budget:
        steps = []
        for group, noise in enumerate(problem.noise):
            narrower = [width for width in noise if width < widths[group]]
            if not narrower:
                continue
            changed = [*widths]
            changed[group] = max(narrower)
            saved = problem.cost(widths) - problem.cost(changed)
            added = noise[changed[group]] - noise[widths[group]]
            steps.append((added / saved if saved > 0 else float("inf"), group, changed))
        if not steps:
            return None
        widths = min(steps)[2]
    return tuple(widths)


def compare(network: Network, calibration: Sequence[Tensor], images: Tensor, labels: Tensor, run: Run) -> Json:
    """The front of a network, and what other ways reach at the same costs.

    Args:
        network: The network.
        calibration: Batches.
        images: Images of the score.
        labels: Their classes.
        run: How much is measured.
    """
    model, target = load(network.model), network.target

    def answers(candidate: nn.Module) -> Tensor:
        with torch.no_grad():
            found: list[Tensor] = [candidate(batch) for batch in images.split(250)]
        return torch.cat(found)

    def accuracy(candidate: nn.Module) -> float:
        return share(answers(candidate))

    def share(outputs: Tensor) -> float:
        return float((outputs.argmax(1) == labels).double().mean())

    front = qcompiler.mixed_precision(model, target, list(calibration), WIDTHS, evaluate=accuracy, points=run.points)
    wanted = answers(model)

    @functools.cache
    def measured(widths: Widths) -> Json:
        """Cost, expectation and measurement of an assignment."""
        compiled = qcompiler.compile(
            model, target, calibration_data=list(calibration), overrides=front.overrides(widths), verify="off"
        )
        found = answers(cast("nn.Module", compiled.simulate))
        noise = float((wanted - found).double().square().sum() / wanted.double().square().sum())
        return {
            "cost": front.problem.cost(widths),
            "expected": decibels(front.problem.expected(widths)),
            "score": decibels(noise),
            "accuracy": share(found),
        }

    uniform = []
    for activation, weight in WIDTHS:
        widths = tuple(
            next(iter(item.noise)) if len(item.noise) == 1 else weight if item.kind == "weight" else activation
            for item in front.groups
        )
        at_cost = front.problem.best(front.problem.cost(widths))
        assert at_cost is not None
        row = {"widths": f"W{weight}A{activation}", "uniform": measured(widths), "front": measured(at_cost)}
        uniform.append(row)
    others = []
    for point in front.points:
        widths_of_greedy = greedy(front.problem, point.cost)
        if widths_of_greedy is not None:
            others.append({"point": measured(point.widths), "greedy": measured(widths_of_greedy)})
    dice = random.Random(0)  # noqa: S311  # a draw of widths
    drawn: list[Json] = []
    while len(drawn) < run.drawn:
        wide = dice.random()
        widths = tuple((max if dice.random() < wide else min)(item.noise) for item in front.groups)
        drawn.append(measured(widths))
    plain = cast("list[Json]", front.to_dict()["points"])
    points = [
        row if point.score is None else {**row, "unseen": measured(point.widths)["score"]}
        for row, point in zip(plain, front.measured, strict=True)
    ]
    return {
        "float": share(wanted),
        "base": front.base,
        "points": points,
        "uniform": uniform,
        "greedy": others,
        "drawn": [{name: row[name] for name in ("cost", "expected", "score")} for row in drawn],
        "correlation": float(spearmanr([row["expected"] for row in drawn], [row["score"] for row in drawn]).statistic),
    }


def aimet(network: Network, python: Path) -> Json:
    """Points of the automatic mixed precision of aimet-torch: share of the dearest widths' cost, and decibels.

    Args:
        network: The network.
        python: Interpreter of an environment with aimet-torch.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [str(python), "-m", "benchmarks.mixed_precision_aimet", network.model, str(output)]
        command += ["--per-channel"] if network.per_channel else []
        subprocess.run(command, check=True, cwd=HERE.parent, stdout=sys.stderr)
        result: Json = json.loads(output.read_text(encoding="utf-8"))
    return result


def failures(results: Mapping[Network, Json]) -> list[str]:
    """Unwanted results, in sentences."""
    found = []
    for network, result in results.items():
        if result["correlation"] < LEAST_CORRELATION:
            found.append(f"{network.name}: rank correlation {result['correlation']:.2f}")
        found += [
            f"{network.name}: {row['widths']} is better than the front at its cost"
            for row in result["uniform"]
            if row["front"]["score"] < row["uniform"]["score"] - ALLOWED_DB
        ]
        found += [
            f"{network.name}: the greedy search is better at {row['point']['cost']:.3g}"
            for row in result["greedy"]
            if row["point"]["score"] < row["greedy"]["score"] - ALLOWED_DB
        ]
    return found


ABOUT = f"""## Mixed precision

Made by `python -m benchmarks.mixed_precision` on `{TARGET}`: activations of 8 or 16 bits and weights of 4 or 8 bits for
each layer of three networks, with one scale per weight and with one per channel, at most {WHOLE.points} measured points
each. Cost is bit operations as a share of those of the default widths (W8A8). Signal-to-noise ratios of the outputs and
accuracy are those of the integer program on {WHOLE.images:,} images that no search has seen; accuracy has a standard
error below one point. `dominated` counts measured points that a cheaper one beats; they are not part of the front. The
rank correlation is that of expected and measured noise of {WHOLE.drawn} random assignments."""


def section(results: Mapping[Network, Json], peers: Mapping[Network, Json]) -> str:
    """The section of the page.

    Args:
        results: Results by network.
        peers: Results of `aimet`.
    """
    lines = [
        "| network | points | dominated | rank correlation | float | cheapest within a point of float |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for network, result in results.items():
        points = [point for point in result["points"] if not point["dominated"]]
        good = [point for point in points if point["accuracy"] >= result["float"] - 0.01]
        cheapest = f"{min(point['cost'] for point in good) / result['base']:.0%}" if good else "none"
        cells = (
            network.name,
            str(len(points)),
            str(len(result["points"]) - len(points)),
            f"{result['correlation']:.2f}",
            f"{result['float']:.1%}",
            cheapest,
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "At the cost of uniform widths, measured dB and accuracy of the uniform widths and of the front:", ""]
    lines += ["| network | widths | cost | uniform | front | uniform | front |", "|---|---|---:|---:|---:|---:|---:|"]
    for network, result in results.items():
        for row in result["uniform"]:
            first, second = row["uniform"], row["front"]
            lines.append(
                f"| {network.name} | {row['widths']} | {first['cost'] / result['base']:.0%} | {first['score']:.1f} dB "
                f"| {second['score']:.1f} dB | {first['accuracy']:.1%} | {second['accuracy']:.1%} |"
            )
    gains = [row["point"]["score"] - row["greedy"]["score"] for result in results.values() for row in result["greedy"]]
    if gains:
        mean = sum(gains) / len(gains)
        against = (
            f"Against the greedy search at the cost of each of {len(gains)} points: between {min(gains):+.1f} and "
        )
        lines += ["", f"{against}{max(gains):+.1f} dB, {mean:+.1f} dB in the mean."]
    lines += ["", *_against_aimet(results, peers)]
    pictures = [f"![Front of {network.name}](howto/images/{_picture(network)})" for network in results]
    lines += ["", *pictures]
    return "\n".join([ABOUT, "", *lines])


def _picture(network: Network) -> str:
    """File name of the picture."""
    return f"front_{plain(network.name)}.svg"


def _against_aimet(results: Mapping[Network, Json], peers: Mapping[Network, Json]) -> list[str]:
    """How far the front is above the points of AIMET, at the cost of each point of the front."""
    if not peers:
        return ["AIMET's automatic mixed precision was not measured."]
    version = next(iter(peers.values()))["version"]
    lines = [
        f"Automatic mixed precision of `aimet-torch` {version} with the same candidates and calibration images, on 250",
        "of the unseen images: float fake quantization, scales as in the row, no equalization, default ranges; all",
        "points that its search visits. At the cost of each point of the front, its best point within that cost:",
        "",
        "| network | points of AIMET | front above AIMET, dB: least | mean | most | cost of the least |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for network, peer in peers.items():
        base, dearest = results[network]["base"], _dearest(results[network])
        gains = []
        for point in results[network]["points"]:
            within = [
                item["score"] for item in peer["points"] if item["share"] * dearest <= point["cost"] * (1 + SAME_COST)
            ]
            if within and not point["dominated"]:
                gains.append((point["unseen"] - max(within), point["cost"] / base))
        if gains:
            mean = sum(gain for gain, _ in gains) / len(gains)
            least, most = min(gains), max(gains)
            cells = (f"{least[0]:+.1f}", f"{mean:+.1f}", f"{most[0]:+.1f}", f"{least[1]:.0%}")
            lines.append(f"| {network.name} | {len(peer['points'])} | {' | '.join(cells)} |")
    return lines


def _dearest(result: Json) -> float:
    """Cost of W8A16, of which AIMET gives shares."""
    row = next(item for item in result["uniform"] if item["widths"] == "W8A16")
    return float(row["uniform"]["cost"])


def figure(name: str, result: Json, peer: Json | None) -> str:
    """The front, the uniform widths and the points of AIMET as a picture, SVG."""
    base = result["base"]
    points = [(100 * point["cost"] / base, point["unseen"]) for point in result["points"] if not point["dominated"]]
    uniform = {
        row["widths"]: [(100 * row["uniform"]["cost"] / base, row["uniform"]["score"])] for row in result["uniform"]
    }
    if peer is not None:
        dearest = 100 * _dearest(result) / base
        uniform["AIMET"] = [(item["share"] * dearest, item["score"]) for item in peer["points"]]
    labels = ("bit operations, % of W8A8", "SQNR of the outputs, dB")
    return Points(name, *labels, {"front": points, **uniform}, points, width=480, height=300, in_page=False).svg()


def _result(network: Network, run: Run) -> Json:
    calibration = list(split("calibration").images[:CALIBRATION].split(32))
    scenes = split("test")
    return compare(network, calibration, scenes.images[: run.images], scenes.labels[: run.images], run)


def networks(run: Run) -> Iterable[Network]:
    """The networks of a run."""
    return [Network(name, per_channel) for per_channel in (False, True) for name in run.networks]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print the section, and write the page once the whole run is finished."""
    parser = argparse.ArgumentParser(prog="benchmarks.mixed_precision", description=__doc__)
    parser.add_argument("--shard", type=shard, default=(0, 1), help="part of the networks, such as 1/3")
    parser.add_argument("--short", action="store_true", help="one network with few points; writes no page")
    parser.add_argument("--fresh", action="store_true", help="measure finished networks again")
    parser.add_argument("--aimet", type=Path, help="interpreter of an environment with aimet-torch")
    options = parser.parse_args(arguments)
    run = SHORT if options.short else WHOLE
    store: Store[Network, Run] = Store(FOLDER, key, networks, WHOLE, rows=ROWS, fresh=options.fresh)
    index, parts = options.shard
    for network in list(networks(run))[index::parts]:
        store.get(network, run, lambda network=network: _result(network, run))  # type: ignore[misc]
        print(network.name, file=sys.stderr, flush=True)
    peers: Store[Network, Run] = Store(FOLDER / "aimet", key, networks, WHOLE, rows=AIMET_ROWS, fresh=options.fresh)
    for network in networks(run) if options.aimet is not None else ():
        peers.get(network, run, lambda network=network: aimet(network, options.aimet))  # type: ignore[misc]
    store.fresh = False
    done = store.done(run)
    found = {network: peer for network, peer in peers.done(run).items() if network in done}
    text = section(done, found)
    print(text)
    wrong = failures(done)
    print("\n".join(wrong), file=sys.stderr)
    if not options.short and len(done) == len(list(networks(run))):
        store.collect()
        peers.collect()
        IMAGES.mkdir(parents=True, exist_ok=True)
        for network, result in done.items():
            (IMAGES / _picture(network)).write_text(figure(network.name, result, found.get(network)), encoding="utf-8")
        write_section(PERFORMANCE, SECTION, text)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
