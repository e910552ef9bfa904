"""The equations of recurrent layers, computed by torch at once, against torch's layers and loops over elements."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qcompiler.frontends.recurrent import GATES, STATES, Arithmetic, Cell, Weights, run

Functions = dict[str, Callable[[Tensor], Tensor]]
FUNCTIONS: Functions = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}
OF_KIND = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}


class Eager(Arithmetic[Tensor, Tensor]):
    """Computes at once, and counts the operations of each place."""

    def __init__(self) -> None:
        self.places: Counter[tuple[str, str]] = Counter()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, place: str) -> Tensor:
        self.places["linear", place] += 1
        return F.linear(x, weight, bias)

    def add(self, x: Tensor, y: Tensor, place: str) -> Tensor:
        self.places["add", place] += 1
        return x + y

    def sub(self, x: Tensor, y: Tensor, place: str) -> Tensor:
        self.places["sub", place] += 1
        return x - y

    def mul(self, x: Tensor, y: Tensor, place: str) -> Tensor:
        self.places["mul", place] += 1
        return x * y

    def complement(self, x: Tensor, place: str) -> Tensor:
        self.places["complement", place] += 1
        return 1 - x

    def apply(self, function: str, x: Tensor, place: str) -> Tensor:
        self.places[function, place] += 1
        return FUNCTIONS[function](x)

    def pieces(self, x: Tensor, count: int, place: str) -> list[Tensor]:
        assert any(place == known for _, known in self.places), "the place of an operation before it"
        return list(x.chunk(count, -1))

    def at(self, x: Tensor, axis: int, index: int, place: str) -> Tensor:
        return x.select(axis, index)

    def stack(self, items: Sequence[Tensor], axis: int, place: str) -> Tensor:
        return torch.stack(list(items), axis)


def cell_of(layer: nn.RNNBase, suffix: str = "") -> Cell[Tensor, Tensor]:
    """The first layer of torch in one direction."""
    held = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    inputs, hidden = (held[f"weight_{name}_l0{suffix}"] for name in ("ih", "hh"))
    bias, hidden_bias, projection = (held.get(f"{name}_l0{suffix}") for name in ("bias_ih", "bias_hh", "weight_hr"))
    weights = Weights(inputs, hidden, bias, hidden_bias, projection)
    kind = layer.mode.partition("_")[0]
    functions = ("relu",) if layer.mode == "RNN_RELU" else OF_KIND[kind]
    return Cell(kind, Eager(), weights, functions, GATES[kind], name="cell")


def states_of(kind: str, outputs: int) -> list[Tensor]:
    sizes = (outputs, 5) if kind == "LSTM" else (outputs,)
    return [torch.randn(2, size) for size in sizes]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu"}),
        ("RNN", {"bias": False}),
        ("GRU", {}),
        ("GRU", {"bias": False}),
        ("LSTM", {}),
        ("LSTM", {"proj_size": 3}),
    ],
)
def test_a_sequence_is_that_of_torch(kind: str, options: dict[str, object], reverse: bool) -> None:
    torch.manual_seed(0)
    layer = getattr(nn, kind)(4, 5, batch_first=True, bidirectional=True, **options)
    suffix, way = ("_reverse", 1) if reverse else ("", 0)
    outputs = int(str(options.get("proj_size", 5)))
    x, first = torch.randn(2, 6, 4), states_of(kind, outputs)
    given = [torch.stack([part] * 2) for part in first]
    with torch.no_grad():
        whole, ends = layer(x, tuple(given) if kind == "LSTM" else given[0])
        found, last = run(cell_of(layer, suffix), x, first, 6, 1, reverse=reverse)
    torch.testing.assert_close(found, whole[..., way * outputs : (way + 1) * outputs])
    for ours, theirs in zip(last, ends if kind == "LSTM" else [ends], strict=True):
        torch.testing.assert_close(ours, theirs[way])


@pytest.mark.parametrize("kind", OF_KIND)
def test_the_places_are_those_of_one_step(kind: str) -> None:
    """Ten steps have the places of one, each ten times; the product with the inputs is one for all steps."""
    torch.manual_seed(0)
    layer = getattr(nn, kind)(4, 5, batch_first=True)
    counts = {}
    for steps in (1, 10):
        cell = cell_of(layer)
        run(cell, torch.randn(2, steps, 4), states_of(kind, 5), steps, 1, reverse=False)
        assert isinstance(cell.arithmetic, Eager)
        counts[steps] = cell.arithmetic.places
    product = ("linear", "cell.from_input")
    assert counts[10] == {key: count if key == product else 10 * count for key, count in counts[1].items()}
    assert max(counts[1].values()) == 1, "two operations of a step have two places"
    assert {place for _, place in counts[1]} >= {f"cell.{part}" for part in STATES[: 2 if kind == "LSTM" else 1]}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_gru_that_resets_the_state_before_the_product() -> None:
    """The form of the paper, and of ONNX with linear_before_reset=0: loops over elements."""
    torch.manual_seed(0)
    w, u, b, c, x, h = (torch.randn(size).double() for size in ((9, 4), (9, 3), 9, 9, 4, 3))
    rows = slice(6, 9)
    weights = Weights(w, u, b, c, late=(u[rows], c[rows]))
    cell = Cell("GRU", Eager(), weights, OF_KIND["GRU"], ("z", "r", "n"), name="cell")
    (found,) = cell.step(cell.products(x[None]), [h[None]])

    def total(row: int, state: list[float]) -> float:
        products = sum(float(w[row, i] * x[i]) for i in range(4)) + sum(float(u[row, i]) * state[i] for i in range(3))
        return products + float(b[row] + c[row])

    state = h.tolist()
    reset = [sigmoid(total(3 + k, state)) for k in range(3)]
    kept = [reset[k] * state[k] for k in range(3)]
    for k in range(3):
        update, new = sigmoid(total(k, state)), math.tanh(total(6 + k, kept))
        assert float(found[0, k]) == pytest.approx((1 - update) * new + update * state[k], abs=1e-12)


@pytest.mark.parametrize("coupled", [False, True])
def test_an_lstm_whose_gates_see_the_cell_state(coupled: bool) -> None:
    """Input and forget gate see the old cell state, the output gate the new one: loops over elements."""
    torch.manual_seed(0)
    w, u, b, c, x, h, s = (torch.randn(size).double() for size in ((12, 4), (12, 3), 12, 12, 4, 3, 3))
    eyes = {gate: torch.randn(3).double() for gate in ("i", "o", "f")}
    weights = Weights(w, u, b, c, peepholes=eyes)
    cell = Cell("LSTM", Eager(), weights, OF_KIND["LSTM"], ("i", "o", "f", "g"), coupled, "cell")
    hidden, state = cell.step(cell.products(x[None]), [h[None], s[None]])
    totals = (w @ x + b + u @ h + c).tolist()
    for k in range(3):
        i = sigmoid(totals[k] + float(eyes["i"][k] * s[k]))
        forget = 1 - i if coupled else sigmoid(totals[6 + k] + float(eyes["f"][k] * s[k]))
        new = forget * float(s[k]) + i * math.tanh(totals[9 + k])
        out = sigmoid(totals[3 + k] + float(eyes["o"][k]) * new)
        assert float(state[0, k]) == pytest.approx(new, abs=1e-12)
        assert float(hidden[0, k]) == pytest.approx(out * math.tanh(new), abs=1e-12)
