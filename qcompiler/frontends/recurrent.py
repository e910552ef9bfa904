"""Recurrent layers, unrolled over time: the equations that all front ends share.

A layer computes the products with all inputs of a sequence at once, then one step after another:

    RNN     h' = f(W x + b + U h + c)
    GRU     r, z = f(...), f(...)    n = g(W_n x + b_n + r (U_n h + c_n))    h' = n + z (h - n)
    LSTM    i, f, o = f(...)         c' = f c + i g(...)                     h' = o k(c')

Every operation of a step is done at a named place, which is the same in all steps: `insert-quantizers` and
`unify-scales` give one place one grid.

Source: Hochreiter and Schmidhuber 1997 (LSTM); Cho et al. 2014, arXiv:1406.1078 (GRU); the forms are those of the
documentation of torch.nn.LSTM and torch.nn.GRU and of the ONNX operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

__all__ = ["GATES", "MOST_STEPS", "STATES", "Arithmetic", "Cell", "Weights", "run"]

T = TypeVar("T")
"""A tensor of the model while it is captured."""
W = TypeVar("W")
W_contra = TypeVar("W_contra", contravariant=True)
"""A weight."""

MOST_STEPS = 512
"""Steps of a recurrent layer that is unrolled."""

GATES = {"RNN": ("h",), "GRU": ("r", "z", "n"), "LSTM": ("i", "f", "g", "o")}
"""Gates in the order of torch's weights."""
STATES = ("hidden", "cell")
"""Places of the states that a step takes and gives."""


class Arithmetic(Protocol[T, W_contra]):
    """Operations of a front end.

    `place` names the operation in a step. An operation that only moves elements has the place of its operand.
    """

    def linear(self, x: T, weight: W_contra, bias: W_contra | None, place: str) -> T:
        """X W^T + b over the last axis."""

    def add(self, x: T, y: T, place: str) -> T:
        """Sum."""

    def sub(self, x: T, y: T, place: str) -> T:
        """Difference."""

    def mul(self, x: T, y: T | W_contra, place: str) -> T:
        """Product of elements, with broadcasting."""

    def complement(self, x: T, place: str) -> T:
        """1 - x."""

    def apply(self, function: str, x: T, place: str) -> T:
        """A function of each element: `tanh`, `sigmoid`, `relu`, or another name of the front end."""

    def pieces(self, x: T, count: int, place: str) -> list[T]:
        """Equal parts along the last axis."""

    def at(self, x: T, axis: int, index: int, place: str) -> T:
        """A part of size 1 along an axis, without this axis."""

    def stack(self, items: Sequence[T], axis: int, place: str) -> T:
        """Tensors along a new axis."""


