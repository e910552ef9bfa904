"""Tracing with torch.fx: every call with its module and line, and the model as it was."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CaptureError
from qcompiler.frontends import capture
from qcompiler.frontends.examples import bind_example
from qcompiler.frontends.fx import trace
from qcompiler.frontends.trace import PATH, SOURCE
from tests.support.functions import bound, numbers
from tests.support.running import outputs_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.last: Tensor | None = None

    def forward(self, x: Tensor, scale: float = 2.0, y: Tensor | None = None) -> Tensor:
        self.last = x
        z: Tensor = self.norm(x) * scale if y is None else self.norm(x) * y
        return z


def test_each_call_knows_module_and_line() -> None:
    model = nn.Sequential(Block()).eval()
    found = trace(model, bound(model, numbers(2, 3)).bound)
    places = {
        node.name: (node.meta[PATH], node.meta[SOURCE]) for node in found.graph.nodes if node.op == "call_function"
    }
    line = inspect.getsourcelines(Block.forward)[1] + 2
    assert places["batch_norm"] == ("0.norm", f"{__name__}:Block.forward:{line}")
    assert places["mul"] == ("0", f"{__name__}:Block.forward:{line}")
    assert found.containers == {"", "0"}


def test_the_model_is_as_before() -> None:
    model = Block().eval()
    held = dict(vars(model.norm))
    trace(model, bound(model, numbers(2, 3)).bound)
    assert model.last is None
    assert dict(vars(model.norm)) == held


def test_arguments_that_are_left_out_keep_their_defaults() -> None:
    model, x = Block().eval(), numbers(2, 3)
    alone = bound(model, x).bound
    assert trace(model, alone).bind(alone) == {"x": x, "scale_1": 2.0, "y_1": None}
    both = bind_example(inspect.signature(model.forward), {"x": x, "y": x}).bound
    assert trace(model, both).bind(both) == {"x": x, "scale_1": 2.0, "y": x}


def test_variadic_arguments_are_left_to_the_other_tracer() -> None:
    class Any(nn.Module):
        def forward(self, *parts: Tensor) -> Tensor:
            return parts[0] + parts[1]

    model, x = Any().eval(), numbers(2, 3)
    with pytest.raises(CaptureError, match=r"torch.fx cannot trace a forward with \*args or \*\*kwargs"):
        trace(model, bound(model, x, x).bound)
    captured = capture(model, (x, x * 2))
    assert captured.route == "export"
    assert torch.equal(outputs_of(captured.module.main, [x, x])[0], 2 * x)


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.plain = nn.Buffer(torch.ones(3)), torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table + self.plain


def test_a_buffer_is_no_constant_and_a_tensor_attribute_is() -> None:
    model = Tables().eval()
    found = trace(model, bound(model, numbers(2, 3)).bound)
    attributes = [str(node.target) for node in found.graph.nodes if node.op == "get_attr"]
    assert [found.attribute(name).kind for name in attributes] == ["state", "constant"]
