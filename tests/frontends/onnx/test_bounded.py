"""Files that claim absurd sizes are refused before anything takes memory."""

from __future__ import annotations

import resource
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import NodeProto, helper
from torch import Tensor, nn

import qcompiler
from qcompiler.errors import InputError
from qcompiler.frontends.onnx.bounded import MOST_ELEMENTS, Bounded, TooLargeError, check_sizes
from tests.frontends.onnx.files import graph_of, model_of

MEMORY = 2**28
"""Bytes that a refusal may take."""


def test_the_limit_is_a_number_of_elements() -> None:
    check_sizes([MOST_ELEMENTS], "a tensor", "here")
    check_sizes([0, MOST_ELEMENTS + 1], "a tensor", "here")
    with pytest.raises(TooLargeError, match=r"a tensor has the shape \[2, 268435456\] \(at here\); expected at most"):
        check_sizes([2, MOST_ELEMENTS], "a tensor", "here")


def test_calls_of_any_kind_are_bounded() -> None:
    small = torch.ones(1)
    calls: list[Callable[[], Tensor]] = [
        lambda: torch.full([2**29], 1.0),
        lambda: torch.arange(2**40),
        lambda: torch.ones(2**20, 1) + torch.ones(1, 2**20),
        lambda: torch.ones(2**10).repeat(2**20),
        lambda: nn.functional.pad(torch.ones(1, 1), (2**35, 0)),
    ]
    with Bounded(lambda: "node"):
        assert torch.equal(torch.full([2], 3.0) + torch.arange(2), torch.tensor([3.0, 4.0]))
        assert torch.equal(torch.nonzero(torch.tensor([0, 1])), torch.tensor([[1]])), "its size depends on values"
        assert small.add_(1.0) is small
        assert small.item() == 2.0, "once"
        for call in calls:
            with pytest.raises(TooLargeError, match=r"at node"):
                call()


LARGE = {
    "of a constant": [helper.make_node("Expand", ["one", "sizes"], ["y"])],
    "of a value": [helper.make_node("Tile", ["x", "sizes"], ["y"])],
    "of a shape": [helper.make_node("ConstantOfShape", ["sizes"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])],
    "of a border": [helper.make_node("Pad", ["x", "pads"], ["y"])],
}


@pytest.mark.parametrize("case", LARGE)
def test_operators_that_make_large_tensors_are_refused_by_name(case: str) -> None:
    nodes: list[NodeProto] = LARGE[case]
    tensors: dict[str, npt.ArrayLike] = {
        "one": np.float32(1),
        "sizes": np.array([2**17, 2**12]),
        "pads": np.array([0, 0, 2**20, 2**20]),
    }
    model = model_of(graph_of(nodes, {"x": [1, 3]}, ["y"], tensors))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLargeError, match=nodes[0].op_type):
        qcompiler.compile(model, example_inputs=torch.ones(1, 3))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def test_an_input_of_an_absurd_size_is_not_made_up() -> None:
    model = model_of(graph_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N", 2**20, 2**20]}, ["y"]))
    with pytest.raises(TooLargeError, match="the input 'x' has the shape"):
        qcompiler.compile(model)


def test_a_device_is_no_file() -> None:
    with pytest.raises(InputError, match="is a device; expected a regular file"):
        qcompiler.OnnxModel("/dev/zero")
