"""Example inputs are bound to the forward, or found on the model."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import InputError
from qcompiler.frontends import capture, find_example_inputs
from qcompiler.frontends.examples import Binding, bind_example
from tests.support.functions import numbers


def forward(x: Tensor, pair: object = None, *rest: Tensor, scale: Tensor | None = None, **more: Tensor) -> None:
    """Parameters of every kind."""


def single(batch: dict[str, Tensor]) -> None: ...


A, B = numbers(2, 3), numbers(2, 4)


def binding(example: object, function: object = forward) -> Binding:
    return bind_example(inspect.signature(function), example)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("example", "labels", "names"),
    [
        (A, ["x"], ["x"]),
        ((A, B), ["x", "pair"], ["x", "pair"]),
        ([A, {"left": B, "right": [A]}], ["x", "pair"], ["x", "pair.left", "pair.right.0"]),
        ((A, B, A, B), ["x", "pair", "*rest"], ["x", "pair", "rest.0", "rest.1"]),
        ({"x": A, "scale": B}, ["x", "scale"], ["x", "scale"]),
        ({"x": A, "extra": B}, ["x", "**more"], ["x", "more.extra"]),
    ],
)
def test_inputs_are_bound_as_python_binds_arguments(example: object, labels: list[str], names: list[str]) -> None:
    found = binding(example)
    assert found.labels == labels
    assert found.tensor_names() == names
    assert found.batch == 2


def test_a_dict_of_other_names_is_the_single_argument() -> None:
    assert binding({"image": A}, single).tensor_names() == ["batch.image"]
    assert binding({"batch": {"image": A}}, single).tensor_names() == ["batch.image"]


def test_samples_are_repeated_or_cut_to_another_batch() -> None:
    found = binding((numbers(3, 2), torch.ones(5), torch.tensor(1.0)))
    for batch in (1, 2, 7):
        x, other, number = found.resized(batch)
        assert torch.equal(x, numbers(3, 2)[torch.arange(batch) % 3])
        assert torch.equal(other, torch.ones(5))
        assert number.dim() == 0


def test_a_call_gets_copies() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.zero_()

    model, x = Writes(), numbers(2, 3)
    bind_example(inspect.signature(model.forward), x).call(model, [x])
    assert torch.equal(x, numbers(2, 3))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            (),
            r"the example inputs do not fit the model's forward: missing a required argument: 'x'; expected forward\(x",
        ),
        ({"pair": A}, "missing a required argument: 'x'"),
        ("images", "the example inputs are a str"),
        (A.numpy(), "the example inputs are a ndarray.*torch.as_tensor"),
        ((A, "text"), "str.*Give other arguments a default in forward"),
        ((None,), r"the example inputs contain no tensor; expected forward\("),
        ((A, A.to(torch.complex64)), r"the element type torch.complex64 \(at argument 'pair'\)"),
        (A.to_sparse(), r"is a torch.sparse_coo tensor \(at argument 'x'\); expected a dense tensor with values"),
        (A.to("meta"), "is a meta tensor"),
        (torch.ones(0, 3), r"an example input is empty: \[0, 3\] \(at argument 'x'\); expected at least one sample"),
        (A / 0, r"contains NaN or infinity \(at argument 'x'\)"),
    ],
)
def test_what_cannot_be_an_input_is_named_with_its_argument(example: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        binding(example)


class Config:
    num_channels, image_size = 3, 6


@pytest.mark.parametrize(
    ("attribute", "value", "shape"),
    [
        ("example_input_array", numbers(4, 3, 6, 6), (4, 3, 6, 6)),
        ("default_cfg", {"input_size": (3, 6, 6)}, (2, 3, 6, 6)),
        ("pretrained_cfg", {"input_size": (3, 6, 6)}, (2, 3, 6, 6)),
        ("input_size", (3, 6, 6), (2, 3, 6, 6)),
        ("input_shape", [3, 6, 6], (2, 3, 6, 6)),
        ("config", Config(), (2, 3, 6, 6)),
    ],
)
def test_the_input_is_found_on_the_model(attribute: str, value: object, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    setattr(model, attribute, value)
    example = find_example_inputs(model)
    assert isinstance(example, Tensor)
    assert tuple(example.shape) == shape
    assert capture(model).module.main.inputs[0].type.shape[1:] == (3, 6, 6)


@pytest.mark.parametrize("value", [(3, -6, 6), "3x6", (), 7])
def test_what_is_no_size_is_not_taken_for_one(value: object) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    model.input_size = value  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"there are no example inputs.*one of these attributes.*Pass example_inputs="):
        find_example_inputs(model)


def test_inputs_made_from_a_size_are_always_the_same_and_leave_the_random_state() -> None:
    model = nn.Sequential(nn.Linear(5, 2).double())
    model.input_size = (5,)  # type: ignore[assignment]
    state = torch.random.get_rng_state()
    first, second = find_example_inputs(model), find_example_inputs(model)
    assert isinstance(first, Tensor)
    assert first.dtype == torch.float64
    assert torch.equal(first, second)  # type: ignore[arg-type]
    assert torch.equal(torch.random.get_rng_state(), state)
