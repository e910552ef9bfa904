"""Recurrent layers from capture to C: unrolled, with one grid for each place in a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import UnsupportedError
from qcompiler.frontends import rules_recurrent
from tests.frontends.onnx.files import graph_of, model_of

STEPS, FEATURES, HIDDEN = 5, 6, 8
INTEGER_FORMS = ("integer graph", "integer program", "C")


class Tagger(nn.Module):
    """A layer and a linear layer after each step: [N, T, 6], states [N, 8] -> [N, T, 4], states."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.head = getattr(nn, kind)(FEATURES, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        y, last = self.layer(x, h[None] if c is None else (h[None], c[None]))
        return (self.head(y), *(part[0] for part in (last if isinstance(last, tuple) else (last,))))


def tagger(kind: str, steps: int = STEPS, samples: int = 16) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model, a sequence and first states of zeros."""
    torch.manual_seed(0)
    states = [torch.zeros(samples, HIDDEN) for _ in range(2 if kind == "LSTM" else 1)]
    return Tagger(kind).eval(), (torch.randn(samples, steps, FEATURES), *states)


def signal_to_noise(found: Tensor, wanted: Tensor) -> float:
    """Decibels."""
    return float(10 * torch.log10(wanted.square().mean() / (found - wanted).square().mean()))


def results(compiled: qcompiler.Compiled, *inputs: Tensor) -> tuple[Tensor, ...]:
    found = compiled.run(*inputs)
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize(
    ("kind", "target", "least"),
    [
        ("LSTM", "int8_dsp", 27.0),
        ("LSTM", "cmsis_nn", 27.0),
        ("LSTM", "int16x8", 40.0),
        ("GRU", "ort_cpu", 27.0),
        ("GRU", "cmsis_nn", 27.0),
        ("GRU", "pow2_mcu", 24.0),
        ("RNN", "tflite_int8", 27.0),
    ],
)
def test_all_forms_agree(kind: str, target: str, least: float) -> None:
    model, inputs = tagger(kind)
    compiled = qcompiler.compile(model, target, calibration_data=[inputs])
    assert compiled.verification is not None and compiled.verification.passed
    assert {compiled.verification.form(form).status for form in INTEGER_FORMS} == {"equal"}
    assert not compiled.artifact.islands
    with torch.no_grad():
        wanted = model(*inputs)
    ratios = [signal_to_noise(*pair) for pair in zip(results(compiled, *inputs), wanted, strict=True)]
    assert min(ratios) > least, ratios


class Odd(nn.Module):
    """Layers as networks use them: stacked, in both directions, of the last step, in a loop, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(FEATURES, 4, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)
        self.decoder = nn.LSTM(8, HIDDEN, proj_size=3, bias=False)
        self.cell = nn.RNNCell(3, 3, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.encoder(x)
        y, (h, _) = self.decoder(y.transpose(0, 1))
        state = h[-1]
        for part in y.unbind(0):
            state = self.cell(part, state)
        return torch.cat([state, y[-1]], 1)


def test_forms_of_networks() -> None:
    torch.manual_seed(0)
    model, x = Odd().eval(), torch.randn(16, 3, FEATURES)
    compiled = qcompiler.compile(model, "cmsis_nn", calibration_data=[x])
    assert compiled.verification is not None and compiled.verification.passed
    assert {compiled.verification.form(form).status for form in INTEGER_FORMS} == {"equal"}
    result = compiled.run(x)
    assert isinstance(result, Tensor)
    with torch.no_grad():
        assert signal_to_noise(result, model(x)) > 24


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_the_grids_and_weights_are_those_of_any_number_of_steps(kind: str) -> None:
    counts = []
    for steps in (3, 7):
        model, inputs = tagger(kind, steps)
        compiled = qcompiler.compile(model, "int8_dsp_per_channel", calibration_data=[inputs], verify="off")
        nodes = [node for node in compiled.quantized.main.nodes if node.op == "fake_quantize"]
        grids = {node.inputs[1] for node in nodes}
        roles = [item.role for item in compiled.artifact.program.program.constants.values()]
        counts.append((len(grids), *map(roles.count, ("weight", "bias", "multiplier", "table"))))
    assert counts[0] == counts[1]
    assert counts[0][1:3] == (3, 3), "weights and biases of the input, of the state and of the head, each once"


@pytest.mark.parametrize("target", ["int8_dsp", "cmsis_nn"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_stream_has_the_bits_of_the_whole_sequence(kind: str, target: str, tmp_path: Path) -> None:
    model, inputs = tagger(kind)
    x, *states = inputs
    whole = qcompiler.compile(model, target, calibration_data=[inputs], verify="off")
    (tmp_path / "encodings.json").write_text(whole.encodings())
    one = qcompiler.compile(
        model,
        target,
        example_inputs=(x[:, :1], *states),
        encodings=tmp_path / "encodings.json",
        unmatched_encodings="ignore",
    )
    assert one.verification is not None and one.verification.passed
    program = one.artifact.program.program
    taken, returned = ([program.tensors[name] for name in names[1:]] for names in (program.inputs, program.outputs))
    assert [(item.scale, item.zero_point) for item in taken] == [(item.scale, item.zero_point) for item in returned]
    wanted, *last = results(whole, *inputs)
    found, state = [], list(states)
    for step in range(STEPS):
        y, *state = results(one, x[:, step : step + 1], *state)
        found.append(y)
    assert torch.equal(torch.cat(found, 1), wanted)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state, last, strict=True))


class Loop(nn.Module):
    """A layer, or a cell, called for one step after another: [N, T, 6], [N, 8] -> [N, 8]."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        options = {} if kind == "GRUCell" else {"batch_first": True}
        self.inner, self.kind = getattr(nn, kind)(FEATURES, HIDDEN, **options), kind

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        for part in x.unbind(1):
            h = self.inner(part, h) if self.kind == "GRUCell" else self.inner(part[:, None], h[None])[1][0]
        return h


@pytest.mark.parametrize("kind", ["GRU", "GRUCell"])
def test_a_loop_of_python_has_the_grids_of_one_step(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, h = Loop(kind).eval(), torch.randn(16, 3, FEATURES), torch.zeros(16, HIDDEN)
    whole = qcompiler.compile(model, "int8_dsp", calibration_data=[(x, h)])
    (tmp_path / "encodings.json").write_text(whole.encodings())
    one = qcompiler.compile(
        model,
        "int8_dsp",
        example_inputs=(x[:, :1], h),
        encodings=tmp_path / "encodings.json",
        unmatched_encodings="ignore",
        verify="off",
    )
    state: object = h
    for step in range(3):
        assert isinstance(state, Tensor)
        state = one.run(x[:, step : step + 1], state)
    wanted = whole.run(x, h)
    assert isinstance(state, Tensor) and isinstance(wanted, Tensor)
    assert torch.equal(state, wanted)
    roles = [item.role for item in whole.artifact.program.program.constants.values()]
    assert (roles.count("weight"), roles.count("table")) == (2, 3)


def onnx_layer(kind: str, layer: nn.RNNBase) -> ModelProto:
    """A file with the weights of torch's layer: [N, T, 6] -> [N, T, 8]."""
    orders = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}  # torch has ifgo and rzn, ONNX iofc and zrh
    parts: dict[str, np.ndarray] = {}
    for name, of_torch in (("w", "weight_ih_l0"), ("r", "weight_hh_l0"), ("b", "bias_ih_l0"), ("c", "bias_hh_l0")):
        rows = getattr(layer, of_torch).detach().chunk(len(orders[kind]))
        parts[name] = torch.cat([rows[index] for index in orders[kind]])[None].numpy()
    weights = {"w": parts["w"], "r": parts["r"], "b": np.concatenate([parts["b"], parts["c"]], 1)}
    options: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(kind, ["t", "w", "r", "b"], ["s"], hidden_size=HIDDEN, **options),
        helper.make_node("Squeeze", ["s", "axis"], ["u"]),
        helper.make_node("Transpose", ["u"], ["y"], perm=[1, 0, 2]),
    ]
    return model_of(graph_of(nodes, {"x": ["N", STEPS, FEATURES]}, ["y"], {**weights, "axis": np.array([1])}))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_layer_of_an_onnx_file_has_the_codes_of_torch(kind: str) -> None:
    torch.manual_seed(0)
    layer, x = getattr(nn, kind)(FEATURES, HIDDEN).eval(), torch.randn(16, STEPS, FEATURES)

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x.transpose(0, 1))[0]
            return y.transpose(0, 1)

    subjects: list[nn.Module | ModelProto] = [Sequence().eval(), onnx_layer(kind, layer)]
    found = [qcompiler.compile(subject, "cmsis_nn", calibration_data=[x]).run(x) for subject in subjects]
    assert isinstance(found[0], Tensor) and isinstance(found[1], Tensor)
    assert torch.equal(found[0], found[1])


