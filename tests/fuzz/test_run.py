"""Random models compile, are refused with their place, or have found a fault: `make fuzz` in short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz.__main__ import deployable, main, show, summary
from tests.fuzz.draw import draw_case, draw_program
from tests.fuzz.oracle import FAILURES, Outcome, judge

TARGETS = deployable()


def passes(seed: int, target: str) -> None:
    case = draw_case(draw_program(seed), target)
    verdict = judge(case)
    assert verdict.outcome not in FAILURES, show(case, verdict, case)


@pytest.mark.parametrize("target", TARGETS)
def test_random_models_compile(target: str) -> None:
    passes(TARGETS.index(target), target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_random_models_compile(target: str) -> None:
    for seed in range(1000, 1040):
        passes(seed, target)


@pytest.fixture
def folder(tmp_path: Path) -> list[str]:
    return ["--seeds", "0:2", "--targets", "int8_dsp,tosa_int", "--output", str(tmp_path)]


def test_finished_pairs_are_not_run_again(
    folder: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*folder, "--minutes", "0"]) == 0
    results = Path(folder[-1]) / "results.jsonl"
    assert not results.read_text(encoding="utf-8"), "without time, no pair is run"
    assert main(folder) == 0
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [(row["seed"], row["target"]) for row in rows] == [(s, t) for s in (0, 1) for t in ("int8_dsp", "tosa_int")]
    monkeypatch.setattr("tests.fuzz.__main__.judge", lambda case: pytest.fail("it is finished"))
    capsys.readouterr()
    assert main(folder) == 0
    assert capsys.readouterr().out == summary(rows) + "\n"


def test_a_failure_is_shown_small_and_recorded(
    folder: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(*arguments: object, **keywords: object) -> object:
        raise KeyError("conv1.weight")

    monkeypatch.setattr("qcompiler.compile", compile_)
    assert main(folder) == 1
    shown = capsys.readouterr().out
    assert shown.count("class Model") == 1, "one model for each cause"
    assert "make fuzz FUZZ='--seeds 0 --targets int8_dsp --again'" in shown
    assert f"    4 {Outcome.UNTYPED}: KeyError: _" in shown
    text = (Path(folder[-1]) / "failure_0_int8_dsp.py").read_text(encoding="utf-8")
    assert text in shown
    assert text.count(" = ") <= 6
