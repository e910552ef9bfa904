"""The verdict on a run of the conformance lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conformance import __main__ as program
from conformance import environments
from conformance.lines import Line, Outcome, Tally, run
from conformance.runner import judge, read_required, select

PASSED = Outcome("a", "passed", 10, 0, 1.0)
SKIPPED = Outcome("b", "skipped", notes=("no environment",))


def tally(compared: int, mismatches: int) -> Callable[[], Tally]:
    return lambda: Tally(compared, mismatches)


def broken() -> Tally:
    raise OSError("the emulator is gone")


def test_what_is_required_and_passed_is_good() -> None:
    assert judge([PASSED, SKIPPED], ["a"]).passed


def test_a_required_line_that_there_is_not_is_wrong_for_everybody() -> None:
    for allow_missing in (False, True):
        verdict = judge([PASSED], ["a", "gone"], allow_missing=allow_missing)
        assert verdict.problems == ("gone is required, and there is no such line",)


def test_a_required_line_that_was_skipped_is_wrong_unless_that_is_allowed() -> None:
    assert judge([SKIPPED], ["b"]).problems == ("b is required, and was skipped: no environment",)
    assert judge([SKIPPED], ["b"], allow_missing=True).passed


def test_a_line_that_failed_is_wrong_even_where_nobody_requires_it() -> None:
    failed = Outcome("c", "failed", 10, 1)
    assert not judge([failed], [], allow_missing=True).passed


def test_a_required_line_must_judge() -> None:
    assert not judge([Outcome("a", "measured", 10, 3)], ["a"]).passed


def test_a_line_with_a_mismatch_fails() -> None:
    assert run(Line("a", tally(10, 0))).status == "passed"
    assert run(Line("a", tally(10, 1))).status == "failed"
    assert run(Line("a", tally(10, 1), exact=False)).status == "measured"


@pytest.mark.parametrize("exact", [True, False])
def test_a_line_that_compared_nothing_or_broke_fails(exact: bool) -> None:
    assert run(Line("a", tally(0, 0), exact=exact)).status == "failed"
    outcome = run(Line("a", broken, exact=exact))
    assert (outcome.status, outcome.notes) == ("failed", ("OSError: the emulator is gone",))


def test_a_line_whose_tools_are_missing_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(environments.PACKAGES, "no-such-program", ("a-package",))
    outcome = run(Line("a", broken, ("no-such-program",)))
    assert (outcome.status, outcome.notes) == ("skipped", ("no program no-such-program: apt-get install a-package",))


def test_a_tally_counts_what_differs_and_says_where() -> None:
    found = Tally()
    found.compare("x", np.array([1, 2, 3]), np.array([1, 5, 4]), lambda index: f"number {index}")
    assert (found.compared, found.mismatches) == (3, 2)
    assert found.notes == ["x: 2 differ, first 2 where the oracle has 5 for number 1"]
    found.compare("y", np.zeros(2), np.zeros((2, 1)))
    assert (found.compared, found.mismatches) == (5, 4), "another shape is a mismatch"


def test_patterns_choose_lines() -> None:
    lines = [Line(name, broken) for name in ("c/single/host", "c/single/arm", "onnx/QLinearConv")]
    assert [line.name for line in select(lines, ["c/*/host", "onnx/*"])] == ["c/single/host", "onnx/QLinearConv"]
    assert select(lines, []) == lines


@pytest.fixture
def small_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Three lines, of which two are required: one passes, one has no environment."""
    lines = [Line("good", tally(5, 0)), Line("absent", broken, ("nothing",)), Line("known", tally(5, 2), exact=False)]
    monkeypatch.setitem(environments.PACKAGES, "nothing", ("nothing",))
    monkeypatch.setattr(program, "all_lines", lambda: lines)
    required = tmp_path / "required.toml"
    required.write_text('lines = ["good", "absent"]\n', encoding="utf-8")
    monkeypatch.setattr(program, "REQUIRED", required)
    return required


@pytest.mark.usefixtures("small_program")
def test_the_exit_code_and_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "out" / "report.json"
    assert program.main(["--json", str(report)]) == 1
    assert "PROBLEM  absent is required, and was skipped" in capsys.readouterr().out
    found = json.loads(report.read_text(encoding="utf-8"))
    assert not found["passed"]
    assert [line["status"] for line in found["lines"]] == ["passed", "skipped", "measured"]
    assert [line["mismatches"] for line in found["lines"]] == [0, 0, 2]
    assert program.main(["--allow-missing"]) == 0
    assert program.main(["good"]) == 0, "only the lines that are named are required"
    assert program.main(["absent"]) == 1


def test_a_line_taken_out_of_the_program_fails(small_program: Path) -> None:
    small_program.write_text('lines = ["good", "removed"]\n', encoding="utf-8")
    assert program.main(["--allow-missing"]) == 1


@pytest.mark.usefixtures("small_program")
def test_a_name_that_no_line_has_is_an_error_of_usage() -> None:
    with pytest.raises(SystemExit) as error:
        program.main(["goood"])
    assert error.value.code == 2


def test_required_are_exactly_the_lines_that_judge() -> None:
    lines = program.all_lines()
    assert len({line.name for line in lines}) == len(lines)
    assert read_required(program.REQUIRED) == [line.name for line in lines if line.exact]


def test_every_need_is_known() -> None:
    known = {*environments.ENVIRONMENTS, *environments.PACKAGES}
    assert {need for line in program.all_lines() for need in line.needs} <= known
