"""Other floating-point types become float32 wherever a forward uses them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qcompiler.frontends.precision import Float32, as_float32, convert, dtype_of_class, plain_dtype, types_of
from tests.support.functions import numbers


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.float64, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.int64, torch.int64),
        ("float64", "float64"),
    ],
)
def test_types_are_replaced(given: object, found: object) -> None:
    assert plain_dtype(given) == found


def test_integers_stay() -> None:
    floats, integers = as_float32([numbers(2).double(), torch.arange(3)])
    assert (floats.dtype, integers.dtype) == (torch.float32, torch.int64)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2).double()
        self.scale = nn.Buffer(torch.ones(2, dtype=torch.float16))
        self.plain, self.count = torch.ones(2, dtype=torch.bfloat16), torch.tensor(3)


def test_all_tensors_of_a_module_are_converted() -> None:
    model = Mixed()
    assert types_of(model) == ["bfloat16", "float16", "float64"]
    convert(model)
    assert types_of(model) == []
    assert (model.layer.weight.dtype, model.scale.dtype, model.plain.dtype) == (torch.float32,) * 3
    assert model.count.dtype == torch.int64


ARRAY = np.ones(3)
OUTSIDE = torch.ones(3, dtype=torch.float64)

CALLS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "half": (lambda x: x.half(), "float16"),
    "bfloat16": (lambda x: x.bfloat16(), "bfloat16"),
    "double": (lambda x: x.double(), "float64"),
    "to": (lambda x: x.to(torch.float64), "float64"),
    "to a keyword": (lambda x: x.to(dtype=torch.float16), "float16"),
    "a class": (lambda x: x.type(torch.DoubleTensor), "float64"),  # type: ignore[call-overload]
    "the name of a class": (lambda x: x.type("torch.HalfTensor"), "float16"),
    "a factory": (lambda x: x + torch.zeros(3, dtype=torch.float64), "float64"),
    "a global": (lambda x: x * OUTSIDE, "float64"),
    "an array": (lambda x: x * torch.from_numpy(ARRAY), "float64"),
    "a list": (lambda x: torch.stack([x, OUTSIDE])[0], "float64"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_another_type_leads_to_float32(name: str) -> None:
    call, kind = CALLS[name]
    mode = Float32(torch.device("cpu"))
    with mode:
        result = call(numbers(3))
    assert result.dtype == torch.float32
    assert list(mode.found) == [kind]


def test_other_conversions_are_untouched() -> None:
    mode = Float32(torch.device("cpu"))
    with mode:
        assert numbers(3).to(torch.int32).dtype == torch.int32
        assert numbers(3).type(torch.IntTensor).dtype == torch.int32  # type: ignore[call-overload]
    assert not mode.found


def test_autocast_has_no_effect_and_is_told() -> None:
    mode = Float32(torch.device("cpu"))
    with mode, torch.autocast("cpu", dtype=torch.bfloat16):
        assert (numbers(2, 3) @ numbers(3, 2)).dtype == torch.float32
    assert list(mode.found) == ["mixed precision"]


def test_classes_stand_for_types() -> None:
    assert dtype_of_class(torch.DoubleTensor) == dtype_of_class("torch.DoubleTensor") == torch.float64
    assert dtype_of_class(torch.float16) is torch.float16
    assert dtype_of_class("no such thing") == "no such thing"
