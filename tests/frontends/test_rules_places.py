"""Places of the largest and smallest elements become operators that compute the same, and take the first of equals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompiler.frontends import capture, rules_places
from tests.support.running import outputs_of
from tests.support.spellings import RuleTests, Spelling, image, model_of


def different(x: Tensor) -> Tensor:
    """Numbers of which no two are equal: torch.topk takes any of equal ones."""
    return x + torch.arange(256, device=x.device).reshape(1, 4, 8, 8)[:, :, :4, :4] / 4096


SPELLED: dict[str, Spelling] = {
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: torch.argmin(x, -1, keepdim=True),
    "topk": lambda x: different(x).topk(3, 1).values,
    "gather": lambda x: torch.gather(x, 1, x.argmax(1, keepdim=True)),
    "take_along_dim": lambda x: torch.take_along_dim(x, x.argmin(2, keepdim=True), 2),
}
SAME: dict[str, list[Spelling]] = {
    "place of the largest": [
        lambda x: x.argmax(1),
        lambda x: torch.argmax(x, dim=-3),
        lambda x: x.max(1).indices,
        lambda x: torch.max(x, 1)[1],
        lambda x: torch.argmax(x, 1, keepdim=True).squeeze(1),
    ],
    "place of the smallest": [lambda x: x.argmin(2, True), lambda x: x.min(2, keepdim=True).indices],
    "three largest": [
        lambda x: torch.topk(different(x), 3).indices,
        lambda x: different(x).topk(k=3, dim=-1)[1],
    ],
}
REFUSED: dict[str, tuple[Spelling, str]] = {
    "the largest of everything": (lambda x: x.argmax(), "argmax over the batch"),
    "the largest sample": (lambda x: x.argmin(0), "argmin over the batch"),
    "places of a part": (lambda x: torch.gather(x, 1, x[:, :, :2].argmax(1, keepdim=True)), "gather along axis 1"),
    "constant places": (lambda x: torch.gather(x, 1, torch.zeros(2, 1, 4, 4, dtype=torch.long)), "constant places"),
}


class TestRules(RuleTests):
    file, spelled, same, refused = rules_places, SPELLED, SAME, REFUSED


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_first_of_equal_numbers_comes_first(count: int) -> None:
    graph = capture(model_of(lambda x: different(x).topk(count, 1)), image()).module.main
    node = next(node for node in graph.nodes if node.op == "top_places")
    x = torch.tensor([1.0, 2.0, 2.0, 1.0]).reshape(1, 4, 1, 1).expand(2, 4, 4, 4)
    found = node.definition.evaluate(node, [x])[0]
    assert found[0, :, 0, 0].tolist() == [1, 2, 0, 3][:count]
    assert outputs_of(graph, [image()])[1].dtype is torch.int64
