"""Samples of a captured model: the inputs on which contracts are validated and forms are compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.frontends import capture
from qcompiler.session.source import SAMPLES, samples_of


class Weighted(nn.Module):
    """A layer whose results are multiplied by integers that are a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        y: Tensor = self.layer(x) * counts.to(torch.float32)
        return y


def inputs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, generator=generator), torch.randint(0, 9, (count, 3), generator=generator)


@pytest.mark.parametrize("count", [2, SAMPLES, 7])
def test_inputs_that_are_made_up_are_as_many_as_those_that_cannot_be(count: int) -> None:
    given = inputs(count)
    graph = capture(Weighted().eval(), given).module.main
    x, counts = samples_of(graph, list(given), True, 0)
    assert len(x) == len(counts) == min(count, SAMPLES)
    assert torch.equal(counts, given[1][:SAMPLES]), "integers are never invented"
    assert not torch.equal(x, given[0][: len(x)])
    alike = samples_of(graph, list(given), False, 0)
    assert all(torch.equal(sample, tensor[:SAMPLES]) for sample, tensor in zip(alike, given, strict=True))


def test_real_numbers_alone_are_made_up_for_a_whole_batch() -> None:
    x = torch.randn(2, 4)
    graph = capture(nn.Linear(4, 3).eval(), x).module.main
    (sample,) = samples_of(graph, [x], True, 0)
    assert len(sample) == SAMPLES


def test_two_examples_with_integers_are_enough_without_data() -> None:
    torch.manual_seed(0)
    target = qcompiler.load_target("int8_dsp").override(fallback="float")
    compiled = qcompiler.compile(Weighted().eval(), target, example_inputs=inputs(2))
    assert compiled.verification is not None
    assert compiled.verification.passed
    assert [len(tensor) for tensor in compiled.inputs] == [2, 2]
