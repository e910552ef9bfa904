"""`python -m examples.qat.toy_regression`: a regression of one weight that never settles, and what settles it.

    minimize over w:  E[(x w* - x q(w))^2] / 2 = (w* - q(w))^2 / 2,      E[x^2] = 1,  q(w) = s round(w / s)

The optimum w* lies at a distance d from the next code, so that no code has gradient 0: on either side of the threshold
between the two codes around w* the gradient pushes w back over it. The nearer code has the smaller gradient, d, the
other one s - d: of s / d steps one is spent on the far side, whatever the learning rate.

Written with the quantizer, the estimators, the penalty and the freezing of the library: nothing is made up for the toy.

Source: Nagel et al. 2022, arXiv:2203.11086, section 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from qcompiler.pages.plots import Curves
from qcompiler.quant.spec import QuantSpec
from qcompiler.training.estimators import EWGS, PSG, DifferentiableSoftQuantization, Estimator, StraightThrough
from qcompiler.training.freezing import freeze
from qcompiler.training.oscillations import Oscillations
from qcompiler.training.quantizer import Quantizer
from qcompiler.training.ranges import FixedRange
from qcompiler.training.regularizers import Dampening, Latent, Regularizer, Weighted
from qcompiler.training.schedules import Cosine, Schedule

__all__ = ["WAYS", "Trace", "Way", "main", "plot", "regress"]

SCALE, OPTIMUM = 1.0, 0.75
"""Scale and optimum of the plot: d = 0.25, a period of four steps."""
PLOT = Path(__file__).parents[2] / "docs" / "howto" / "images" / "toy_regression.svg"


@dataclass(frozen=True)
class Way:
    """How the weight learns.

    Args:
        estimator: Estimator of gradients through rounding.
        regularizer: A penalty on the weight.
        strength: Strength of the penalty.
        threshold: Frequency above which the code is frozen; 0: never.
    """

    estimator: Estimator = field(default_factory=StraightThrough)
    regularizer: Regularizer | None = None
    strength: float | Schedule = 0.0
    threshold: float = 0.0


WAYS: Mapping[str, Way] = {
    "straight-through": Way(),
    "EWGS": Way(EWGS()),
    "PSG": Way(PSG()),
    "DSQ": Way(DifferentiableSoftQuantization()),
    "dampening": Way(regularizer=Dampening("sum"), strength=Cosine(0.0, 0.5)),
    "freezing": Way(threshold=0.05),
}


@dataclass(frozen=True)
class Trace:
    """The course of a regression, step by step.

    Args:
        weights: Latent weight.
        codes: Codes of the weight.
    """

    weights: tuple[float, ...]
    codes: tuple[int, ...]

    def last(self, steps: int) -> Trace:
        """The last steps alone."""
        return Trace(self.weights[-steps:], self.codes[-steps:])

    @property
    def frequency(self) -> float:
        """Oscillations, there and back again, over steps: how often the code rises."""
        return sum(after > before for before, after in zip(self.codes, self.codes[1:], strict=False)) / len(self.codes)


def regress(
    way: Way,
    *,
    steps: int,
    lr: float = 0.01,
    optimum: float = OPTIMUM,
    scale: float = SCALE,
    start: float | None = None,
    momentum: float = 0.01,
) -> Trace:
    """Gradient descent on the toy.

    Args:
        way: How it learns.
        steps: Number of steps.
        lr: Learning rate.
        optimum: w*.
        scale: s.
        start: Initial w; None: w*.
        momentum: Momentum of the oscillation frequency, for freezing.
    """
    spec = QuantSpec(bits=4, signed=True, symmetric=True)
    quantizer = Quantizer(spec, FixedRange(), way.estimator, torch.tensor(scale), torch.zeros((), dtype=torch.int32))
    w = nn.Parameter(torch.tensor([optimum if start is None else start]))
    state = quantizer.oscillation = Oscillations(quantizer.codes(w), momentum)
    state.freezes = way.threshold > 0.0
    optimizer = torch.optim.SGD([w], lr=lr)
    grid = torch.tensor(scale)
    weights, codes = [], []
    for step in range(steps):
        loss = (optimum - quantizer(w, *quantizer.grid(w))).square().sum() / 2
        if way.regularizer is not None:
            item = Latent(w, grid, quantizer.codes(w), spec.qmin, spec.qmax, 0, spec.bits)
            loss = loss + Weighted(way.regularizer, way.strength).at(step, steps) * way.regularizer(item)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found = quantizer.codes(w)
        state.update(found)
        freeze(state, way.threshold)
        weights.append(w.item())
        codes.append(int(found.item()))
    return Trace(tuple(weights), tuple(codes))


def plot(steps: int = 240, lr: float = 0.02) -> str:
    """Quantized weight of every way, one above the other, as an `svg` document."""
    curves = {}
    for index, (name, way) in enumerate(WAYS.items()):
        trace = regress(way, steps=steps, lr=lr, start=0.6, momentum=0.02)
        raised = 1.5 * (len(WAYS) - 1 - index)
        # Steps of the staircase: two points where the code changes.
        points = [(float(step + edge), raised + code) for step, code in enumerate(trace.codes) for edge in (0, 1)]
        curves[name] = points
    title = f"code of a weight, 0 or 1, whose optimum is {OPTIMUM}; one curve above the other"
    return Curves(title, "step", curves, height=420, numbered=False).svg()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the frequencies and draw the plot."""
    parser = argparse.ArgumentParser(description="A regression of one weight that never settles.")
    parser.add_argument("--output", type=Path, default=PLOT, help="SVG file to write")
    options = parser.parse_args(arguments)
    print("oscillations per step, straight-through, optimum 0.75 (expected: 0.25)")
    for lr in (0.3, 0.1, 0.03, 0.01):
        print(f"  learning rate {lr:<5} {regress(Way(), steps=600, lr=lr).last(400).frequency:.3f}")
    print("oscillations per step in the end, learning rate 0.05")
    for name, way in WAYS.items():
        print(f"  {name:<17} {regress(way, steps=800, lr=0.05).last(200).frequency:.3f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(plot(), encoding="utf-8")
    print(f"drawn: {options.output.name}")


if __name__ == "__main__":
    main()
