"""Assignments to parts of tensors are concatenations of what is around the part, by both tracers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qcompiler.errors import QCompilerError, UnsupportedError
from qcompiler.frontends import capture
from qcompiler.ir.interpret import LEAVES
from tests.support.running import outputs_of
from tests.support.spellings import canonical, exported, image, model_of


def halves(x: Tensor) -> Tensor:
    o = torch.zeros_like(x)
    o[:, :2], o[:, 2:] = x[:, 2:], x[:, :2]
    return o


def box(x: Tensor) -> Tensor:
    o = x.new_zeros(x.shape[0], 6, 5, 4)
    o[:, 1:5, :4] = x
    return o


def number(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :, 1:3, 0] = 0.5
    return y


def view_before(x: Tensor) -> tuple[Tensor, Tensor]:
    """A view that was taken before the assignment has the new values too."""
    y = x * 2
    rows = y[:, :, 1]
    y[:, 1:] = x[:, :3]
    return y, rows


def shifted(x: Tensor) -> Tensor:
    """A temporal shift: channels of neighbours in time."""
    y = x.view(-1, 2, 2, 4, 4)
    o = torch.zeros_like(y)
    o[:, :-1, :1] = y[:, 1:, :1]
    o[:, 1:, 1:] = y[:, :-1, 1:]
    return o.view(-1, 4, 4, 4)


def added(x: Tensor) -> Tensor:
    y = x * 1.5
    y[:, 2] += x[:, 0]
    y[:, :1].mul_(3.0)
    return y


def whole(x: Tensor) -> Tensor:
    o = torch.empty(x.shape[0], 4, 4, 4).fill_(1.0)
    o[...] = x
    return o


def interleaved(x: Tensor) -> Tensor:
    o = x.new_empty(x.shape)
    o[:, ::2], o[:, 1::2] = x[:, 2:], x[:, :2]
    return o


def quarters(x: Tensor) -> Tensor:
    """Nothing remains of the memory: each part replaces a box of it."""
    o = torch.empty_like(x)
    o[:, :, :1, :3], o[:, :, :1, 3:], o[:, :, 1:, :2], o[:, :, 1:, 2:] = 0, x[..., :1, :1], x[:, :, 1:, 2:], 0.5
    return o


def one_by_one(x: Tensor) -> Tensor:
    o = torch.empty(x.shape[0], 4, 4, 4)
    for channel in range(4):
        o[:, channel] = x[:, 3 - channel]
    return o


def constant(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:3] = torch.arange(4.0)
    return y


ASSIGNED: dict[str, Callable[[Tensor], object]] = {
    item.__name__: item
    for item in (halves, box, number, view_before, shifted, added, whole, interleaved, quarters, one_by_one, constant)
}


@pytest.mark.parametrize("route", ["fx", "export"])
@pytest.mark.parametrize("name", ASSIGNED)
def test_the_graph_computes_what_torch_does(name: str, route: str) -> None:
    model = model_of(ASSIGNED[name])
    graph = canonical(capture(exported(model) if route == "export" else model, image()).module).main
    assert all(node.op != "custom" for node in graph.nodes)
    x = torch.cat([image(), image().neg().flip(-1)])
    expected = model(x.clone())
    for found, wanted in zip(
        outputs_of(graph, [x]), expected if isinstance(expected, tuple) else [expected], strict=True
    ):
        assert torch.equal(found, wanted)


def test_a_box_of_zeros_is_a_padding() -> None:
    graph = canonical(capture(model_of(box), image()).module).main
    assert {node.op for node in graph.nodes} == {"pad"}


def test_nothing_remains_of_what_assignments_replace() -> None:
    graph = canonical(capture(model_of(one_by_one), image()).module).main
    assert [node.op for node in graph.nodes] == ["slice"] * 4 + ["concat"]
    many = capture(model_of(interleaved_channels), torch.randn(2, 24, 2, 2)).module.main
    live = [node.op for node in canonical(many.module).main.nodes]
    assert live.count("gather") == 1
    assert "pad" not in live


def interleaved_channels(x: Tensor) -> Tensor:
    o = torch.empty_like(x)
    o[:, ::2], o[:, 1::2] = x[:, 12:], x[:, :12]
    return o


def test_memory_that_is_read_and_never_written_is_refused() -> None:
    def half(x: Tensor) -> Tensor:
        o = torch.empty_like(x)
        o[:, :2] = x[:, 2:]
        return o[:, :3]

    with pytest.raises(UnsupportedError, match="empty_like gives memory of which the forward reads a part"):
        capture(model_of(half), image())


def test_what_is_written_is_not_taken_for_a_constant() -> None:
    """The tensor of zeros does not depend on the input before the assignment, but it does after it."""

    def written(x: Tensor) -> Tensor:
        o = torch.zeros(1, 4, 4, 4)
        o[:, :, 0] = x.mean(0, keepdim=True)[:, :, 0]
        return x + (o + 1)

    graph = capture(model_of(written), image()).module.main
    x = torch.cat([image(), image().flip(-1)])
    torch.testing.assert_close(outputs_of(graph, [x])[0], written(x))


def test_single_samples_are_refused() -> None:
    def first(x: Tensor) -> Tensor:
        y = x * 2
        y[0] = x[1]
        return y

    with pytest.raises(QCompilerError, match="memory that another tensor shares"):
        capture(model_of(first), image())


@pytest.mark.parametrize("function", ["where", "masked_fill"])
def test_a_choice_by_the_inputs_is_one_operator(function: str) -> None:
    spelled = (lambda x: torch.where(x > 0, x, 0.0)) if function == "where" else lambda x: x.masked_fill(x > 0, 0.0)
    graph = capture(model_of(spelled), image()).module.main
    assert [node.op for node in graph.nodes if node.op not in LEAVES] == ["compare", "select"]
