"""Token ids, positions and masks that are computed: exact in every form, next to data in integers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.integer import Executor
from qcompiler.errors import UnsupportedError
from qcompiler.targets import Target, load_target
from tests.reference.maker import check as check_against_loops

Function = Callable[[Tensor, Tensor], Tensor]
LOWEST = torch.finfo(torch.float32).min


def ids() -> Tensor:
    """Ids [3, 6] of 20 rows, with paddings of 0 at the end."""
    found = torch.randint(1, 20, (3, 6), generator=torch.Generator().manual_seed(0))
    found[0, 4:] = 0
    found[2, 1:] = 0
    return found


class Exact(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.function(a, b)


INTEGERS: dict[str, Function] = {
    "arithmetic": lambda a, b: (a + b) * 3 - a,
    "broadcasts": lambda a, b: a[:, :, None] - b[:, None, :],
    "comparisons": lambda a, b: ((a < b) | (a >= 7)) & ~(a == b),
    "counts as a number": lambda a, b: (a != b).long() + (a > 3).int(),
    "choice": lambda a, b: torch.where(a > b, a, b - 1),
    "choice of booleans": lambda a, b: torch.where(a > 4, a < b, b > 9),
    "fill": lambda a, b: a.masked_fill(b > 9, -1),
    "cumsum": lambda a, b: torch.cumsum(a.ne(5).int(), 1).type_as(a) * a.ne(5).int(),
    "moves": lambda a, b: torch.cat([a.transpose(0, 1).reshape(-1, 2, 3)[:, :, 1:], b.reshape(-1, 2, 3)], 2),
    "extremes": lambda a, b: torch.maximum(a, b) + torch.minimum(a, b),
    "exclusive": lambda a, b: torch.logical_xor(a > 3, b) ^ (b < 2),
    "negation": lambda a, b: -a + ~b,
    "samples": lambda a, b: torch.arange(6, device=a.device).expand(a.shape[0], 6) + a,
}


@pytest.mark.parametrize("name", [name for name in INTEGERS if name != "moves"])
@given(data=st.data())
@settings(max_examples=2)
def test_integers_are_the_numbers_of_torch_in_every_form(name: str, data: st.DataObject) -> None:
    shape = (2, data.draw(st.integers(1, 2)) * 6) if name != "samples" else (2, 6)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    inputs = [torch.randint(0, 12, shape, generator=generator) for _ in range(2)]
    model = Exact(INTEGERS[name]).eval()
    target = data.draw(st.sampled_from(["int8_dsp", "ort_cpu", "int16x8"]))
    compiled = qcompiler.compile(model, target, example_inputs=tuple(inputs), calibration_data=[tuple(inputs)])
    assert compiled.verification is not None and compiled.verification.passed
    expected = model(*inputs)
    result = compiled.run(*inputs)
    assert isinstance(result, Tensor)
    assert result.dtype is expected.dtype and torch.equal(result, expected)
    check_against_loops(compiled.integer.main, inputs)


class Reader(nn.Module):
    """A text classifier with the masks and positions that `rule` makes: ids [N, 6] -> [N, 4]."""

    def __init__(self, rule: Callable[[Reader, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(9, 16)
        self.query, self.key, self.value, self.head = (nn.Linear(16, size) for size in (16, 16, 16, 4))

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        result: Tensor = nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), mask)
        return result

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.head(self.rule(self, tokens, mask))
        return result


def positions(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0).expand(tokens.shape[0], -1)


def _far(m: Reader, tokens: Tensor, mask: Tensor) -> Tensor:
    return m.attend(m.words(tokens), (1.0 - mask[:, None, :].float()) * LOWEST)


def _inverted(m: Reader, tokens: Tensor, mask: Tensor) -> Tensor:
    inverted = 1.0 - mask[:, None, :].expand(mask.shape[0], 6, 6).to(torch.float32)
    return m.attend(m.words(tokens), inverted.masked_fill(inverted.to(torch.bool), LOWEST))


def _causal(m: Reader, tokens: Tensor, mask: Tensor) -> Tensor:
    kept = torch.tril(torch.ones(6, 6, dtype=torch.bool, device=mask.device)) & (mask[:, None, :] > 0)
    scores = m.query(m.words(tokens)) @ m.key(m.words(tokens)).transpose(1, 2)
    weights: Tensor = torch.softmax(torch.where(kept, scores, torch.tensor(LOWEST)), -1) @ m.value(m.words(tokens))
    return weights


def _two_masks(m: Reader, tokens: Tensor, mask: Tensor) -> Tensor:
    far = torch.full((6, 6), LOWEST).triu(1)
    return m.attend(m.words(tokens), far.masked_fill((mask == 0)[:, None, :], LOWEST))


READERS: dict[str, Callable[[Reader, Tensor, Tensor], Tensor]] = {
    "positions": lambda m, tokens, mask: m.words(tokens) + m.places(positions(tokens)),
    "computed positions": lambda m, tokens, mask: (
        m.words(tokens) + m.places(torch.cumsum(tokens.ne(0).int(), 1) * tokens.ne(0).int() + 1)
    ),
    "boolean mask": lambda m, tokens, mask: m.attend(m.words(tokens), mask.bool()[:, None, :]),
    "far numbers": _far,
    "inverted mask": _inverted,
    "causal mask": _causal,
    "two masks": _two_masks,
    "mask times data": lambda m, tokens, mask: m.words(tokens) * mask[..., None],
    "filled data": lambda m, tokens, mask: m.words(tokens).masked_fill((mask == 0)[..., None], 0.0),
    "choice of data": lambda m, tokens, mask: torch.where(
        (mask == 0)[..., None].expand(-1, -1, 16), m.words(tokens), m.query(m.words(tokens))
    ),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("target", ["int8_dsp_per_channel", "ort_cpu"])
def test_text_models_run_in_integers_throughout(name: str, target: str) -> None:
    torch.manual_seed(0)
    model = Reader(READERS[name]).eval()
    tokens = ids()
    inputs = (tokens, (tokens != 0).long())
    compiled = qcompiler.compile(model, target, example_inputs=inputs, calibration_data=[inputs])
    assert compiled.verification is not None and compiled.verification.passed
    assert not compiled.artifact.islands
    assert compiled.verification.form("C").status == "equal"
    with torch.no_grad():
        expected = model(*inputs)
    result = compiled.run(*inputs)
    assert isinstance(result, Tensor)
    assert float((result - expected).abs().max()) < 0.1 * float(expected.abs().max())
    check_against_loops(compiled.integer.main, list(inputs))


def test_a_computed_mask_stretches_no_range() -> None:
    torch.manual_seed(0)
    tokens = ids()
    inputs = (tokens, (tokens != 0).long())
    compiled = qcompiler.compile(Reader(_far).eval(), "int8_dsp", example_inputs=inputs, calibration_data=[inputs])
    tensors = compiled.artifact.program.program.tensors
    assert all(scale < 1.0 for tensor in tensors.values() for scale in tensor.scale)
    softmax = next(item for item in compiled.artifact.program.program.instructions if item.op == "int_softmax")
    assert tensors[softmax.inputs[2]].dtype == "bool"


def test_an_id_outside_of_the_rows_reads_the_nearest_row() -> None:
    torch.manual_seed(0)
    model = Reader(READERS["positions"]).eval()
    inputs = (ids(), torch.ones(3, 6, dtype=torch.int64))
    compiled = qcompiler.compile(model, "int8_dsp", example_inputs=inputs, calibration_data=[inputs])
    executor = Executor(compiled.artifact.program)
    outside, nearest = (inputs[0].numpy().copy() for _ in range(2))
    outside[0, :2], nearest[0, :2] = (-5, 99), (0, 19)
    found: list[Any] = [executor.run([x, inputs[1].numpy()])[0] for x in (outside, nearest)]
    assert np.array_equal(*found)


def test_numbers_that_are_no_mask_are_refused() -> None:
    inputs = (ids(), ids())
    rules: dict[str, Callable[[Reader, Tensor, Tensor], Tensor]] = {
        "no integer convert": lambda m, tokens, mask: m.words(tokens) * mask[..., None].float(),
        "no integer compare": lambda m, tokens, mask: m.words(tokens).masked_fill(m.words(tokens) > 0, 0.0),
    }
    for words, rule in rules.items():
        with pytest.raises(UnsupportedError, match=re.escape(words)):
            qcompiler.compile(Reader(rule).eval(), "int8_dsp", example_inputs=inputs, calibration_data=[inputs])


def test_a_target_without_rules_for_integers_refuses_them() -> None:
    data = load_target("int8_dsp").descriptor.model_dump(mode="json", by_alias=True)
    data["op"] = [rule for rule in data["op"] if rule["kind"] != "exact"]
    bare = Target.of(data, "bare")
    inputs = (ids(), ids())
    with pytest.raises(UnsupportedError, match="no integer exact"):
        qcompiler.compile(Exact(INTEGERS["arithmetic"]).eval(), bare, example_inputs=inputs, calibration_data=[inputs])
