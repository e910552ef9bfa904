"""Bad inputs of seven kinds: each is taken, or refused by one of our errors in one line."""

from __future__ import annotations

import pytest

from tests.support import bad_inputs


@pytest.fixture(scope="module", params=list(bad_inputs.MAKERS))
def kind(request: pytest.FixtureRequest) -> bad_inputs.Kind:
    found = bad_inputs.MAKERS[request.param]()
    bad_inputs.check_bases(found)
    return found


def test_a_few_are_taken_or_refused(kind: bad_inputs.Kind) -> None:
    outcome = bad_inputs.run_kind(kind, 0, range(12))
    assert outcome.failures == []
    assert outcome.counts["refused"] >= 6, "the inputs are bad"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_hundreds_are_taken_or_refused(kind: bad_inputs.Kind, seed: int) -> None:
    outcome = bad_inputs.run_kind(kind, seed, range(150 if kind.name == "ONNX files" else 100))
    assert outcome.failures == []
    assert outcome.counts["loaded"] > 0, "some changes are harmless"
    assert outcome.counts["refused"] >= 50


def test_an_untyped_error_and_two_lines_are_told(kind: bad_inputs.Kind) -> None:
    def use(item: object) -> None:
        raise KeyError("x")

    broken = bad_inputs.Kind(kind.name, kind.bases, kind.draw, use)
    outcome = bad_inputs.run_kind(broken, 0, range(2))
    assert outcome.counts["untyped"] == 2
    assert "KeyError" in outcome.failures[0][1]
