"""`python -m benchmarks.mixed_precision`: fronts between bit operations and accuracy of three networks.

The points of `qcompiler.mixed_precision`, and what other ways reach at the same cost, all on the integer program:

    uniform   one pair of widths for all layers
    greedy    from the dearest widths down, always the group whose narrower width adds the least expected noise per bit
              operation saved; the assignment at the cost of each point
    random    assignments that are drawn: how well expected and measured noise agree

Finished networks are kept in `build/mixed_precision` and in `benchmarks/results/mixed_precision.jsonl`; a run that is
killed goes on. `--shard 1/3` measures a third of the networks, `--short` one network with few points.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import cast

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import qcompiler
from benchmarks.finished import Json, Store
from benchmarks.networks import load, weights_digest
from benchmarks.pages import PERFORMANCE, write_section
from benchmarks.rendered import split
from benchmarks.trainings import shard
from qcompiler.analysis.assignment import Problem, Widths
from qcompiler.validation.noise import decibels

__all__ = ["Network", "Run", "compare", "figure", "greedy", "main", "section"]

HERE = Path(__file__).resolve().parent
FOLDER, ROWS = HERE.parent / "build" / "mixed_precision", HERE / "results" / "mixed_precision.jsonl"
IMAGES = HERE.parent / "docs" / "howto" / "images"
SECTION = "mixed precision"
TARGET = "int8_dsp"
CALIBRATION = 64
WIDTHS = ((8, 4), (8, 8), (16, 4), (16, 8))
LEAST_CORRELATION = 0.8
"""Rank correlation that is wanted on every network."""
ALLOWED_DB = 0.5
"""Signal-to-noise ratio that a front may lack against another way at equal cost: it is measured on 32 images."""


@dataclass(frozen=True)
class Network:
    """One network of the benchmark."""

    name: str


@dataclass(frozen=True)
class Run:
    """How much is measured.

    Args:
        networks: Names of networks.
        points: Points of a front.
        drawn: Random assignments.
        images: Images on which the share of correct answers is measured.
    """

    networks: tuple[str, ...]
    points: int
    drawn: int
    images: int


WHOLE = Run(("mobilenet", "resnet", "efficientnet"), 12, 16, 1_000)
SHORT = Run(("resnet",), 4, 6, 200)


def key(network: Network, run: Run) -> str:
    """Key of a network's results."""
    parts = (weights_digest(network.name), metadata.version("qcompiler"), str(run), str(WIDTHS), TARGET)
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


