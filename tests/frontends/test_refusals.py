"""Every refusal of a call names the place in the user's code and a remedy, and all of a model are told at once."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qcompiler
from qcompiler import frontends
from qcompiler.errors import UnsupportedError
from qcompiler.frontends.builder import Builder
from tests.support.functions import Function

FOLDER = Path(frontends.__file__).parent
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
FLAT = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))

CALLS: dict[str, tuple[Callable[..., object], Tensor]] = {
    "attention that drops": (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=1e-9), X),
    "causal mask over the batch": (
        lambda x: F.scaled_dot_product_attention(x.permute(1, 0), x.permute(1, 0), x.permute(1, 0), is_causal=True),
        FLAT,
    ),
    "mask of the inputs": (lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x[:, :, :, :6] > 0), X),
    "einsum of one": (lambda x: torch.einsum("nchw->nhwc", x), X),
    "outer einsum": (lambda x: torch.einsum("nc,nd->ncd", x, x), FLAT),
    "average to two": (lambda x: F.adaptive_avg_pool1d(x, 2), FLAT[:, None]),
    "along one axis": (lambda x: F.interpolate(x[:, :, 0], scale_factor=1.5, mode="linear"), X),
    "resize by a fraction": (lambda x: F.interpolate(x, scale_factor=1.3, mode="bilinear"), X),
    "sum of integers": (lambda x: x + (x > 0).sum(1, keepdim=True), X),
    "sum over the batch": (lambda x: x + x.sum(0), FLAT),
    "index of the largest": (lambda x: sum(torch.max(x, 1)), X),
    "active dropout": (lambda x: F.dropout(x, 1e-9), X),
    "batch statistics": (lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), training=True), X),
    "clamp by inputs": (lambda x: torch.clamp(x, x.mean(1, keepdim=True)), X),
    "softplus": (lambda x: F.softplus(x, beta=2), X),
    "whole quotients": (lambda x: torch.div(x, 2, rounding_mode="floor"), X),
    "power of a negative number": (lambda x: (-2.0) ** (x * 0).round(), X),
    "power of a tensor": (lambda x: x.abs() ** x, X),
    "where without values": (lambda x: x + torch.where(x > 0)[0].sum(), X),
    "where of the inputs": (lambda x: torch.where(x > 0, x, -x), X),
    "fill of the inputs": (lambda x: x.masked_fill(x > 0, 0.0), X),
    "fill with infinity": (lambda x: x.masked_fill(torch.eye(6, dtype=torch.bool), float("inf")).clamp(max=3), X),
    "other type of view": (lambda x: x.view(torch.int32).float(), X),
    "concat of the batch": (lambda x: torch.cat([x, x], 0), X),
    "padding of the batch": (lambda x: F.pad(x, (0, 0, 1, 0)), FLAT),
    "batch along two axes": (lambda x: x[:, :1] + x[:, 0, :, :1].unsqueeze(0), X),
    "slice of the batch": (lambda x: x + x[-1:], X),
    "one sample": (lambda x: x + x[-1], X),
    "two indices": (lambda x: x[:, [0, 1, 2], :, [2, 1, 0]], X),
    "indices of the inputs": (lambda x: x[:, x[0].sum((1, 2)).argsort()], X),
    "beta": (lambda x: torch.addmm(torch.ones(4), x, torch.eye(4), beta=2), FLAT),
    "index of the batch": (lambda x: x.index_select(0, torch.tensor([0])) + x, X),
    "roll of all": (lambda x: torch.roll(x, 1), X),
    "repeat of the batch": (lambda x: x.mean(0, keepdim=True).repeat(x.shape[0], 1), FLAT),
    "interleaved elements": (lambda x: x.repeat_interleave(2).sum() + x, FLAT),
}
"""Calls that a rule refuses."""


def refused(model: nn.Module, x: Tensor) -> UnsupportedError:
    with pytest.raises(UnsupportedError) as caught:
        qcompiler.compile(model.eval(), "int8_dsp", calibration_data=[x], effort="fast", verify="off")
    return caught.value


@pytest.mark.parametrize("name", CALLS)
def test_a_refused_call_has_its_place_and_the_remedy_of_its_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[UnsupportedError] = []
    plain = Builder.unsupported

    def unsupported(self: Builder, found_: str, fix: str) -> UnsupportedError:
        found.append(plain(self, found_, fix))
        return found[-1]

    monkeypatch.setattr(Builder, "unsupported", unsupported)
    function, x = CALLS[name]
    error = refused(Function(function), x)
    line = function.__code__.co_firstlineno
    places = (f"{__name__}:<lambda>:{line}", "tests.support.functions:Function.forward:")
    assert error.where is not None and any(place in error.where for place in places)
    assert ": `" in str(error), "the line itself"
    for item in found:
        assert item.fix
        assert f"{item.found} (at " in str(error) and str(item.fix) in str(error)


class Several(nn.Module):
    """Four refusals in three modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Function(lambda x: F.softplus(x, beta=2)), Function(lambda x: torch.roll(x, 1))

    def forward(self, x: Tensor) -> Tensor:
        """A sum."""
        y = self.first(x) + torch.div(x, 2, rounding_mode="floor")
        result: Tensor = torch.erfinv(0.9 * torch.tanh(y)) + self.second(y)
        return result


def test_all_refusals_of_a_model_are_told_at_once_each_with_place_and_remedy() -> None:
    text = str(refused(Several(), X))
    for found, place, fix in (
        ("softplus with beta=2 and threshold=20", "first", "Use the defaults, 1 and 20."),
        ("a division with rounding_mode='floor'", f"{__name__}:Several.forward", "Only true division is supported."),
        ("a roll over all elements in row-major order", "second", "Name the axes: torch.roll(x, shifts, dims)."),
    ):
        (line,) = (item for item in text.splitlines() if found in item)
        assert place in line and fix in line
    assert "'erfinv' has no operator" in text
    assert text.count("(at ") == 4


def raised() -> Iterator[tuple[str, ast.Call]]:
    """Errors that are made in the front ends: file with class, and call."""
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield f"{path.name}:{node.lineno} {node.func.id}", node


def test_every_error_of_the_front_ends_has_a_remedy_or_an_expectation_and_refusals_have_a_place() -> None:
    """The remedy of a refused call is a required argument of `Builder.unsupported`."""
    count = 0
    for place, call in raised():
        kind = place.partition(" ")[2]
        if kind not in ("UnsupportedError", "CaptureError", "InputError"):
            continue
        count += 1
        given = {keyword.arg for keyword in call.keywords}
        assert given & {"fix", "expected"}, place
        assert kind == "InputError" or "where" in given, place
    assert count > 40
