"""The steps of the how-to `raise_the_accuracy` lead from each planted illness to keywords that help."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import qcompiler
from qcompiler.analysis.findings import Cause
from tests.analysis.illnesses import CASES, Case, settle

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "raise_the_accuracy.md"
QUICK = ("saturating_sigmoid", "preprocessing")
NOT_BY_KEYWORDS = "untrained_batch_norms"
ILL, LOST = 1.5, 2.0
"""Points that an illness takes at least, and that may be lost in the end: some rounding to eight bits remains."""


@functools.cache
def steps() -> Callable[..., Mapping[str, object]]:
    """The function of the page."""
    text = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"^(def mended\(.*?)(?=^\S)", text, re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {"qcompiler": qcompiler}
    exec(block, scope)  # noqa: S102  # what the page shows
    found: Callable[..., Mapping[str, object]] = scope["mended"]
    return found


def score_with(case: Case, remedy: Mapping[str, object]) -> float:
    keywords: dict[str, Any] = {"target": case.target, "calibration_data": case.data, **case.options, **remedy}
    compiled = qcompiler.compile(case.model, verify="off", **keywords)
    return case.evaluate(compiled.simulate)


def follow(name: str) -> None:
    case = CASES[name]()
    ill = score_with(case, {})
    whole = case.evaluate(case.model)
    assert ill < whole - ILL
    remedy = steps()(case.model, case.target, case.data, case.evaluate, **case.options)
    assert remedy
    mended = score_with(case, remedy)
    assert mended > ill
    assert mended >= whole - LOST


@pytest.mark.parametrize("name", QUICK)
def test_the_steps_of_the_page_mend_an_illness(name: str) -> None:
    follow(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in (*QUICK, NOT_BY_KEYWORDS)])
def test_the_steps_of_the_page_mend_every_illness(name: str) -> None:
    follow(name)


def test_untrained_batch_norms_are_mended_by_statistics_as_the_page_says() -> None:
    case = CASES[NOT_BY_KEYWORDS]()
    found = qcompiler.analyze(case.model, case.target, case.data, case.evaluate)
    assert found.findings[0].cause is Cause.UNTRAINED
    rows = [row for row in PAGE.read_text(encoding="utf-8").splitlines() if f"`{Cause.UNTRAINED}`" in row]
    assert len(rows) == 1
    assert "run some batches in training mode" in rows[0]
    settle(case.model)
    again = qcompiler.analyze(case.model, case.target, case.data, case.evaluate, budget=1)
    assert all(finding.cause is not Cause.UNTRAINED for finding in again.findings)


def test_the_page_begins_with_the_symptom_and_names_every_planted_cause() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "**Symptom:" in text.splitlines()[2]
    table = text[text.index("| symptom |") : text.index("[Analysis]")].lower()
    words = {
        "outlier_in_weights": "outlier channels",
        "outlier_in_activations": "outlier channels",
        "residual_stream": "8-bit residual stream",
        "concat": "concat of unlike ranges",
        "preprocessing": "wrong preprocessing",
        "dead_batch_norm": "dead channels",
        "saturating_sigmoid": "saturating inputs",
        "depthwise": "depthwise layers with one scale",
        "few_bits": "few bits",
        "untrained_batch_norms": "untrained batch norms",
    }
    assert set(words) == set(CASES)
    assert all(word in table for word in words.values())
