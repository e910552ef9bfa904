"""Failing models become small, and stay of their kind."""

from __future__ import annotations

import pytest

from tests.fuzz import shrink as shrinking
from tests.fuzz.oracle import Outcome, Verdict
from tests.fuzz.programs import Case, Program, Statement

PROGRAM = Program(
    3,
    {"x0": "torch.rand(4, 6, 9, 9) * 100", "x1": "torch.randn(4, 6, 1, 1)"},
    (
        ("conv1", "self.conv1 = nn.Conv2d(6, 6, 3, padding=1, groups=2)"),
        ("conv1", "self.conv1.weight.data.mul_(1e-3)"),
        ("conv2", "self.conv2 = nn.Conv2d(6, 5, 1)"),
    ),
    (
        Statement(("v1",), "self.conv1(x0)"),
        Statement(("v2", "v3"), "torch.chunk(v1, 2, 2)"),
        Statement(("v4",), "F.max_pool2d(v2, 2, ceil_mode=True)"),
        Statement(("v5",), "v1 + x1"),
        Statement(("v6",), "self.conv2(v5)"),
        Statement(("v7",), "F.relu(v6.sigmoid())"),
    ),
    '{"a": v7, "b": (v4, [v1])}',
)
CASE = Case(PROGRAM, "ort_cpu", "default", {"conv2": 16}, fallback=True)


def fails_with(word: str) -> Verdict:
    return Verdict(Outcome.INTERNAL, "GraphError", f"it holds {word}")


@pytest.mark.parametrize("word", ["sigmoid", "ceil_mode", "self.conv1(", "chunk", "mul_(1e-3)", "+"])
def test_what_does_not_matter_goes(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(case: Case) -> Verdict:
        return fails_with(word) if word in case.program.source() else Verdict(Outcome.OK)

    monkeypatch.setattr(shrinking, "judge", judged)
    found = shrinking.shrink(CASE, fails_with(word), seconds=30)
    assert judged(found) == fails_with(word)
    assert found.program.built.is_finite()
    assert len(found.program.statements) == 1
    assert len(found.program.made) <= 2
    assert (found.effort, found.overrides, found.fallback, found.program.batches) == ("fast", {}, False, 1)
    assert all(x.numel() <= 24 for x in found.program.built.data[0])
    assert len(found.source().splitlines()) <= 22


def test_another_failure_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(case: Case) -> Verdict:
        return fails_with("all") if case == CASE else Verdict(Outcome.UNTYPED, "KeyError", "'v1'")

    monkeypatch.setattr(shrinking, "judge", judged)
    assert shrinking.shrink(CASE, fails_with("all"), seconds=30) == CASE
