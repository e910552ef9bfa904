"""The tables of quantized training: mean and standard deviation of the accuracy, estimator by estimator."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.finished import Json
from qcompiler.training.range_estimators import ESTIMATORS

__all__ = ["MODES", "Cell", "Mode", "interval", "section"]


@dataclass(frozen=True)
class Mode:
    """A choice of operands to quantize.

    Args:
        title: Title of the table.
        operands: Quantized operands.
        gradient_bits: Bits of gradients.
    """

    title: str
    operands: tuple[str, ...]
    gradient_bits: int = 8


MODES = {
    "gradients": Mode("(a) only gradients, 8 bits", ("gradients",)),
    "activations": Mode("(b) only activations, 8 bits", ("activations",)),
    "everything": Mode("(c) weights, activations and gradients, 8 bits", ("weights", "activations", "gradients")),
    "four_bits": Mode("(d) only gradients, 4 bits", ("gradients",), 4),
}


@dataclass(frozen=True)
class Cell:
    """One training.

    Args:
        network: Name of the network.
        mode: One of `MODES`, or `float`.
        estimator: Estimator of ranges; empty for `float`.
        seed: Seed of weights, order of the data and noise.
    """

    network: str
    mode: str
    estimator: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the file of its result."""
        return "-".join(filter(None, (self.network, self.mode, self.estimator, str(self.seed))))


_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantile of Student's t by degrees of freedom."""


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Mean of paired differences and half of its 95 % confidence interval; None for fewer than two."""
    if len(differences) < 2:
        return None
    spread = statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.fmean(differences), _T95[min(len(differences) - 1, max(_T95))] * spread


def section(done: Mapping[Cell, Json], pictures: int, trainings: int) -> str:
    """The section of the page, Markdown.

    Args:
        done: Finished trainings.
        pictures: Number of pictures of a training.
        trainings: Number of trainings of the whole run.
    """
    networks = list(dict.fromkeys(cell.network for cell in done))
    head = (
        f"Accuracy, %, after training from scratch on {pictures:,} pictures of 64×64 in 48 classes, mean ± standard "
        "deviation over seeds, for `int8_dsp` (`python -m benchmarks.quantized_training`). The questions are those of "
        "arXiv:2105.04246; its figures are not repeated here. All estimators of a seed have the same weights, data and "
        "rounding noise."
    )
    text = ["## Quantized training: range estimators", "", head]
    if len(done) < trainings:
        text += ["", f"{len(done)} of {trainings} trainings are finished; figures that are missing are left empty."]
    for mode, item in MODES.items():
        text += ["", f"**{item.title}**", "", *_table(done, networks, mode)]
    text += ["", "**In hindsight compared with others**, points, 95 % interval of the paired difference", ""]
    text += _comparison(done, networks)
    text += ["", *_program(done, networks)]
    return "\n".join(text)


def _accuracies(done: Mapping[Cell, Json], network: str, mode: str, estimator: str) -> dict[int, float]:
    """Accuracy by seed, %."""
    return {
        cell.seed: 100 * result["accuracy"]
        for cell, result in done.items()
        if (cell.network, cell.mode, cell.estimator) == (network, mode, estimator)
    }


def _figure(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _table(done: Mapping[Cell, Json], networks: Sequence[str], mode: str) -> list[str]:
    rows = [("float", "float", ""), *((name, mode, name) for name in ESTIMATORS)]
    lines = [f"| estimator | {' | '.join(networks)} |", f"|---|{'---:|' * len(networks)}"]
    for title, own, estimator in rows:
        figures = [_figure(list(_accuracies(done, network, own, estimator).values())) for network in networks]
        if any(figures):
            lines.append(f"| {title} | {' | '.join(figures)} |")
    return lines


def _comparison(done: Mapping[Cell, Json], networks: Sequence[str]) -> list[str]:
    lines = ["| network | operands | in hindsight − current | in hindsight − running |", "|---|---|---:|---:|"]
    for network in networks:
        for mode in MODES:
            own = _accuracies(done, network, mode, "in_hindsight")
            cells = []
            for other in ("current", "running"):
                theirs = _accuracies(done, network, mode, other)
                found = interval([own[seed] - theirs[seed] for seed in sorted({*own} & {*theirs})])
                cells.append("" if found is None else f"{found[0]:+.2f} ± {found[1]:.2f}")
            if any(cells):
                lines.append(f"| {network} | {mode} | {' | '.join(cells)} |")
    return lines if len(lines) > 2 else ["Fewer than two seeds are finished."]


def _program(done: Mapping[Cell, Json], networks: Sequence[str]) -> list[str]:
    """The integer program next to float training and to quantization after it."""
    columns = (
        "float",
        "quantized after float training",
        "trained in integers",
        "differing elements of the program",
    )
    lines = [f"| network | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for network in networks:
        plain = {cell: result for cell, result in done.items() if (cell.network, cell.mode) == (network, "float")}
        trained = {
            cell: result
            for cell, result in done.items()
            if (cell.network, cell.mode, cell.estimator) == (network, "everything", "in_hindsight")
        }
        if not plain or not trained:
            continue
        after = [100 * result["after quantization"] for result in plain.values()]
        figures = [
            _figure([100 * result["accuracy"] for result in plain.values()]),
            _figure(after),
            _figure([100 * result["accuracy"] for result in trained.values()]),
            str(sum(result["differing"] for result in trained.values())),
        ]
        lines.append(f"| {network} | {' | '.join(figures)} |")
    return lines
