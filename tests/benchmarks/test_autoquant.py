"""The benchmark of searches: its networks, the combinations, what counts as a failure, and the page."""

from __future__ import annotations

from typing import Any

import pytest

import qcompiler
from benchmarks.autoquant import SHORT, WHOLE, Case, cases, combinations, failures, problem, section
from qcompiler.analysis.search_space import ROUNDING


def test_the_residual_network_is_good_in_float_and_poor_in_integers() -> None:
    model, target, batches, score = problem(Case("residual", 8))
    assert score(model) > 0.95
    compiled = qcompiler.compile(model, target, calibration_data=batches, verify="off")
    assert score(compiled.simulate) < 0.6  # type: ignore[arg-type]  # called like a model


def test_the_transformer_is_good_in_float() -> None:
    model, *_, score = problem(Case("vit", 8))
    assert score(model) > 0.9


def test_combinations_are_all_different_and_begin_with_the_dearest() -> None:
    target = qcompiler.load_target("int8_dsp")
    found = list(combinations(target))
    assert len(found) == len(set(map(str, found))) == 4 * 16  # given or per channel, 8 or 16 bits
    assert found[0].hardware.changes == {"per_channel": True, "activation_bits": 16}
    assert ROUNDING in found[0].techniques
    assert found[-1].hardware.changes == {}
    assert len(list(combinations(target.override(weight_bits=4)))) == 8 * 16


def result(**changes: Any) -> dict[str, Any]:
    return {
        "float": 0.99,
        "default": 0.5,
        "score": 0.985,
        "met": True,
        "any": True,
        "evaluations": 5,
        "combinations": 64,
        "name": "given target; smoothing by ranges",
        **changes,
    }


def test_failures_and_the_page() -> None:
    case = Case("residual", 8)
    alike = {"kills": 10, "same": True}
    assert failures({case: result()}, alike) == []
    assert "the search is not" in failures({case: result(met=False)}, alike)[0]
    assert failures({case: result(met=False, any=False)}, None) == []
    assert "33 evaluations" in failures({case: result(evaluations=33)}, None)[0]
    assert "differently" in failures({}, {"kills": 10, "same": False})[0]
    text = section({case: result(), Case("vit", 4): result(met=False, any=False)}, alike)
    assert "| residual | W8A8 | 99.0% | 50.0% | 98.5% | yes | 5 | 64 | given target; smoothing by ranges |" in text
    assert "| no, nor is any combination |" in text
    assert "killed 10 times, ended like one that was not" in text


def test_a_short_run_is_part_of_the_whole_one() -> None:
    assert set(cases(SHORT)) < set(cases(WHOLE))


@pytest.mark.slow
def test_the_search_of_the_transformer_is_within_its_drop() -> None:
    model, target, batches, score = problem(Case("vit", 8))
    assert qcompiler.autoquant(model, target, batches, score, budget=10).met