def test_training_falls_through_the_steps() -> None:
    """The gradient reaches the weights of every gate, and a few steps of Adam lower the loss."""
    model, (x, h) = tagger("GRU", samples=64)
    target = qcompiler.load_target("int8_dsp").override(weight_bits=4)
    trained = qcompiler.prepare_qat(model, target, calibration_data=[(x, h)])
    wanted = torch.tanh(x.cumsum(1)[..., :4])
    optimizer = torch.optim.Adam(trained.parameters(), 1e-2)
    losses: list[float] = []
    for _ in range(30):
        loss = (trained(x, h)[0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            rows = [p.grad.abs().amax(1) for p in trained.parameters() if p.grad is not None and p.dim() == 2]
            assert len(rows) == 3 and all(bool((part > 0).all()) for part in rows)
        optimizer.step()
        trained.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0], losses
    compiled = qcompiler.compile(trained)
    assert compiled.verification is not None and compiled.verification.passed


class Sequences(nn.Module):
    """A layer on its input, time first or second."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.layer = nn.GRU(FEATURES, 3, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)[0]
        return y


@pytest.mark.parametrize(
    ("batch_first", "sizes", "message"),
    [
        (False, (4, 5, FEATURES), r"gru over a length that depends on the batch size.*batch_first=True"),
        (True, (2, 9, FEATURES), r"gru over 9 steps, of which at most 8 are unrolled.*takes and returns"),
    ],
)
def test_refused(batch_first: bool, sizes: Sequence[int], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_recurrent, "MOST_STEPS", 8)
    with pytest.raises(UnsupportedError, match=message):
        qcompiler.compile(Sequences(batch_first=batch_first).eval(), calibration_data=[torch.randn(*sizes)])
