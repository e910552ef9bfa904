"""Runs of a trace: what each call gave, what it wrote to, and which numbers come from values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler.errors import CaptureError
from qcompiler.frontends import capture
from qcompiler.frontends.fx import trace
from qcompiler.frontends.trace import (
    PATH,
    SOURCE,
    Overlap,
    Recorder,
    Result,
    Shares,
    containers_of,
    location,
    named_leaves,
    record,
)
from tests.support.functions import Function, bound, numbers
from tests.support.running import outputs_of


def recorded(function: Callable[..., object]) -> Recorder:
    model = Function(function).eval()
    binding = bound(model, numbers(2, 4))
    return record(trace(model, binding.bound), binding.bound)


def test_results_have_shape_and_type() -> None:
    run = recorded(lambda x: (x > 0, torch.ones_like(x, dtype=torch.int32).sum(), x.shape[1]))
    results = [item for item in run.results.values() if isinstance(item, Result)]
    assert [(item.shape, item.dtype) for item in results if item.dtype != torch.float32] == [
        ((2, 4), torch.bool), ((2, 4), torch.int32), ((), torch.int64),
    ]  # fmt: skip
    assert 4 in run.results.values()


def test_what_depends_on_no_input_is_kept() -> None:
    run = recorded(lambda x: x + torch.zeros(x.shape[1]))
    kept = [item.constant for item in run.results.values() if isinstance(item, Result) and item.constant is not None]
    assert [item.tolist() for item in kept] == [[0.0] * 4]


@pytest.mark.parametrize(
    ("function", "reads"),
    [
        (lambda x: x * x.max().item(), {"item"}),
        (lambda x: x * x.dim() * x.size(1), set()),
        (lambda x: x * (x.max().item() + 1), {"item", "add"}),
    ],
)
def test_numbers_read_from_values_are_noted(function: Callable[..., object], reads: set[str]) -> None:
    assert recorded(function).reads == reads


def test_a_write_is_noted_with_all_that_shares_its_memory() -> None:
    def written(x: Tensor) -> tuple[Tensor, ...]:
        y = x * 1
        whole, row, other = y.view(-1, 4), y[0], x + 1
        y.relu_()
        return y, whole, row, other

    write = recorded(written).writes["relu_"]
    assert write.target.name == "mul"
    assert write.constant is None
    shares = {node.name: kind for node, kind in write.shares.items() if node.name != "relu_"}
    row = Overlap(place=(range(4),), source=(range(1), range(4)), shapes=((4,), (2, 4)))
    assert shares == {"mul": Shares.ALL, "view": Shares.ALL, "getitem": row}


def test_elements_in_another_order_share_some_memory() -> None:
    def written(x: Tensor) -> tuple[Tensor, ...]:
        y = x * 1
        turned, diagonal = y.t(), y.diagonal()
        y.relu_()
        return y, turned, diagonal

    shares = {node.name: kind for node, kind in recorded(written).writes["relu_"].shares.items()}
    assert shares["t"] is shares["diagonal"] is Shares.SOME


def test_a_trace_that_fails_names_the_call() -> None:
    model = Function(lambda x: x @ torch.ones(4, 3)).eval()
    found = trace(model, bound(model, numbers(2, 4)).bound)
    words = r"the traced model does not run on the inputs of the model: .*mat1 and mat2.* \(at .*<lambda>:\d+: `.*`\)"
    with pytest.raises(CaptureError, match=words):
        record(found, bound(model, numbers(2, 5)).bound)


def test_leaves_are_one_per_tensor() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
    model.tied = model[1]
    kinds = {leaf.ref: leaf.kind for leaf in named_leaves(model).values()}
    assert kinds == {
        "0.weight": "parameter", "0.bias": "parameter", "1.weight": "parameter", "1.bias": "parameter",
        "0.running_mean": "state", "0.running_var": "state", "0.num_batches_tracked": "state",
    }  # fmt: skip
    assert containers_of(nn.Sequential(model)) == {"", "0"}
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()
    found = trace(model, bound(model, numbers(2, 4)).bound)
    extra = torch.ones(2)
    assert found.leaf(extra) is found.leaf(extra)
    assert found.leaf(extra).kind == "constant"
    with pytest.raises(CaptureError, match=r"the graph reads the attribute '0.eps', a float .*; expected a tensor"):
        found.attribute("0.eps")


def test_other_types_of_a_trace_become_float32() -> None:
    model = nn.Linear(4, 2).double().eval()
    found = trace(model, bound(model, numbers(2, 4)).bound)
    found.as_float32()
    assert {leaf.type.dtype.torch for leaf in found.named.values()} == {torch.float32}


def test_a_place_is_read_from_the_node() -> None:
    node = fx.Graph().placeholder("x")
    node.meta = {PATH: "a.b", SOURCE: "net:f:3"}
    assert (location(node).path, location(node).source) == ("a.b", "net:f:3")
    node.meta = {}
    assert str(location(node)) == ""


class Mapped(nn.Module):
    """A mask from positions under `torch.vmap`, as transformers makes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        mask = torch.vmap(lambda a: a >= place)(place)
        return torch.where(mask, x, torch.zeros(()))


def test_a_mask_from_a_vmap_is_a_constant() -> None:
    """Tensors within the map cannot be read after it, but its result can."""
    model, x = Mapped().eval(), torch.randn(2, 6, 6)
    module = capture(model, x).module
    assert torch.equal(outputs_of(module.main, [x])[0], model(x))