def compare(model: nn.Module, calibration: Sequence[Tensor], images: Tensor, labels: Tensor, run: Run) -> Json:
    """The front of a network, and what other ways reach at the same costs.

    Args:
        model: The network.
        calibration: Batches.
        images: Images of the score.
        labels: Their classes.
        run: How much is measured.
    """

    def accuracy(candidate: nn.Module) -> float:
        found: list[Tensor] = [candidate(batch).argmax(1) for batch in images.split(250)]
        return float((torch.cat(found) == labels).double().mean())

    front = qcompiler.mixed_precision(model, TARGET, list(calibration), WIDTHS, evaluate=accuracy, points=run.points)
    with torch.no_grad():
        whole = accuracy(model)

    def measured(widths: Widths) -> Json:
        """Cost, expectation and measurement of an assignment."""
        compiled = qcompiler.compile(
            model, TARGET, calibration_data=list(calibration), overrides=front.overrides(widths), verify="off"
        )
        samples = calibration[0][:32]
        with torch.no_grad():
            wanted = model(samples)
        found = cast("Tensor", compiled.simulate(samples))
        noise = float((wanted - found).double().square().sum() / wanted.double().square().sum())
        return {
            "cost": front.problem.cost(widths),
            "expected": decibels(front.problem.expected(widths)),
            "score": decibels(noise),
            "accuracy": accuracy(cast("nn.Module", compiled.simulate)),
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
            others.append({"point": {"cost": point.cost, "score": point.score}, "greedy": measured(widths_of_greedy)})
    dice = random.Random(0)  # noqa: S311  # a draw of widths
    drawn: list[Json] = []
    while len(drawn) < run.drawn:
        share = dice.random()
        widths = tuple((max if dice.random() < share else min)(item.noise) for item in front.groups)
        drawn.append(measured(widths))
    plain = front.to_dict()
    return {
        "float": whole,
        "base": front.base,
        "points": plain["points"],
        "uniform": uniform,
        "greedy": others,
        "drawn": [{name: row[name] for name in ("cost", "expected", "score")} for row in drawn],
        "correlation": float(spearmanr([row["expected"] for row in drawn], [row["score"] for row in drawn]).statistic),
    }


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
each layer of three networks, at most {WHOLE.points} measured points each. Cost is bit operations as a share of those of
the default widths (W8A8). The signal-to-noise ratio of the outputs is that of the integer program on 32 images;
accuracy is measured on {WHOLE.images:,} images, with a standard error below one point. `dominated` counts measured
points that a cheaper one beats; they are not part of the front. The rank correlation is that of expected and measured
noise of {WHOLE.drawn} random assignments. AIMET's automatic mixed precision was not measured."""


def section(results: Mapping[Network, Json]) -> str:
    """The section of the page."""
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
    lines += ["", "![Signal-to-noise ratio over bit operations of three networks](howto/images/fronts.svg)"]
    return "\n".join([ABOUT, "", *lines])


WIDTH, HEIGHT, MARGIN = 300.0, 260.0, 44.0


def figure(results: Mapping[Network, Json]) -> str:
    """The fronts as a picture, SVG: one panel per network, cost to the right, decibels upwards."""
    panels = [_panel(network.name, result, index * WIDTH) for index, (network, result) in enumerate(results.items())]
    size = f'width="{WIDTH * len(panels):g}" height="{HEIGHT:g}" viewBox="0 0 {WIDTH * len(panels):g} {HEIGHT:g}"'
    style = "text { font: 11px sans-serif; fill: #777 } .front { stroke: #2a7de1; fill: none; stroke-width: 2 }"
    body = "\n".join(panels)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{style}</style>\n{body}\n</svg>\n'


def _panel(name: str, result: Json, left: float) -> str:
    points = [(point["cost"] / result["base"], point["score"]) for point in result["points"] if not point["dominated"]]
    uniform = [
        (row["uniform"]["cost"] / result["base"], row["uniform"]["score"], row["widths"]) for row in result["uniform"]
    ]
    every = [*points, *(row[:2] for row in uniform)]
    right = max(x for x, _ in every) * 1.05
    high = max(y for _, y in every) * 1.1

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + MARGIN + (WIDTH - MARGIN - 12) * x / right,
            HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * max(y, 0.0) / high,
        )

    parts = [f'<text x="{left + MARGIN:.1f}" y="20" style="font-weight: bold">{name}</text>']
    (x0, y0), (x1, y1) = place(0, 0), place(right, high)
    parts.append(f'<path d="M{x0:.1f} {y1:.1f}V{y0:.1f}H{x1:.1f}" stroke="#999" fill="none"/>')
    for share in (0.5, 1.0, 1.5, 2.0):
        if share < right:
            x, y = place(share, 0)
            parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{share:.0%}</text>')
    for level in range(0, int(high) + 1, 10):
        x, y = place(0, level)
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{level}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    parts.append(f'<polyline class="front" points="{line}"/>')
    for point in points:
        x, y = place(*point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#2a7de1"/>')
    for share, score, words in uniform:
        x, y = place(share, score)
        parts.append(f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="#d9822b"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 15:.1f}" text-anchor="middle">{words}</text>')
    x, y = place(right / 2, 0)
    parts.append(f'<text x="{x:.1f}" y="{y + 32:.1f}" text-anchor="middle">bit operations, dB upwards</text>')
    return "\n".join(parts)


def _result(network: Network, run: Run) -> Json:
    calibration = list(split("calibration").images[:CALIBRATION].split(32))
    scenes = split("test")
    return compare(load(network.name), calibration, scenes.images[: run.images], scenes.labels[: run.images], run)


def networks(run: Run) -> Iterable[Network]:
    """The networks of a run."""
    return [Network(name) for name in run.networks]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print the section, and write the page once the whole run is finished."""
    parser = argparse.ArgumentParser(prog="benchmarks.mixed_precision", description=__doc__)
    parser.add_argument("--shard", type=shard, default=(0, 1), help="part of the networks, such as 1/3")
    parser.add_argument("--short", action="store_true", help="one network with few points; writes no page")
    parser.add_argument("--fresh", action="store_true", help="measure finished networks again")
    options = parser.parse_args(arguments)
    run = SHORT if options.short else WHOLE
    store: Store[Network, Run] = Store(FOLDER, key, networks, WHOLE, rows=ROWS, fresh=options.fresh)
    index, parts = options.shard
    for network in list(networks(run))[index::parts]:
        store.get(network, run, lambda network=network: _result(network, run))  # type: ignore[misc]
        print(network.name, file=sys.stderr, flush=True)
    store.fresh = False
    done = store.done(run)
    text = section(done)
    print(text)
    wrong = failures(done)
    print("\n".join(wrong), file=sys.stderr)
    if not options.short and len(done) == len(run.networks):
        store.collect()
        IMAGES.mkdir(parents=True, exist_ok=True)
        (IMAGES / "fronts.svg").write_text(figure(done), encoding="utf-8")
        write_section(PERFORMANCE, SECTION, text)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
