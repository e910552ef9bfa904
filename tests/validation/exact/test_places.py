"""Places of codes are those of the real numbers."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import GraphError
from qcompiler.validation.exact import Pending
from tests.support.exact import codes, evaluate, grid


@pytest.mark.parametrize("largest", [True, False])
def test_places_of_codes_are_those_of_their_numbers(largest: bool) -> None:
    x = codes((5, 9), grid(0.02, 7), 1)
    found = evaluate("top_places", x, axis=1, count=4, largest=largest)
    wanted = torch.sort(x.real(), dim=1, descending=largest, stable=True).indices[:, :4]
    assert isinstance(found, torch.Tensor) and torch.equal(found, wanted)


def test_elements_are_taken_with_their_grid() -> None:
    x = codes((5, 9), grid(0.02, 7), 1)
    places = torch.tensor([[3, -1, 12]]).expand(5, 3)
    found = evaluate("take_along", x, places, axis=1)
    assert not isinstance(found, torch.Tensor | Pending)
    assert found.params is x.params
    assert torch.equal(found.codes, x.codes[:, [3, 0, 8]])


def test_an_accumulator_has_no_places_yet() -> None:
    product = evaluate("add", codes((5, 9), grid(0.02, 7), 1), codes((5, 9), grid(0.03, 1), 2))
    assert isinstance(product, Pending)
    with pytest.raises(GraphError, match="top_places reads an accumulator"):
        evaluate("top_places", product, shapes=[(5, 9)], axis=1)
