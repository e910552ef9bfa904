"""The source of each kind of model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qcompiler.errors import InputError
from qcompiler.frontends.exported import Exported
from qcompiler.frontends.sources import find_example_inputs, source_of
from qcompiler.frontends.torch_module import TorchModule
from tests.support.functions import numbers

LAYER = nn.Linear(3, 2).eval()


def test_each_kind_of_model_has_its_source() -> None:
    assert isinstance(source_of(LAYER), TorchModule)
    assert isinstance(source_of(torch.fx.symbolic_trace(LAYER)), TorchModule)
    program = source_of(torch.export.export(LAYER, (numbers(2, 3),)))
    assert isinstance(program, Exported)
    assert source_of(program) is program


def test_other_things_are_refused() -> None:
    with pytest.raises(InputError, match="the model is a state dict"):
        source_of({"weight": numbers(2)})


def test_example_inputs_are_the_sources_own_or_asked_for() -> None:
    found = find_example_inputs(torch.export.export(LAYER, (numbers(2, 3),)))
    assert isinstance(found, dict)
    assert torch.equal(found["input"], numbers(2, 3))
    with pytest.raises(InputError, match=r"there are no example inputs.*example_input_array.*Pass example_inputs="):
        find_example_inputs(LAYER)
