"""Recurrent layers and cells of torch are unrolled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from qcompiler.errors import UnsupportedError
from qcompiler.frontends import capture, rules_recurrent
from tests.support.spellings import RuleTests, Spelling

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # torch.export of torch's layers


def layer(kind: str, **options: object) -> Spelling:
    """A layer on an image as a sequence of four steps with four features: all its results."""
    torch.manual_seed(0)
    module = getattr(nn, kind)(4, 3, **{"batch_first": True, **options})

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> object:
            return self.inner(x[:, :, :, 0])

    return Layer()


def cell(kind: str, *, given: bool, **options: object) -> Spelling:
    """Two steps of a cell."""
    torch.manual_seed(0)
    module = getattr(nn, kind)(4, 4, **options)

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> object:
            first: Tensor | tuple[Tensor, Tensor] | None = None
            if given:
                first = (x[:, 2, :, 0], x[:, 2, :, 1]) if kind == "LSTMCell" else x[:, 2, :, 0]
            return self.inner(x[:, 1, :, 0], self.inner(x[:, 0, :, 0], first))

    return Steps()


SPELLED: dict[str, Spelling] = {
    "lstm": layer("LSTM"),
    "gru": layer("GRU"),
    "rnn_tanh": layer("RNN"),
    "rnn_relu": layer("RNN", nonlinearity="relu"),
    "lstm_cell": cell("LSTMCell", given=True),
    "gru_cell": cell("GRUCell", given=True),
    "rnn_tanh_cell": cell("RNNCell", given=True),
    "rnn_relu_cell": cell("RNNCell", given=True, nonlinearity="relu"),
}


SAME: dict[str, list[Spelling]] = {
    "an LSTM by both tracers": [layer("LSTM", bidirectional=True)],
    "a GRU by both tracers": [layer("GRU", num_layers=2)],
}

REFUSED: dict[str, tuple[Spelling, str]] = {
    "time where the batch is": (layer("GRU", batch_first=False), "over a length that depends on the batch size"),
}


class TestRules(RuleTests):
    file, spelled, same, refused = rules_recurrent, SPELLED, SAME, REFUSED


class Given(nn.Module):
    """A layer with given states, time first."""

    def __init__(self, kind: str, **options: object) -> None:
        super().__init__()
        self.inner = getattr(nn, kind)(6, 5, **options)
        self.kind = kind

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> object:
        states = [part.transpose(0, 1) for part in (h, c)]
        return self.inner(x.transpose(0, 1), tuple(states) if self.kind == "LSTM" else states[0])


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "two layers in both directions": {"num_layers": 2, "bidirectional": True},
    "without biases": {"bias": False},
    "dropout that rests": {"num_layers": 2, "dropout": 0.5},
}
PROJECTED: dict[str, dict[str, object]] = {
    "projected": {"proj_size": 3},
    "projected in both directions": {"proj_size": 3, "bidirectional": True, "num_layers": 2},
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("LSTM", "GRU", "RNN") for name in (*OPTIONS, *(PROJECTED if kind == "LSTM" else ()))],
)
@pytest.mark.parametrize("route", ["fx", "export"])
def test_options(kind: str, name: str, route: str) -> None:
    """Capture compares the results with those of torch, at two batch sizes."""
    torch.manual_seed(0)
    options = {**OPTIONS, **PROJECTED}[name]
    model = Given(kind, **options).eval()
    count = int(str(options.get("num_layers", 1))) * (2 if options.get("bidirectional") else 1)
    inputs = (
        torch.randn(2, 3, 6),
        torch.randn(2, count, int(str(options.get("proj_size", 5)))),
        torch.randn(2, count, 5),
    )
    subject: nn.Module | torch.export.ExportedProgram = model
    if route == "export":
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        subject = torch.export.export(model, inputs, dynamic_shapes=(batch, batch, batch))
    nodes = capture(subject, inputs).module.main.nodes
    assert all(node.op != "custom" for node in nodes)


def test_one_sequence_without_a_batch() -> None:
    torch.manual_seed(0)

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.GRU(6, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.inner(x)[0])

    nodes = capture(Rows().eval(), torch.randn(2, 3, 6)).module.main.nodes
    assert sum(node.op == "linear" for node in nodes) == 1 + 3


def test_a_packed_sequence_is_refused() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.GRU(6, 5, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            last: Tensor = self.inner(packed)[1][-1]
            return last

    with pytest.raises(UnsupportedError, match=r"packs sequences .*Packed\.forward.* Pass padded sequences"):
        capture(Packed().eval(), (torch.randn(2, 3, 6), torch.tensor([3, 1])))
