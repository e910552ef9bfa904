"""Ranges of logits by cross-entropy: the search against plain loops, the sample of rows, and who gets such a range."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qcompiler
from examples.digits.data import load_data
from examples.digits.model import load_digits_net
from qcompiler.calibration.estimators import cross_entropy
from qcompiler.calibration.observers import CrossEntropyObserver, make_observer
from qcompiler.errors import CalibrationError, InputError
from qcompiler.passes.calibrate_activations import CalibrateActivations
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.quant.affine import fake_quantize, qparams_from_range
from qcompiler.quant.spec import QuantSpec
from qcompiler.session.pipeline import default_pipeline, parse_pipeline


def observer(spec: str = "s8", **options: object) -> CrossEntropyObserver:
    found = make_observer("cross_entropy", QuantSpec.parse(spec), "logits", options=options)
    assert isinstance(found, CrossEntropyObserver)
    return found


def logits(count: int, classes: int, seed: int = 0) -> Tensor:
    """One class wins, as in a trained network."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, classes, generator=generator) * 3
    rows[torch.arange(count), torch.randint(classes, (count,), generator=generator)] += 6
    return rows


@given(
    data=st.lists(st.sampled_from(range(12)), min_size=1, max_size=40),
    kept=st.integers(1, 14),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=100)
def test_order_and_any_split_keep_the_same_rows(data: list[int], kept: int, order: object) -> None:
    """Rows that come again, more of them than are kept, in parts of any size."""
    table = logits(12, 3)
    whole = observer(rows=kept)
    whole.update(table[data])
    order.shuffle(data)  # type: ignore[attr-defined]
    cuts = sorted(order.choices(range(len(data) + 1), k=3))  # type: ignore[attr-defined]
    parts = []
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        part = observer(rows=kept)
        part.update(table[data[start:end]])
        parts.append(part)
    left = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    right = parts[3].merge(parts[2]).merge(parts[0].merge(parts[1]))
    for merged in (left, right):
        assert merged.state().keys() == whole.state().keys()
        assert all(torch.equal(tensor, whole.state()[key]) for key, tensor in merged.state().items())
    assert whole.count == 3 * len(data)
    state = whole.state()
    assert len(state["rows"]) == min(kept, len(set(data)))
    for row, weight in zip(state["rows"], state["weights"], strict=True):
        assert int(weight) == int((table[data] == row).all(1).sum())


def test_the_sample_is_one_of_all_rows() -> None:
    """Neither the first rows nor the smallest: means as those of a random sample of that size."""
    rows = logits(20_000, 5)
    seen = observer(rows=2_000)
    seen.update(rows)
    sample = seen.state()["rows"]
    # Five standard errors; the seed is fixed.
    assert bool(((sample.mean(0) - rows.mean(0)).abs() < 5 * rows.std(0) / 2_000**0.5).all())
    assert float(seen.state()["low"]) == float(rows.min()), "the extremes include all rows"


def loss(rows: Tensor, low: float, high: float, spec: QuantSpec) -> float:
    """Mean H(softmax(v), softmax(v^)), one row and one class after the other."""
    scale, zero_point = qparams_from_range(low, high, spec)
    total = 0.0
    for row, found in zip(rows.tolist(), fake_quantize(rows, scale, zero_point, spec).tolist(), strict=True):
        whole = sum(math.exp(x) for x in row)
        log_sum = math.log(sum(math.exp(x) for x in found))
        total -= sum(math.exp(x) / whole * (y - log_sum) for x, y in zip(row, found, strict=True))
    return total / len(rows)


