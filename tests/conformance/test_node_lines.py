"""The lines of onnx's node tests: what is compared, what is left out, and that a mistake is caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conformance import node_tests
from conformance.lines import run
from conformance.node_tests import NOT_OURS, OPERATORS, WRONG_DATA, lines, load

LINES = {line.name.removeprefix("onnx/"): line for line in lines()}


@pytest.mark.parametrize("operator", OPERATORS)
def test_our_arithmetic_gives_the_expected_data(operator: str) -> None:
    outcome = run(LINES[operator])
    assert outcome.status == "passed", str(outcome)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_mistake_in_one_element_is_caught(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = node_tests._OURS[operator]

    def wrong(inputs: Any, attributes: Any) -> Any:
        found = original(inputs, attributes)
        array = next(iter(found.values()))[0]
        array.reshape(-1)[-1] += 1
        return found

    monkeypatch.setitem(node_tests._OURS, operator, wrong)
    assert run(LINES[operator]).status == "failed"


def test_every_test_is_compared_or_has_a_reason() -> None:
    cases = load()
    assert set(WRONG_DATA) <= set(cases)
    assert set(NOT_OURS) <= set(cases)
    notes = [note for line in LINES.values() for note in line.check().notes]
    for name, reason in NOT_OURS.items():
        assert f"{name}: not run: {reason}" in notes


def test_wrong_data_are_known_by_what_is_wrong_with_them() -> None:
    ours = np.array([41, -128, -9, -128], np.int8)
    assert node_tests._is_wrapped(ours, np.array([41, 20, -9, 117], np.int8))
    assert not node_tests._is_wrapped(ours, ours.copy()), "later versions are correct"
    assert not node_tests._is_wrapped(ours, np.array([41, 20, -8, 117], np.int8)), "another fault is still found"
