"""Normalizations of torch become one operator."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qcompiler.errors import UnsupportedError
from qcompiler.frontends import capture, rules_normalization
from tests.support.spellings import RuleTests, Spelling, image, model_of

ATEN = torch.ops.aten

SPELLED: dict[str, Spelling] = {
    "layer_norm": lambda x, m: F.layer_norm(x, (4,), m.weight, None, 0.01),
    "native_layer_norm": lambda x, m: torch.native_layer_norm(x, [4], m.weight, m.bias, 0.01)[0],
    "group_norm": lambda x, m: F.group_norm(x, 2, m.weight, m.bias, 0.01),
    "native_group_norm": lambda x, m: ATEN.native_group_norm.default(x, m.weight, None, x.shape[0], 4, 16, 1, 0.01)[0],
    "instance_norm": lambda x, m: F.instance_norm(x, weight=m.weight, bias=m.bias, eps=0.01),
    "aten_instance_norm": lambda x, m: torch.instance_norm(x, m.weight, m.bias, None, None, True, 0.1, 0.01, False),
    "rms_norm": lambda x, m: F.rms_norm(x, (4,), m.weight, 0.01),
    "normalize": lambda x, m: F.normalize(x + 0.01, dim=1),
}

SAME: dict[str, list[Spelling]] = {
    "layer_norm": [
        lambda x, m: F.layer_norm(x, (4,), m.weight, m.bias),
        lambda x, m: torch.layer_norm(x, [4], m.weight, m.bias),
        lambda x, m: F.layer_norm(x, x.shape[-1:], m.weight, m.bias, 1e-5),
    ],
    "one group": [
        lambda x, m: F.group_norm(x, 1, m.weight, m.bias),
        lambda x, m: torch.group_norm(x, 1, m.weight, m.bias),
    ],
    "instances": [
        lambda x, m: F.instance_norm(x, None, None, m.weight, m.bias),
        lambda x, m: torch.instance_norm(x, m.weight, m.bias, None, None, True, 0.1, 1e-5, True),
    ],
}

REFUSED: dict[str, tuple[Spelling, str]] = {
    "running statistics": (
        lambda x, m: F.instance_norm(x, m.mean, m.variance, use_input_stats=False),
        "an instance norm with running statistics",
    ),
    "the sum of magnitudes": (lambda x, m: F.normalize(x, 1.0), "normalize with p=1.0"),
}


class TestRules(RuleTests):
    file, spelled, same, refused = rules_normalization, SPELLED, SAME, REFUSED


def test_statistics_of_a_layer_norm_may_not_be_read() -> None:
    with pytest.raises(UnsupportedError, match="statistics of a layer norm"):
        capture(model_of(lambda x, m: torch.native_layer_norm(x, [4], m.weight, m.bias, 1e-5)[1]), image())
