"""Recurrent layers of ONNX, unrolled; see `frontends.recurrent` for the equations.

The order of the gates in the weights: input, output, forget, cell in an LSTM; update, reset, hidden in a GRU.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.frontends.onnx.symbolic import Operand, apply
from qcompiler.frontends.onnx.table import At, translates
from qcompiler.frontends.recurrent import MOST_STEPS, STATES, Arithmetic, Cell, Weights, run

GATES: Mapping[str, tuple[str, ...]] = {"RNN": ("h",), "GRU": ("z", "r", "n"), "LSTM": ("i", "o", "f", "g")}
ACTIVATIONS: Mapping[str, Callable[..., Any]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "softplus": F.softplus,
    "elu": F.elu,
}
COMPOSED = ("softsign", "softplus", "elu")
"""Activations that may become several operators, whose results have grids of their own in each step."""
DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "RNN": ("tanh",),
    "GRU": ("sigmoid", "tanh"),
    "LSTM": ("sigmoid", "tanh", "tanh"),
}


@translates("RNN", "GRU", "LSTM")
def _recurrent(at: At) -> Any:
    """Results Y [length, directions, batch, hidden], Y_h and, for an LSTM, Y_c [directions, batch, hidden]."""
    x = at.tensor(0)
    batch_first = bool(at.attribute("layout", 0))
    time = 1 if batch_first else 0
    steps = x.shape[time]
    if not isinstance(steps, int):
        raise at.refusal(f"{at.op} over a length that depends on the batch size")
    if steps > MOST_STEPS:
        raise at.refusal(f"{at.op} over {steps} steps", f"Use at most {MOST_STEPS}.")
    if at.has(4):
        lengths = at.known(4)
        if not bool((lengths == steps).all()):
            raise at.refusal(f"{at.op} over sequences of several lengths", "Use sequences of one length.")
    if "clip" in at.attributes:
        raise at.refusal(f"{at.op} with clipped gates", "Export it without clip.")
    kind = at.attribute("direction", "forward")
    ways = [False, True] if kind == "bidirectional" else [kind == "reverse"]
    outputs, states = [], []
    for number, is_reverse in enumerate(ways):
        cell = _cell(at, number)
        first = _first(at, cell, number, x, batch_first)
        y, last = run(cell, x, first, steps, time, reverse=is_reverse)
        outputs.append(y)
        states.append(last)
    # layout 0: [length, directions, batch, hidden]; layout 1: [batch, length, directions, hidden]
    axis = 2 if batch_first else 1
    results = [apply(torch.stack, outputs, axis)]
    return results + [
        apply(torch.stack, part, 1 if batch_first else 0) for part in map(list, zip(*states, strict=True))
    ]


def _cell(at: At, number: int) -> Cell[Operand, Tensor]:
    """One direction of a layer, of this number."""
    gates = GATES[at.op]
    inputs, hidden = (at.derived(at.known(index)[number].contiguous(), index) for index in (1, 2))
    size = hidden.shape[-1]
    biases: list[Tensor | None] = [None, None]
    if at.has(3):
        both = at.known(3)[number]
        biases = [at.derived(part.clone(), 3) for part in both.split(len(gates) * size)]
    late = None
    if at.op == "GRU" and not at.attribute("linear_before_reset", 0):
        rows = slice(2 * size, 3 * size)
        bias = biases[1]
        late = (
            at.derived(hidden[rows].contiguous(), 2),
            None if bias is None else at.derived(bias[rows].clone(), 3),
        )
    peepholes: dict[str, Tensor] = {}
    if at.op == "LSTM" and at.has(7):
        parts = at.derived(at.known(7)[number].contiguous(), 7).split(size)
        peepholes = dict(zip(("i", "o", "f"), parts, strict=True))
    weights = Weights(inputs, hidden, biases[0], biases[1], late=late, peepholes=peepholes)
    coupled = bool(at.attribute("input_forget", 0))
    name = f"{at.location.path}.steps.{number}"
    return Cell(at.op, _Calls(at), weights, _functions(at, number), gates, coupled, name)


def _functions(at: At, number: int) -> list[str]:
    """The activations of a direction."""
    names = [name.lower() for name in at.attribute("activations", [])] or list(DEFAULTS[at.op]) * 2
    each = len(DEFAULTS[at.op])
    chosen = names[number * each : (number + 1) * each]
    for name in chosen:
        if name not in ACTIVATIONS or "activation_alpha" in at.attributes:
            raise at.refusal(f"{at.op} with the activation {name}", f"Use {', '.join(ACTIVATIONS)}.")
    return chosen


def _first(at: At, cell: Cell[Operand, Tensor], number: int, x: Operand, batch_first: bool) -> list[Operand]:
    """The states before the first step, given or zeros, [batch, hidden]."""
    found: list[Operand] = []
    for index, part in zip((5, 6) if at.op == "LSTM" else (5,), STATES, strict=False):
        if at.has(index):
            states, which = at.tensor(index), number
        else:
            size = at.known(2).shape[-1] if part == "hidden" else cell.weights.hidden.shape[0] // len(GATES[at.op])
            batch = x.shape[0 if batch_first else 1]
            states, which = apply(torch.zeros, *((batch, 1) if batch_first else (1, batch)), size), 0
        found.append(cell.arithmetic.at(states, 1 if batch_first else 0, which, cell.place(part)))
    return found


class _Calls(Arithmetic[Operand, Tensor]):
    """Records calls of torch.

    Args:
        at: The layer.
    """

    def __init__(self, at: At) -> None:
        self.recording = at.recording

    @contextlib.contextmanager
    def _placed(self, place: str) -> Iterator[None]:
        before = self.recording.location
        self.recording.location = dataclasses.replace(before, place=place)
        try:
            yield
        finally:
            self.recording.location = before

    def _call(self, place: str, function: Callable[..., Any], *arguments: Any) -> Operand:
        with self._placed(place):
            return apply(function, *arguments)

    def linear(self, x: Operand, weight: Tensor, bias: Tensor | None, place: str) -> Operand:
        """See `Arithmetic.linear`."""
        return self._call(place, F.linear, x, weight, bias)

    def add(self, x: Operand, y: Operand, place: str) -> Operand:
        """See `Arithmetic.add`."""
        return self._call(place, torch.add, x, y)

    def sub(self, x: Operand, y: Operand, place: str) -> Operand:
        """See `Arithmetic.sub`."""
        return self._call(place, torch.sub, x, y)

    def mul(self, x: Operand, y: Operand, place: str) -> Operand:
        """See `Arithmetic.mul`."""
        return self._call(place, torch.mul, x, y)

    def complement(self, x: Operand, place: str) -> Operand:
        """See `Arithmetic.complement`."""
        return self._call(place, torch.sub, torch.tensor(1.0), x)

    def apply(self, function: str, x: Operand, place: str) -> Operand:
        """See `Arithmetic.apply`."""
        return self._call("" if function in COMPOSED else place, ACTIVATIONS[function], x)

    def pieces(self, x: Operand, count: int, place: str) -> list[Operand]:
        """See `Arithmetic.pieces`."""
        size = x.shape[-1]
        assert isinstance(size, int)
        each = size // count
        return [self._call(place, torch.narrow, x, -1, index * each, each) for index in range(count)]

    def at(self, x: Operand, axis: int, index: int, place: str) -> Operand:
        """See `Arithmetic.at`."""
        return self._call(place, torch.select, x, axis, index)

    def stack(self, items: Sequence[Operand], axis: int, place: str) -> Operand:
        """See `Arithmetic.stack`."""
        return self._call(place, torch.stack, list(items), axis)
