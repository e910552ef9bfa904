"""A model of a kind of its own: what implements `Source` is captured and compiled as modules of torch are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import CaptureError, UnsupportedError
from qcompiler.frontends import Source, capture, source_of
from qcompiler.frontends.examples import Binding
from qcompiler.frontends.source import Call, Candidate
from qcompiler.ir.diagnostics import note
from qcompiler.ir.text import parse_module

RIGHT = """graph @main stage=float {{
  input %x : f32[N, 4]
  bound N {low} {high}
  %w = parameter() {{ref = "w", dtype = "f32", shape = (3, 4)}} : f32[3, 4]
  %a = linear(%x, %w) : f32[N, 3] loc("first", "")
  %b = relu(%a) : f32[N, 3] loc("second", "")
  return %b
}}
"""
WRONG = RIGHT.replace("relu", "tanh")
WEIGHT = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Reference(nn.Module):
    """The computation of the model."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ WEIGHT.T)


class Text(Source):
    """A model whose graph is text; each text is one attempt, None an operator that is missing."""

    name = "text"
    bounds = (1, 64)

    def __init__(self, *texts: str | None) -> None:
        self.texts = texts

    def signature(self) -> inspect.Signature:
        return inspect.signature(Reference().forward)

    def example(self) -> object | None:
        return torch.ones(2, 4)

    def place(self, binding: Binding, device: torch.device | str | None) -> torch.device:
        return torch.device("cpu")

    def reference(self, device: torch.device) -> nn.Module:
        return Reference()

    def graphs(self, reference: nn.Module, call: Call) -> Iterator[Callable[[], Candidate]]:
        def graph(text: str | None) -> Candidate:
            if text is None:
                raise UnsupportedError("'frobnicate' has no operator")
            low, high = call.bounds
            module = parse_module(text.format(low=low, high=high), {"w": WEIGHT})
            module.main.input_tree, module.main.input_names = call.binding.tree, call.binding.labels
            return Candidate(module, "given", [note("Read from text.")])

        for text in self.texts:
            yield lambda text=text: graph(text)  # type: ignore[misc]  # mypy knows no lambda with a default


def test_the_graph_of_a_source_is_compared_and_compiled() -> None:
    source = Text(RIGHT)
    assert source_of(source) is source
    found = capture(source)
    assert found.diagnostics == [note("Read from text.")]
    assert found.module.main.bounds["N"] == (1, 64)
    compiled = qcompiler.compile(source, calibration_data=[torch.randn(8, 4)])
    assert compiled.verification is not None
    assert compiled.verification.passed
    assert "c/text.h" in compiled.artifact.forms["C"].files


def test_a_source_is_trained_with_quantization() -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    module = qcompiler.prepare_qat(Text(RIGHT), calibration_data=[x])
    assert module.diagnostics == (note("Read from text."),)
    before = module.state_dict()["w"].clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    module(x).square().sum().backward()
    optimizer.step()
    module.step()
    assert not torch.equal(module.state_dict()["w"], before)
    compiled = qcompiler.compile(module)
    assert compiled.verification is not None and compiled.verification.passed
    assert torch.equal(compiled.run(x), module.eval()(x))  # type: ignore[arg-type]
    assert "c/text.h" in compiled.artifact.forms["C"].files


def test_a_graph_that_differs_is_refused() -> None:
    with pytest.raises(CaptureError, match="the captured graph and the model differ"):
        capture(Text(WRONG), torch.randn(2, 4))


def test_the_next_graph_is_tried_where_an_operator_is_missing() -> None:
    assert len(capture(Text(None, RIGHT)).module.main) == 3
    for attempts in ((None,), (None, None), (None, WRONG)):
        with pytest.raises(UnsupportedError, match="frobnicate"):
            capture(Text(*attempts))
