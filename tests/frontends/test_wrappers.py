"""Wrappers that do not change the computation are removed, with a diagnostic."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from qcompiler.frontends import capture
from qcompiler.frontends.wrappers import unwrap
from tests.support.functions import numbers


@pytest.mark.parametrize(
    ("wrap", "name"),
    [(DataParallel, "DataParallel"), (AveragedModel, "AveragedModel"), (torch.compile, "torch.compile")],
)
def test_the_wrapped_model_is_found(wrap: type[nn.Module], name: str) -> None:
    layer = nn.Linear(3, 2).eval()
    found, notes = unwrap(wrap(layer))
    assert isinstance(found, nn.Linear)
    assert torch.equal(found.weight, layer.weight)
    assert [*map(str, notes)] == [f"{name} is removed: the wrapped model, a Linear, is compiled."]


def test_wrappers_in_wrappers_are_removed_from_the_outside_in() -> None:
    found, notes = unwrap(torch.compile(DataParallel(nn.Linear(3, 2))))
    assert isinstance(found, nn.Linear)
    assert [note.data["wrapper"] for note in notes] == ["torch.compile", "DataParallel"]


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), "a path", None])
def test_anything_else_stays(model: object) -> None:
    assert unwrap(model) == (model, [])


def test_a_capture_tells_what_was_removed() -> None:
    found = capture(DataParallel(nn.Linear(3, 2)).eval(), numbers(2, 3))
    assert [*map(str, found.diagnostics)] == ["DataParallel is removed: the wrapped model, a Linear, is compiled."]
    assert {*found.module.tensors} == {"weight", "bias"}
