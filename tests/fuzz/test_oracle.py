"""Which end of a compile is a fault of the compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import qcompiler
from qcompiler import errors
from qcompiler.session.compile import Compiled
from tests.fuzz import oracle
from tests.fuzz.oracle import FAILURES, Outcome, Verdict, judge
from tests.fuzz.programs import Case, Program, Statement

PROGRAM = Program(
    0,
    {"x0": "torch.randn(2, 3, 4, 4)"},
    (("conv1", "self.conv1 = nn.Conv2d(3, 4, 1)"),),
    (Statement(("v1",), "self.conv1(x0)"), Statement(("v2",), "F.relu(v1)")),
    "v2",
)
CASE = Case(PROGRAM, "int8_dsp")


def test_a_plain_model_is_ok() -> None:
    verdict = judge(CASE)
    assert verdict.outcome is Outcome.OK, verdict
    assert verdict.seconds > 0


def test_what_a_target_lacks_is_refused() -> None:
    lines = (Statement(("v1",), "x0.cumsum(1)"),)
    verdict = judge(Case(Program(0, PROGRAM.inputs, (), lines, "v1"), "int8_dsp"))
    assert (verdict.outcome, verdict.error) == (Outcome.REFUSED, "UnsupportedError")
    assert judge(Case(Program(0, PROGRAM.inputs, (), lines, "v1"), "int8_dsp", fallback=True)).outcome is Outcome.OK


RAISED: list[tuple[Exception, Outcome]] = [
    (errors.UnsupportedError("no such operator", where="%3"), Outcome.REFUSED),
    (errors.UnsupportedError("no such operator"), Outcome.INTERNAL),
    (errors.CaptureError("a decision on values", where="m:3"), Outcome.REFUSED),
    (errors.CaptureError("the captured graph and the model differ", where="m:3"), Outcome.FALSE_ALARM),
    (errors.InputError("the override 'conv1' matches no node"), Outcome.REFUSED),
    (errors.InputError("an operand does not fit"), Outcome.INTERNAL),
    (errors.TargetError("int8_dsp has no weights of 16 bits"), Outcome.REFUSED),
    (errors.TargetError("the descriptor has no rule"), Outcome.INTERNAL),
    (errors.CalibrationError("3 NaN among 7"), Outcome.FALSE_ALARM),
    (errors.ContractError("the pass changed output 0 by 0.1"), Outcome.FALSE_ALARM),
    (errors.VerificationError("the forms of the compiled model disagree"), Outcome.FALSE_ALARM),
    (errors.GraphError("%3 is used before it is defined", where="%3"), Outcome.INTERNAL),
    (errors.PassError("%3 has no grid"), Outcome.INTERNAL),
    (errors.ArtifactError("the memory plan overwrites an output"), Outcome.INTERNAL),
    (KeyError("0.weight.q"), Outcome.UNTYPED),
    (AssertionError(), Outcome.UNTYPED),
]


@pytest.mark.parametrize(("error", "outcome"), RAISED, ids=[f"{type(e).__name__}-{o}" for e, o in RAISED])
def test_every_exception_has_a_class(error: Exception, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(*arguments: object, **keywords: object) -> object:
        raise error

    monkeypatch.setattr(qcompiler, "compile", compile_)
    verdict = judge(CASE)
    assert (verdict.outcome, verdict.error) == (outcome, type(error).__name__)
    assert (outcome in FAILURES) == (outcome is not Outcome.REFUSED)


def test_a_warning_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(*arguments: object, **keywords: object) -> object:
        warnings.warn("a division by zero", RuntimeWarning, stacklevel=1)
        return None

    monkeypatch.setattr(qcompiler, "compile", compile_)
    assert judge(CASE).outcome is Outcome.UNTYPED


CHANGED: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "noise": (lambda y: y + 2 * y.std(), "dB where plain fake quantization has"),
    "shape": (lambda y: y[:, :1], "output 0 is torch.float32 [2, 1, 4, 4]"),
    "type": (lambda y: y.double(), "output 0 is torch.float64"),
    "nesting": (lambda y: (y,), "the outputs are nested as"),
    "infinity": (lambda y: y / 0, "output 0 is not finite"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_results_far_from_the_model_are_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, message = CHANGED[name]
    run = Compiled.run
    monkeypatch.setattr(Compiled, "run", lambda self, *inputs: change(run(self, *inputs)))  # type: ignore[arg-type]  # a tensor
    verdict = judge(CASE)
    assert verdict.outcome is Outcome.WRONG
    assert message in verdict.message


def test_lines_that_lose_their_accuracy_by_nature_are_not_estimated() -> None:
    compiled = oracle._compile(CASE)
    assert oracle.estimated(CASE, compiled.target)[0] > 30
    odd = Program(
        0, PROGRAM.inputs, PROGRAM.made, (PROGRAM.statements[0], Statement(("v2",), "F.relu(v1)", odd=True)), "v2"
    )
    assert oracle.estimated(Case(odd, "int8_dsp"), compiled.target) == [-torch.inf]


def test_a_compile_that_hangs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(*arguments: object, **keywords: object) -> object:
        while True:
            pass

    monkeypatch.setattr(qcompiler, "compile", compile_)
    monkeypatch.setattr(oracle, "TIME_LIMIT", 1)
    assert judge(CASE).error == "HangError"


def test_an_artifact_that_loads_as_another_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "SAVED_SHARE", 1)
    assert judge(CASE).outcome is Outcome.OK
    run = qcompiler.Artifact.run
    calls: list[int] = []

    def other(self: qcompiler.Artifact, *inputs: object) -> object:
        calls.append(1)
        found = run(self, *inputs)
        return found if len(calls) == 1 else found + 1  # type: ignore[operator]  # a tensor

    monkeypatch.setattr(qcompiler.Artifact, "run", other)
    assert judge(CASE).message == "the loaded artifact gives other numbers"


def test_one_cause_has_one_kind() -> None:
    first = Verdict(Outcome.INTERNAL, "GraphError", "%conv1.q has shape [2, 3] (at %conv1, m:7)")
    second = Verdict(Outcome.INTERNAL, "GraphError", "%fc_12.weight has shape [17] (at %fc_12, m:11)")
    assert first.kind == second.kind
    assert first.kind != Verdict(Outcome.INTERNAL, "GraphError", "%fc has no shape").kind