@dataclass(frozen=True)
class Weights(Generic[W]):
    """Weights of one direction of a layer.

    Args:
        inputs: [gates * hidden, features].
        hidden: [gates * hidden, outputs].
        bias: [gates * hidden], added to the product with the input.
        hidden_bias: [gates * hidden], added to the product with the state.
        projection: [outputs, hidden]; LSTM only.
        late: [hidden, hidden] and [hidden] of the new state of a GRU that resets the state before the product.
        peepholes: Weights of the cell state, [hidden] by gate; LSTM only.
    """

    inputs: W
    hidden: W
    bias: W | None = None
    hidden_bias: W | None = None
    projection: W | None = None
    late: tuple[W, W | None] | None = None
    peepholes: dict[str, W] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell(Generic[T, W]):
    """One direction of a recurrent layer.

    Args:
        kind: `RNN`, `GRU` or `LSTM`.
        arithmetic: Operations.
        weights: The weights.
        functions: Functions of the gates: one for an RNN; gates and new state for a GRU; gates, new part and output
            for an LSTM.
        gates: Names of the gates in the order of the weights.
        coupled: Whether the forget gate of an LSTM is 1 - i.
        name: Prefix of the places.
    """

    kind: str
    arithmetic: Arithmetic[T, W]
    weights: Weights[W]
    functions: Sequence[str]
    gates: Sequence[str]
    coupled: bool = False
    name: str = ""

    def products(self, x: T) -> T:
        """The products with the inputs of all steps or of one."""
        return self.arithmetic.linear(x, self.weights.inputs, self.weights.bias, self.place("from_input"))

    def step(self, product: T, state: Sequence[T]) -> list[T]:
        """The states after a step.

        Args:
            product: `products` of the input of the step, [batch, gates * hidden].
            state: Hidden state [batch, outputs], and the cell state [batch, hidden] of an LSTM.
        """
        steps: dict[str, Callable[[T, Sequence[T]], list[T]]] = {"RNN": self._rnn, "GRU": self._gru, "LSTM": self._lstm}
        return steps[self.kind](product, state)

    def place(self, part: str) -> str:
        """The name of a place."""
        return f"{self.name}.{part}"

    def _products_of_state(self, h: T) -> T:
        return self.arithmetic.linear(h, self.weights.hidden, self.weights.hidden_bias, self.place("from_hidden"))

    def _apply(self, number: int, x: T, part: str) -> T:
        return self.arithmetic.apply(self.functions[number], x, self.place(part))

    def _named(self, x: T, part: str) -> dict[str, T]:
        return dict(zip(self.gates, self.arithmetic.pieces(x, len(self.gates), self.place(part)), strict=True))

    def _rnn(self, product: T, state: Sequence[T]) -> list[T]:
        total = self.arithmetic.add(product, self._products_of_state(state[0]), self.place("sum"))
        return [self._apply(0, total, "hidden")]

    def _gru(self, product: T, state: Sequence[T]) -> list[T]:
        do, (h,) = self.arithmetic, state
        a = self._named(product, "from_input")
        b = self._named(self._products_of_state(h), "from_hidden")
        reset, update = (
            self._apply(0, do.add(a[gate], b[gate], self.place(f"{gate}.sum")), gate) for gate in ("r", "z")
        )
        if self.weights.late is None:
            inner = do.mul(reset, b["n"], self.place("n.reset"))
        else:
            inner = do.linear(do.mul(reset, h, self.place("n.reset")), *self.weights.late, self.place("n.product"))
        new = self._apply(1, do.add(a["n"], inner, self.place("n.sum")), "n")
        change = do.mul(update, do.sub(h, new, self.place("difference")), self.place("kept"))
        return [do.add(new, change, self.place("hidden"))]

    def _lstm(self, product: T, state: Sequence[T]) -> list[T]:
        do, (h, c) = self.arithmetic, state
        parts = self._named(do.add(product, self._products_of_state(h), self.place("sum")), "sum")
        for gate in ("i", "f"):
            parts[gate] = self._peep(parts[gate], c, gate)
        i, new = self._apply(0, parts["i"], "i"), self._apply(1, parts["g"], "g")
        forget = do.complement(i, self.place("f")) if self.coupled else self._apply(0, parts["f"], "f")
        kept = do.mul(forget, c, self.place("kept"))
        c = do.add(kept, do.mul(i, new, self.place("added")), self.place("cell"))
        out = self._apply(0, self._peep(parts["o"], c, "o"), "o")
        seen = self._apply(2, c, "cell.function")
        if self.weights.projection is None:
            return [do.mul(out, seen, self.place("hidden")), c]
        h = do.mul(out, seen, self.place("output"))
        return [do.linear(h, self.weights.projection, None, self.place("hidden")), c]

    def _peep(self, gate: T, c: T, name: str) -> T:
        """A gate that also sees the cell state."""
        if name not in self.weights.peepholes:
            return gate
        seen = self.arithmetic.mul(c, self.weights.peepholes[name], self.place(f"{name}.peephole"))
        return self.arithmetic.add(gate, seen, self.place(f"{name}.peeped"))


def run(cell: Cell[T, W], x: T, state: Sequence[T], steps: int, axis: int, *, reverse: bool) -> tuple[T, list[T]]:
    """A sequence through one direction of a layer.

    Args:
        cell: The direction.
        x: The sequence, [..., features].
        state: The states before the first step.
        steps: Length of the sequence.
        axis: Axis of time.
        reverse: Whether the last element comes first.

    Returns:
        The hidden states along the axis of time, in the order of the input, and the last states.
    """
    products = cell.products(x)
    now, found = list(state), dict[int, T]()
    for step in range(steps - 1, -1, -1) if reverse else range(steps):
        now = cell.step(cell.arithmetic.at(products, axis, step, cell.place("from_input")), now)
        found[step] = now[0]
    return cell.arithmetic.stack([found[step] for step in range(steps)], axis, cell.place("hidden")), now
