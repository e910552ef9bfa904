"""The model's own results: at which batch sizes it runs, and what it may return."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CaptureError, InputError
from qcompiler.frontends import capture
from qcompiler.frontends.reference import Reference
from tests.support.functions import Function, bound, numbers


def reference(function: Callable[..., object], batch: int = 4, bounds: tuple[int, int] = (1, 64)) -> Reference:
    model = Function(function).eval()
    return Reference(model, bound(model, numbers(batch, 3)), bounds)


def needs(low: int, high: int) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        if not low <= len(x) <= high:
            raise ValueError(f"{len(x)} samples")
        return x * 2

    return function


@pytest.mark.parametrize(
    ("function", "batch", "batches", "bounds"),
    [
        (needs(1, 99), 4, (4, 5), (1, 64)),
        (needs(1, 99), 1, (1, 2), (1, 64)),
        (needs(2, 99), 4, (4, 5), (4, 64)),
        (needs(2, 4), 4, (4, 3), (3, 64)),
        (needs(1, 2), 2, None, (1, 64)),
        (needs(1, 2), 1, None, (1, 64)),
        (needs(4, 4), 4, None, (1, 64)),
    ],
)
def test_two_batch_sizes_and_a_third_are_tried(
    function: Callable[..., object], batch: int, batches: tuple[int, int] | None, bounds: tuple[int, int]
) -> None:
    found = reference(function, batch)
    assert found.batches == batches
    assert found.bounds == bounds


def test_samples_that_fit_another_axis_by_broadcasting_are_no_batch() -> None:
    found = reference(lambda x: x[:, None, :2, None] * x[:, :2], batch=2)
    assert found.batches is None
    assert len(found.results) == 1
    (sentence,) = found.fixed_batch()
    assert re.search(r"fixed to 2: .*must match the size of tensor b \(3\)", str(sentence))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (needs(4, 4), r"fixed to 4: .*\(ValueError: 3 samples\)"),
        (lambda x: x / (1.0 if len(x) == 4 else 0.0), r"it returns NaN or infinity at batch size 3"),
    ],
)
def test_a_fixed_batch_is_told_with_the_reason(function: Callable[..., object], reason: str) -> None:
    (sentence,) = reference(function).fixed_batch()
    assert re.search(reason, str(sentence))
    assert reference(needs(1, 99)).fixed_batch() == []


def test_inputs_without_an_axis_have_no_batch() -> None:
    model = Function(lambda x: x * 2).eval()
    (sentence,) = Reference(model, bound(model, torch.tensor(1.0)), (1, 64)).fixed_batch()
    assert (
        str(sentence)
        == "The batch size is fixed: the model does not run at other batch sizes (no input has a batch axis)."
    )


@dataclasses.dataclass(init=False)
class Wrapped:
    """An object that cannot be made from its fields."""

    value: Tensor

    def __init__(self, x: Tensor) -> None:
        self.value = x


def wrapped(x: Tensor) -> Wrapped:
    return Wrapped(x)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: {"logits": x, "label": "cat"}, CaptureError, r"str.*'label'.*Remove it from the result of forward"),
        (lambda x: None, CaptureError, "the model returns None .*; expected at least one tensor"),
        (lambda x: (1, 2), CaptureError, "the model returns a tuple without tensors"),
        (
            wrapped,
            CaptureError,
            "the model returns a Wrapped that cannot be rebuilt from its fields: TypeError",
        ),
        (lambda x: x / 0, InputError, "first in its own forward"),
        (lambda x: x @ x, InputError, "does not run on the example inputs"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(
    function: Callable[..., object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        reference(function)


class Counting(nn.Module):
    """Returns another result at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def test_a_model_with_a_memory_is_refused() -> None:
    with pytest.raises(CaptureError, match="the model returns different results for the same inputs"):
        capture(Counting().eval(), numbers(2, 3))


class Logs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x * 2


def test_writes_to_buffers_that_no_result_depends_on_are_told() -> None:
    found = capture(Logs().eval(), numbers(2, 3))
    assert "The forward writes to 'seen'; no result depends on the writes, so they are omitted." in map(
        str, found.diagnostics
    )
