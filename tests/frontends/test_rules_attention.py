"""Softmax, attention and products by letters of torch become operators that compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import qcompiler
from qcompiler.errors import UnsupportedError
from qcompiler.frontends import capture, rules_attention
from tests.support.spellings import RuleTests, Spelling, image, model_of

SPELLED: dict[str, Spelling] = {
    "softmax": lambda x, m: F.softmax(x, 1),
    "log_softmax": lambda x, m: F.log_softmax(x, 1),
    "softmin": lambda x, m: F.softmin(x, dim=-1),
    "scaled_dot_product_attention": lambda x, m: F.scaled_dot_product_attention(x, x * 2, x + 1),
    "baddbmm": lambda x, m: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2], beta=0.5, alpha=2),
    "einsum": lambda x, m: torch.einsum("nhqd,nhkd->nhqk", x, x * 2),
}

SAME: dict[str, list[Spelling]] = {
    "softmax": [
        lambda x, m: F.softmax(x, 1),
        lambda x, m: torch.softmax(x, -3),
        lambda x, m: x.softmax(dim=1),
        lambda x, m: torch.ops.aten._softmax(x, 1, False),
    ],
    "log_softmax": [
        lambda x, m: F.log_softmax(x, 1),
        lambda x, m: torch.log_softmax(x, -3),
        lambda x, m: x.log_softmax(dim=1),
        lambda x, m: torch.ops.aten._log_softmax(x, 1, False),
    ],
    "a product": [lambda x, m: torch.einsum("nhqd, nhdk -> nhqk", x, x), lambda x, m: x @ x],
    "a batched product": [
        lambda x, m: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2], beta=0),
        lambda x, m: torch.bmm(x[:, 1], x[:, 2]),
    ],
}

REFUSED: dict[str, tuple[Spelling, str]] = {
    "a trace": (lambda x, m: torch.einsum("nhqq->nhq", x), "einsum of 'nhqq->nhq'"),
}


class TestRules(RuleTests):
    file, spelled, same, refused = rules_attention, SPELLED, SAME, REFUSED


KEPT = torch.tensor([[True, False, True, True], [True, True, False, False], [False, False, True, True], [True] * 4])

FORMS: dict[str, Spelling] = {
    "three axes": lambda x, m: F.scaled_dot_product_attention(x[:, 0], x[:, 1], x[:, 2]),
    "five axes": lambda x, m: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]),
    "a scale": lambda x, m: F.scaled_dot_product_attention(x, x, x, scale=0.7),
    "causal": lambda x, m: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "booleans": lambda x, m: F.scaled_dot_product_attention(x, x, x, KEPT),
    "numbers": lambda x, m: F.scaled_dot_product_attention(x, x, x, KEPT.float()),
    "grouped queries": lambda x, m: F.scaled_dot_product_attention(torch.cat([x, x * 2], 1), x, x - 1, enable_gqa=True),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_attention_is_decomposed(name: str) -> None:
    captured = capture(model_of(FORMS[name]), image())
    assert {"matmul", "softmax"} <= {node.op for node in captured.module.main.nodes}


def test_letters_of_several_axes_are_one_sum() -> None:
    captured = capture(model_of(lambda x, m: torch.einsum("nchw,nchv->nvw", x, x)), image())
    assert [node.op for node in captured.module.main.nodes if node.op == "matmul"] == ["matmul"]


def test_a_mask_of_compared_real_numbers_is_refused() -> None:
    def attention(x: Tensor, m: object) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, x[..., :1] > 0)

    with pytest.raises(UnsupportedError, match="no integer compare"):
        qcompiler.compile(model_of(attention), "int8_dsp", calibration_data=[image()])


def test_attention_that_drops_weights_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="scaled_dot_product_attention"):
        capture(model_of(lambda x, m: F.scaled_dot_product_attention(x, x, x, None, 0.5)), image())
