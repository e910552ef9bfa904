"""Recurrent layers and cells, unrolled; see `frontends.recurrent`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from qcompiler.frontends.builder import Builder, Operand
from qcompiler.frontends.recurrent import GATES, MOST_STEPS, STATES, Arithmetic, Cell, Weights, run
from qcompiler.frontends.table import RULES, rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.graph import Value

FUNCTIONS = {"GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}


class _Operators(Arithmetic[Operand, Operand]):
    """Appends operators.

    Args:
        b: The builder.
    """

    def __init__(self, b: Builder) -> None:
        self.b = b

    @contextlib.contextmanager
    def _at(self, place: str) -> Iterator[None]:
        before = self.b.location
        self.b.location = dataclasses.replace(before, place=place)
        try:
            yield
        finally:
            self.b.location = before

    def _call(self, function: str, *arguments: object, place: str = "") -> Operand:
        with self._at(place):
            result = RULES[function](self.b, *arguments)
        assert not isinstance(result, list)
        return result  # type: ignore[return-value]  # these rules return operands

    def linear(self, x: Operand, weight: Operand, bias: Operand | None, place: str) -> Operand:
        return self._call("linear", x, weight, bias, place=place)

    def add(self, x: Operand, y: Operand, place: str) -> Operand:
        return self._call("add", x, y, place=place)

    def sub(self, x: Operand, y: Operand, place: str) -> Operand:
        return self._call("sub", x, y, place=place)

    def mul(self, x: Operand, y: Operand, place: str) -> Operand:
        return self._call("mul", x, y, place=place)

    def complement(self, x: Operand, place: str) -> Operand:
        return self._call("rsub", x, 1.0, place=place)

    def apply(self, function: str, x: Operand, place: str) -> Operand:
        return self._call(function, x, place=place)

    def pieces(self, x: Operand, count: int, place: str) -> list[Operand]:
        size = x.type.size(x.type.rank - 1) // count
        return [self._call("narrow", x, -1, index * size, size, place=place) for index in range(count)]

    def at(self, x: Operand, axis: int, index: int, place: str) -> Operand:
        return self._call("select", x, axis, index, place=place)

    def stack(self, items: Sequence[Operand], axis: int, place: str) -> Operand:
        return self._call("stack", list(items), axis, place=place)

    def state(self, x: Operand, place: str) -> Operand:
        """A state as the value of its place, which ties the grid of a given state to that of the results."""
        producer = x.producer if isinstance(x, Value) else None
        if producer is not None and producer.location.place == place:
            return x
        with self._at(place):
            return self.b.node("reshape", [x], shape=x.type.shape)

    def cat(self, items: Sequence[Operand], axis: int) -> Operand:
        """Tensors along an axis."""
        return self._call("cat", list(items), axis)


def _states(hx: object) -> list[Operand]:
    """The states that a call is given: one, or those of an LSTM."""
    return cast("list[Operand]", list(hx) if isinstance(hx, list | tuple) else [hx])


def _prefix(b: Builder, weight: Operand) -> str:
    """Prefix of the places of a call. Calls with the same weights are steps of one loop."""
    path = b.location.path
    if not isinstance(weight, Leaf) or not weight.ref:
        return b.graph.unique_name(f"{path or b.function}.steps")
    return f"{path if path and weight.ref.startswith(f'{path}.weight_') else weight.ref}.steps"


def _layer(kind: str, functions: tuple[str, ...]) -> Callable[..., object]:
    """The rule of `aten.lstm.input`, `aten.gru.input` and `aten.rnn_*.input`."""

    def rule(
        b: Builder,
        input: Operand,
        hx: object,
        params: object,
        has_biases: object,
        num_layers: object = None,
        dropout: float = 0.0,
        train: object = False,
        bidirectional: bool = False,
        batch_first: bool | None = None,
    ) -> object:
        assert isinstance(num_layers, int) and batch_first is not None, "capture refuses packed sequences"
        if train and dropout:
            raise b.unsupported(f"{b.function} drops values in a model in eval mode", "Call eval() on the module.")
        states = _states(hx)
        time = 1 if batch_first else 0
        steps = input.type.shape[time]
        if not isinstance(steps, int):
            raise b.unsupported(
                f"{b.function} over a length that depends on the batch size",
                "Make the batch the first axis of the input: batch_first=True, or transpose(0, 1) in the forward.",
            )
        if steps > MOST_STEPS:
            raise b.unsupported(
                f"{b.function} over {steps} steps, of which at most {MOST_STEPS} are unrolled",
                "Compile a model of fewer steps that takes and returns the states, and call it several times.",
            )
        layer = _Layer(
            b, kind, functions, cast("list[Operand]", params), bool(has_biases), num_layers, bool(bidirectional)
        )
        return layer.run(input, states, steps, time)

    return rule


class _Layer:
    """All layers and directions of a call."""

    def __init__(
        self,
        b: Builder,
        kind: str,
        functions: tuple[str, ...],
        params: list[Operand],
        has_biases: bool,
        layers: int,
        bidirectional: bool,
    ) -> None:
        self.b, self.kind, self.functions, self.layers = b, kind, functions, layers
        self.ways = 2 if bidirectional else 1
        self.has_biases, self.params = has_biases, params
        self.each = len(params) // (layers * self.ways)
        self.do = _Operators(b)
        self.name = _prefix(b, params[1])

    def run(self, x: Operand, states: list[Operand], steps: int, time: int) -> list[object]:
        """The output, then the last states [layers * directions, batch, size] each."""
        ends: list[list[Operand]] = []
        for layer in range(self.layers):
            outputs = []
            for way in range(self.ways):
                number = layer * self.ways + way
                cell = self._cell(number)
                first = [self.do.at(s, 0, number, cell.place(part)) for s, part in zip(states, STATES, strict=False)]
                y, last = run(cell, x, first, steps, time, reverse=way == 1)
                outputs.append(y)
                ends.append(last)
            x = outputs[0] if self.ways == 1 else self.do.cat(outputs, 2)
        return [x, *(self.do.stack(list(part), 0, "") for part in zip(*ends, strict=True))]

    def _cell(self, number: int) -> Cell[Operand, Operand]:
        given = self.params[number * self.each : (number + 1) * self.each]
        biases = given[2:4] if self.has_biases else [None, None]
        projection = given[-1] if self.each == (5 if self.has_biases else 3) else None
        weights = Weights(given[0], given[1], biases[0], biases[1], projection)
        return Cell(self.kind, self.do, weights, self.functions, GATES[self.kind], name=f"{self.name}.{number}")


def _one_step(kind: str, functions: tuple[str, ...]) -> Callable[..., object]:
    """The rule of `aten.lstm_cell` and the like."""

    def rule(
        b: Builder,
        input: Operand,
        hx: object,
        w_ih: Operand,
        w_hh: Operand,
        b_ih: Operand | None = None,
        b_hh: Operand | None = None,
    ) -> object:
        do = _Operators(b)
        cell = Cell(kind, do, Weights(w_ih, w_hh, b_ih, b_hh), functions, GATES[kind], name=_prefix(b, w_hh))
        states = [do.state(item, cell.place(part)) for item, part in zip(_states(hx), STATES, strict=False)]
        found = cell.step(cell.products(input), states)
        return found if kind == "LSTM" else found[0]

    return rule


for _kind, _function, _functions in (
    ("LSTM", "lstm", FUNCTIONS["LSTM"]),
    ("GRU", "gru", FUNCTIONS["GRU"]),
    ("RNN", "rnn_tanh", ("tanh",)),
    ("RNN", "rnn_relu", ("relu",)),
):
    rule(_function)(_layer(_kind, _functions))
    rule(f"{_function}_cell")(_one_step(_kind, _functions))
