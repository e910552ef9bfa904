"""Strokes of a pen, and the figures of recurrent networks that read them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.recurrent import KINDS, ROWS, Figure, Reader, Row, measure, train
from benchmarks.strokes import CLASSES, FEATURES, STEPS, draw


def test_strokes_are_those_of_their_seed_and_of_every_digit() -> None:
    strokes, again, others = draw(300, 1), draw(300, 1), draw(300, 2)
    assert strokes.moves.shape == (300, STEPS, FEATURES)
    assert torch.equal(strokes.moves, again.moves) and torch.equal(strokes.labels, again.labels)
    assert not torch.equal(strokes.labels, others.labels)
    assert set(strokes.labels.tolist()) == set(range(CLASSES))


def test_a_stroke_ends_where_its_digit_does() -> None:
    """The moves of a one go down by about its height, those of a zero come back to where they began."""
    strokes = draw(4000, 3)
    height = {digit: float(strokes.moves[strokes.labels == digit].sum(1)[:, 1].mean()) / 10.0 for digit in (0, 1, 7)}
    assert height[0] == pytest.approx(0.0, abs=0.1)
    assert height[1] == pytest.approx(-0.75, abs=0.15)
    assert height[7] == pytest.approx(-1.0, abs=0.15)


def test_training_is_repeated_and_learns() -> None:
    strokes, others = draw(2000, 1), draw(500, 2)
    first, second = (train("LSTM", strokes, epochs=3) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))
    with torch.no_grad():
        assert float((first(others.moves).argmax(1) == others.labels).double().mean()) > 2.5 / CLASSES


class Answers(Reader):
    """Scores that do not depend on the moves: 9 is the largest."""

    def __init__(self) -> None:
        super().__init__("GRU")
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.arange(CLASSES) / CLASSES)


def test_a_figure_is_that_of_pairs() -> None:
    """A model that answers 9 to everything has the share of nines, and the integers answer alike."""
    test = draw(200, 4)
    found = measure(Answers().eval(), ROWS[0], draw(64, 5).moves, test)
    nines = 100.0 * float((test.labels == 9).double().mean())
    assert found == Figure(pytest.approx(nines), 0.0, 0.0, 100.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_that_differ_are_counted(kind: str) -> None:
    """Weights of two bits change answers of a network that is not trained; the interval holds the difference of all."""
    torch.manual_seed(0)
    test = draw(300, 6)
    row = Row("int8_dsp", 2, "default", 100.0)
    found = measure(Reader(kind).eval(), row, draw(64, 7).moves, test)
    assert 0.0 < found.same < 100.0
    assert found.half > 0.0
    assert 0.0 <= found.accuracy <= 100.0
