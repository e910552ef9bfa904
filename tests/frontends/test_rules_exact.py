"""Integers and booleans that a model computes become exact operators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qcompiler.frontends import capture, rules_exact
from tests.support.running import outputs_of
from tests.support.spellings import RuleTests, Spelled, Spelling, image, model_of

SPELLED: dict[str, Spelling] = {
    "eq": lambda x, m: x == 0.5,
    "ne": lambda x, m: x != 0.5,
    "not_equal": lambda x, m: torch.not_equal(x, 0.5),
    "lt": lambda x, m: x < 0.5,
    "less": lambda x, m: torch.less(x, 0.5),
    "le": lambda x, m: x <= 0.5,
    "less_equal": lambda x, m: torch.less_equal(x, 0.5),
    "gt": lambda x, m: x > 0.5,
    "greater": lambda x, m: torch.greater(x, 0.5),
    "ge": lambda x, m: x >= 0.5,
    "greater_equal": lambda x, m: torch.greater_equal(x, 0.5),
    "logical_and": lambda x, m: torch.logical_and(x > 0, x < 1),
    "logical_or": lambda x, m: torch.logical_or(x, x < 1),
    "logical_xor": lambda x, m: torch.logical_xor(x > 0, x < 1),
    "bitwise_and": lambda x, m: torch.bitwise_and(x > 0, x < 1),
    "bitwise_or": lambda x, m: torch.bitwise_or(x > 0, x < 1),
    "bitwise_xor": lambda x, m: torch.bitwise_xor(x > 0, x < 1),
    "and": lambda x, m: (x > 0) & (x < 1),
    "or": lambda x, m: (x > 0) | (x < 1),
    "xor": lambda x, m: (x > 0) ^ (x < 1),
    "logical_not": lambda x, m: torch.logical_not(x > 0),
    "bitwise_not": lambda x, m: torch.bitwise_not((x > 0).long()),
    "invert": lambda x, m: ~(x > 0),
    "cumsum": lambda x, m: torch.cumsum(x > 0, 1),
    "to": lambda x, m: (x > 0).to(torch.int32),
    "type": lambda x, m: (x > 0).type(torch.int64),
    "type_as": lambda x, m: (x > 0).type_as(x),
    "float": lambda x, m: (x > 0).float(),
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "cpu": lambda x: x.cpu(),
    "to_copy": lambda x, m: torch.ops.aten._to_copy.default(x),
    "long": lambda x, m: (x > 0).long(),
    "int": lambda x, m: (x > 0).int(),
    "bool": lambda x, m: x.bool(),
    "embedding": lambda x, m: F.embedding((x[:, 0, 0] > 0).long(), m.kernel.flatten(1)),
}


def _row_by_aten(x: Tensor, m: Spelled) -> Tensor:
    ids = (x[:, 0, 0] > 0).long()
    rows: Tensor = torch.ops.aten.embedding(m.kernel.flatten(1), ids)
    return rows


SAME: dict[str, list[Spelling]] = {
    "a comparison": [lambda x, m: x > 0.5, lambda x, m: torch.gt(x, 0.5), lambda x, m: x.greater(0.5)],
    "both": [
        lambda x, m: (x > 0) & (x < 1),
        lambda x, m: torch.logical_and(x > 0, x < 1),
        lambda x, m: (x > 0).bitwise_and(x < 1),
    ],
    "a row": [
        lambda x, m: F.embedding((x[:, 0, 0] > 0).long(), m.kernel.flatten(1)),
        _row_by_aten,
    ],
}

REFUSED: dict[str, tuple[Spelling, str]] = {
    "sums of real numbers": (lambda x, m: torch.cumsum(x, 1), "cumsum of real numbers"),
    "bits": (lambda x, m: (x > 0).long() & 3, "and of the bits of integers"),
}


UNREACHED = {
    "ior": "or",
    "iand": "and",
    "ixor": "xor",
    "inv": "invert",
    "cuda": "to",
}


class TestRules(RuleTests):
    file, spelled, same, refused = rules_exact, SPELLED, SAME, REFUSED
    unreached = UNREACHED


def test_integers_of_two_types_are_compared_in_the_wider() -> None:
    model = model_of(lambda x, m: (x > 0).int() < (x < 1).long())
    graph = capture(model, image()).module.main
    (comparison,) = [node for node in graph.nodes if node.op == "exact"]
    assert [str(value.type.dtype) for value in comparison.inputs] == ["i64", "i64"]
    assert torch.equal(outputs_of(graph, [image()])[0], model(image()))