@pytest.mark.parametrize("text", ["s4", "s4 symmetric", "u4", "s8", "s4 symmetric scale=pow2"])
def test_the_range_is_the_best_of_a_fine_grid(text: str) -> None:
    spec, rows = QuantSpec.parse(text), logits(60, 4)
    low, high = (float(end) for end in cross_entropy(rows, torch.ones(60), rows.amin()[None], rows.amax()[None], spec))
    found = loss(rows, low, high, spec)
    least, most = float(rows.min()), float(rows.max())
    fractions = [i / 12 for i in range(1, 13)]
    pairs = [(a, a) for a in fractions] if spec.symmetric else itertools.product(fractions, fractions)
    best = min(loss(rows, least * a, most * b, spec) for a, b in pairs)
    # The search tries ends 1 % apart around the best of coarse ones, 19 % apart: mostly better than this grid's, which
    # can be better by what lies between two coarse ones. The loss at 4 bits is some 1e-2 above the entropy itself.
    assert found <= best + 2e-3
    assert found <= loss(rows, least, most, spec)


def test_a_row_counts_as_often_as_it_occurs() -> None:
    rows, spec = logits(50, 4), QuantSpec.parse("s4")
    ends = rows.amin()[None], rows.amax()[None]
    often = torch.randint(1, 5, (50,), generator=torch.Generator().manual_seed(1))
    weighted = cross_entropy(rows, often, *ends, spec)
    repeated = cross_entropy(rows.repeat_interleave(often, 0), torch.ones(int(often.sum())), *ends, spec)
    assert torch.equal(torch.stack(weighted), torch.stack(repeated))


def test_small_logits_are_clipped_and_the_winning_ones_are_not() -> None:
    rows = logits(500, 10)
    by_entropy, by_error = observer("s4"), make_observer("mse", QuantSpec.parse("s4"), "logits")
    for item in (by_entropy, by_error):
        item.update(rows)
    assert float(by_entropy.range()[0]) > 0.6 * float(by_error.range()[0]), "the range has less below zero"


def test_pixels_are_rows_wherever_the_classes_are() -> None:
    images = logits(2 * 6 * 5, 4).reshape(2, 6, 5, 4)
    first, last = observer(), observer(class_axis=-1)
    first.update(images.permute(0, 3, 1, 2))
    last.update(images)
    assert torch.equal(first.state()["rows"], last.state()["rows"])
    assert len(first.state()["rows"]) == 60


def test_what_are_no_rows_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \[3\], which is not a shape of logits"):
        observer().update(torch.zeros(3))
    with pytest.raises(InputError, match="rows=0"):
        observer(rows=0)
    with pytest.raises(InputError, match="one range for all classes"):
        make_observer("cross_entropy", QuantSpec.parse("s8"), "x", 1)
    seen, other = observer(), observer()
    seen.update(torch.zeros(2, 3))
    other.update(torch.zeros(2, 4))
    with pytest.raises(CalibrationError, match="had 3 classes and now has 4"):
        seen.merge(other)
    empty = observer()
    empty.update(torch.zeros(0, 3))
    assert empty.count == 0
    with pytest.raises(CalibrationError, match="1 NaN"):
        observer().update(torch.tensor([[0.0, float("nan")]]))
    for make in (CalibrateActivations, CalibrateWeights):
        with pytest.raises(InputError, match="for all tensors"):
            make(method="cross_entropy")
    with pytest.raises(InputError, match="Did you mean 'cross_entropy'"):
        CalibrateActivations(logits="cross_entropie")


def test_a_whole_compile_from_text_on_the_digits() -> None:
    (item,) = parse_pipeline("calibrate-activations{logits=cross_entropy}")
    assert item == CalibrateActivations(logits="cross_entropy")
    assert str(item) == "calibrate-activations{logits=cross_entropy}"
    passes = [item if isinstance(other, CalibrateActivations) else other for other in default_pipeline()]
    data = load_data()
    compiled = qcompiler.compile(
        load_digits_net(), "int8_dsp", calibration_data=[data.calibration_images[:256]], passes=passes
    )
    report = compiled.verify(data.test_images[:32])
    assert [report.form(name).differing for name in ("integer graph", "integer program")] == [0, 0]
