"""Recurrent layers of ONNX, one step after another.

The order of the gates in the weights: input, output, forget, cell in an LSTM; update, reset, hidden in a GRU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.frontends.onnx.symbolic import Operand, apply, parts
from qcompiler.frontends.onnx.table import At, translates

GATES: Mapping[str, int] = {"RNN": 1, "GRU": 3, "LSTM": 4}
ACTIVATIONS: Mapping[str, Callable[..., Any]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "softplus": F.softplus,
    "elu": F.elu,
}
DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "RNN": ("tanh",),
    "GRU": ("sigmoid", "tanh"),
    "LSTM": ("sigmoid", "tanh", "tanh"),
}
MOST_STEPS = 512
"""Steps of a recurrent layer that is unrolled."""

State: TypeAlias = "list[Operand]"
"""The hidden state, and the cell state of an LSTM."""


@translates("RNN", "GRU", "LSTM")
def _recurrent(at: At) -> Any:
    """Results Y [length, directions, batch, hidden], Y_h and, for an LSTM, Y_c [directions, batch, hidden]."""
    x = at.tensor(0)
    batch_first = bool(at.attribute("layout", 0))
    steps = x.shape[1 if batch_first else 0]
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
        cell = _Cell(at, number)
        order = range(steps - 1, -1, -1) if is_reverse else range(steps)
        state, found = cell.first(x, batch_first), dict[int, Operand]()
        for step in order:
            state = cell(apply(torch.select, x, 1 if batch_first else 0, step), state)
            found[step] = state[0]
        outputs.append(apply(torch.stack, [found[step] for step in range(steps)], 1 if batch_first else 0))
        states.append(state)
    # layout 0: [length, directions, batch, hidden]; layout 1: [batch, length, directions, hidden]
    axis = 2 if batch_first else 1
    results = [apply(torch.stack, outputs, axis)]
    return results + [
        apply(torch.stack, part, 1 if batch_first else 0) for part in map(list, zip(*states, strict=True))
    ]


class _Cell:
    """One direction of a layer.

    Args:
        at: The layer.
        number: Number of the direction.
    """

    def __init__(self, at: At, number: int) -> None:
        self.at, self.number = at, number
        gates = GATES[at.op]
        self.inputs, self.hidden = self._part(1), self._part(2)
        self.size = self.hidden.shape[-1]
        bias = self._part(3) if at.has(3) else torch.zeros(2 * gates * self.size)
        self.bias = at.derived(bias[: gates * self.size].clone(), 3)
        self.other_bias = at.derived(bias[gates * self.size :].clone(), 3)
        self.peepholes = self._part(7) if at.op == "LSTM" and at.has(7) else None
        names = [name.lower() for name in at.attribute("activations", [])] or list(DEFAULTS[at.op]) * 2
        each = len(DEFAULTS[at.op])
        self.functions = [self._function(name) for name in names[number * each : (number + 1) * each]]

    def _part(self, index: int) -> Tensor:
        """The weights of the direction."""
        return self.at.derived(self.at.known(index)[self.number].contiguous(), index)

    def _function(self, name: str) -> Callable[..., Any]:
        if name not in ACTIVATIONS or "activation_alpha" in self.at.attributes:
            raise self.at.refusal(f"{self.at.op} with the activation {name}", f"Use {', '.join(ACTIVATIONS)}.")
        return ACTIVATIONS[name]

    def first(self, x: Operand, batch_first: bool) -> State:
        """The states before the first step."""
        found: State = []
        for index in (5, 6) if self.at.op == "LSTM" else (5,):
            if self.at.has(index):
                found.append(apply(torch.select, self.at.tensor(index), 1 if batch_first else 0, self.number))
            else:
                first = apply(torch.select, x, 1 if batch_first else 0, 0)
                column = apply(torch.mul, apply(torch.narrow, first, 1, 0, 1), 0.0)
                found.append(apply(torch.add, column, torch.zeros(self.size)))
        return found

    def __call__(self, x: Operand, state: State) -> State:
        """The states after a step with the input x [batch, features]."""
        step: Mapping[str, Callable[[Operand, State], State]] = {"RNN": self._rnn, "GRU": self._gru, "LSTM": self._lstm}
        return step[self.at.op](x, state)

    def _sums(self, x: Operand, h: Operand) -> tuple[Operand, Operand]:
        return apply(F.linear, x, self.inputs, self.bias), apply(F.linear, h, self.hidden, self.other_bias)

    def _rnn(self, x: Operand, state: State) -> State:
        a, b = self._sums(x, state[0])
        return [apply(self.functions[0], apply(torch.add, a, b))]

    def _gru(self, x: Operand, state: State) -> State:
        f, g = self.functions
        h = state[0]
        a, b = self._sums(x, h)
        ax, ar, an = parts(torch.split, a, self.size, 1)
        bx, br, bn = parts(torch.split, b, self.size, 1)
        update, reset = apply(f, apply(torch.add, ax, bx)), apply(f, apply(torch.add, ar, br))
        if self.at.attribute("linear_before_reset", 0):
            new = apply(g, apply(torch.add, an, apply(torch.mul, reset, bn)))
        else:
            weight = self.at.derived(self.hidden[2 * self.size :].contiguous(), 2)
            bias = self.at.derived(self.other_bias[2 * self.size :].clone(), 3)
            product = apply(F.linear, apply(torch.mul, reset, h), weight, bias)
            new = apply(g, apply(torch.add, an, product))
        kept = apply(torch.mul, update, apply(torch.sub, h, new))
        return [apply(torch.add, new, kept)]

    def _lstm(self, x: Operand, state: State) -> State:
        f, g, last = self.functions
        h, c = state
        a, b = self._sums(x, h)
        i, o, forget, cell = parts(torch.split, apply(torch.add, a, b), self.size, 1)
        pi, po, pf = (None, None, None) if self.peepholes is None else self.peepholes.split(self.size)
        if pi is not None and pf is not None:
            i, forget = apply(torch.add, i, apply(torch.mul, c, pi)), apply(torch.add, forget, apply(torch.mul, c, pf))
        i, forget, cell = apply(f, i), apply(f, forget), apply(g, cell)
        if self.at.attribute("input_forget", 0):
            forget = apply(torch.sub, torch.tensor(1.0), i)
        c = apply(torch.add, apply(torch.mul, forget, c), apply(torch.mul, i, cell))
        if po is not None:
            o = apply(torch.add, o, apply(torch.mul, c, po))
        return [apply(torch.mul, apply(f, o), apply(last, c)), c]
