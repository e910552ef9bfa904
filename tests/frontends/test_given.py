"""Accepted models and devices, and the errors for all others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qcompiler.errors import InputError
from qcompiler.frontends.given import check_kind, parse_device


def held(make: Callable[[nn.Linear], object]) -> nn.Module:
    """A layer after `make` has changed it."""
    layer = nn.Linear(3, 2)
    make(layer)
    return layer


def filled(name: str, value: float) -> Callable[[nn.Linear], object]:
    return lambda layer: getattr(layer, name).data.view(-1)[0].fill_(value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.relu, "is a builtin_function_or_method; .*nn.Module whose forward calls it"),
        (lambda x: x, "is a function; .*nn.Module whose forward calls it"),
        (nn.Linear(3, 2).state_dict(), "is a state dict: a OrderedDict of 2 entries; .*load_state_dict"),
        ({"weight": torch.ones(1)}, "is a state dict: a dict of 1 entries"),
        (nn.Linear, r"is the class Linear; .*Create an instance: Linear\(...\)"),
        (None, "is a NoneType"),
        (nn.LazyLinear(3), "the parameter 'weight' has no shape yet"),
        (nn.Linear(3, 2, device="meta"), "the parameter 'weight' is on the meta device"),
        (nn.Linear(3, 2, dtype=torch.complex64), "the parameter 'weight' has the element type torch.complex64"),
        (
            held(filled("weight", float("nan"))),
            "the parameter 'weight' contains NaN in 1 of 6 elements; expected finite",
        ),
        (held(filled("bias", float("-inf"))), "the parameter 'bias' contains infinity in 1 of 2 elements"),
        (held(lambda m: m.register_buffer("b", torch.tensor([float("nan")]))), "the buffer 'b' contains NaN in 1 of 1"),
        (held(lambda m: m.register_buffer("b", torch.eye(2).to_sparse())), "the buffer 'b' is a torch.sparse_coo"),
    ],
)
def test_other_things_are_named(model: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_kind(model)


def test_a_mask_may_hold_infinities() -> None:
    layer = held(lambda m: m.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1)))
    assert check_kind(layer) is layer


def test_an_exported_program_is_looked_into() -> None:
    layer = held(filled("weight", float("nan"))).eval()
    with pytest.raises(InputError, match="the parameter 'weight' contains NaN"):
        check_kind(torch.export.export(layer, (torch.ones(2, 3),)))


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta", "xpu:1", "nonsense:x"])
def test_an_absent_device_is_named(device: str) -> None:
    with pytest.raises(InputError, match=f"the device is '{device}'.*; expected a device of this machine"):
        parse_device(device)


def test_a_device_has_its_index() -> None:
    assert parse_device("cpu") == torch.device("cpu")
