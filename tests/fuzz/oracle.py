"""The possible ends of a compile of a valid model, and which of them are faults of the compiler."""

from __future__ import annotations

import math
import re
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

import qcompiler
from qcompiler.errors import (
    CalibrationError,
    CaptureError,
    ContractError,
    InputError,
    NotSupportedYetError,
    QCompilerError,
    TargetError,
    UnsupportedError,
    VerificationError,
)
from qcompiler.session.compile import Compiled
from qcompiler.targets import Target, load_target
from qcompiler.validation.metrics import sqnr_db
from tests.fuzz.programs import Case, Program


class Outcome(StrEnum):
    """How a compile ended."""

    OK = "ok"
    REFUSED = "refused"
    """A typed error that names the part of the model that the target lacks."""
    FALSE_ALARM = "false alarm"
    """A valid model is said to be wrong, or its forms to disagree."""
    INTERNAL = "internal"
    """A typed error that blames a pass, a graph or a file of the compiler itself."""
    UNTYPED = "untyped"
    """Any other exception, a warning, or C that does not compile."""
    WRONG = "wrong"
    """Verified, and far from the float model, of another structure, or not the same twice."""


FAILURES = (Outcome.FALSE_ALARM, Outcome.INTERNAL, Outcome.UNTYPED, Outcome.WRONG)

TIME_LIMIT, WAITING = 120, 20
"""Processor seconds after which a compile of a few thousand numbers counts as one that hangs; and so many times as many
seconds on the clock, for one that waits for another program."""
GOOD_ESTIMATE, BAD_RESULT = 25.0, 10.0
"""Decibels: with plain fake quantization of every tensor above the first, an integer program below the second is wrong.
Between them lie what percentiles clip in small data and scales that are powers of two."""
SAVED_SHARE, TWICE_SHARE = 4, 12
"""One of so many pairs is saved and loaded, and one is compiled twice."""


@dataclass(frozen=True)
class Verdict:
    """How one case ended.

    Args:
        outcome: The class.
        error: Type of the exception, or what was compared.
        message: First line of the message.
        where: Innermost line of the compiler's source, for what is untyped.
        seconds: Processor time.
    """

    outcome: Outcome
    error: str = ""
    message: str = ""
    where: str = ""
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        """The same for failures that have one cause: names and numbers are left out."""
        text = re.split(r"; expected | \(at ", self.message)[0]
        text = re.sub(r"\b(target|what) \w+|, where \w+ has .*", "_", text)
        text = re.sub(r"%[\w.]+|@\w+|'[^']*'|\"[^\"]*\"|[-+]?\d[\d.e+-]*|\[[^\]]*\]|\([^)]*\)", "_", text)
        return f"{self.error}: {re.sub(r'(_[ ,]*)+', '_ ', text)[:90].strip()}" + (
            f" ({self.where})" if self.where else ""
        )


class HangError(Exception):
    """A compile took too long."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise HangError in the block after so many processor seconds, however much else the machine does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"more than {seconds} s")

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(WAITING * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def judge(case: Case, *, thorough: bool = True) -> Verdict:
    """Compile a case and classify what happens.

    Args:
        case: A program that runs and gives finite numbers.
        thorough: Whether a share of the cases is saved and loaded, and compiled twice.
    """
    begin = time.process_time()
    verdict = _judged(case, thorough)
    return Verdict(verdict.outcome, verdict.error, verdict.message, verdict.where, time.process_time() - begin)


def _judged(case: Case, thorough: bool) -> Verdict:
    try:
        with limited(TIME_LIMIT), warnings.catch_warnings(action="error"):
            compiled = _compile(case)
            found = compiled.run(*(x.clone() for x in case.program.built.data[0]))
            problem = _compared(case, compiled, found)
            share = int(case.digest, 16)
            if not problem and thorough and share % SAVED_SHARE == 0:
                problem = _saved(case, compiled, found)
            if not problem and thorough and share % TWICE_SHARE == 1:
                again = _compile(case).artifact.files()
                differing = [name for name, data in compiled.artifact.files().items() if again.get(name) != data]
                problem = f"another compile gives another {differing[0]}" if differing else ""
    except QCompilerError as error:
        return _typed(error, case)
    except Exception as error:  # noqa: BLE001  # whatever escapes is what is looked for
        return Verdict(Outcome.UNTYPED, type(error).__name__, _first_line(error), _place(error))
    return Verdict(Outcome.WRONG, "compared", problem) if problem else Verdict(Outcome.OK)


def target_of(case: Case) -> Target:
    """The target, with islands where the case has them."""
    target = load_target(case.target)
    return target.override(fallback="float") if case.fallback else target


def _compile(case: Case, verify: Literal["error", "off"] = "error") -> Compiled:
    built = case.program.built
    model: nn.Module | torch.export.ExportedProgram = built.model
    if case.exported:
        # Statistics of a batch norm may be parameters, and torch differentiates no batch norm in them.
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            model = torch.export.export(built.model, tuple(x.clone() for x in built.data[0]))
    return qcompiler.compile(
        model,
        target_of(case),
        calibration_data=[tuple(x.clone() for x in batch) for batch in built.data],
        effort=case.effort,  # type: ignore[arg-type]  # one of the three words
        overrides=case.overrides,
        verify=verify,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:400]


def _place(error: BaseException) -> str:
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename).as_posix()
        if re.search(r"/(qcompiler|passes|backends)/", path) and "/site-packages/" not in path:
            found = f"{Path(path).name}:{frame.name}"
    return found


def _typed(error: QCompilerError, case: Case) -> Verdict:
    """The class of an error that is raised on purpose."""
    name, found, text = type(error).__name__, error.found, _first_line(error)
    outcome = Outcome.INTERNAL
    if isinstance(error, VerificationError):
        outcome, name, text = _disagreement(case, text)
        return Verdict(outcome, name, text, case.target if text.startswith("onnxruntime") else "")
    if isinstance(error, ContractError | CalibrationError):
        outcome = Outcome.FALSE_ALARM  # the float model gives finite numbers
    elif isinstance(error, CaptureError):
        outcome = Outcome.FALSE_ALARM if "captured graph" in found else Outcome.REFUSED
    elif isinstance(error, UnsupportedError | NotSupportedYetError):
        outcome = Outcome.REFUSED
    elif isinstance(error, InputError | TargetError) and re.search(
        "matches no node|has no (activation|weight)s of", found
    ):
        return Verdict(Outcome.REFUSED, name, text)  # an override that the model or the target has no use for
    if outcome is Outcome.REFUSED and error.where is None:
        outcome = Outcome.INTERNAL  # a refusal without a place does not help
    return Verdict(outcome, name, text, "" if outcome in (Outcome.REFUSED, Outcome.FALSE_ALARM) else _place(error))


def _disagreement(case: Case, text: str) -> tuple[Outcome, str, str]:
    """The class of a failed verification, its name, and the first form that fails."""
    name = VerificationError.__name__
    try:
        compiled = _compile(case, verify="off")
        report = compiled.verify()
    except QCompilerError:
        return Outcome.FALSE_ALARM, name, text
    for form in report.forms:
        if form.required and form.status in ("differs", "not run"):
            outcome = Outcome.UNTYPED if form.status == "not run" else Outcome.FALSE_ALARM
            return outcome, name, f"{form}"[:400]
    return Outcome.FALSE_ALARM, name, text


def _compared(case: Case, compiled: Compiled, found: object) -> str:
    """The fault in the results of the integer program; empty without a fault."""
    expected = case.program.built.expected
    leaves, structure = _pytree.tree_flatten(expected)
    results, other = _pytree.tree_flatten(found)
    if structure != other:
        return f"the outputs are nested as {other}, those of the model as {structure}"
    verdict = ""
    for index, (wanted, result) in enumerate(zip(leaves, results, strict=True)):
        if not isinstance(result, Tensor) or result.shape != wanted.shape or result.dtype != wanted.dtype:
            return f"output {index} is {_described(result)}, that of the model {_described(wanted)}"
        if not result.dtype.is_floating_point:
            continue
        if not bool(torch.isfinite(result).all()):
            return f"output {index} is not finite"
        ratio = sqnr_db(wanted, result)
        if ratio < BAD_RESULT and not verdict:
            estimate = estimated(case, compiled.target)[index]
            if estimate > GOOD_ESTIMATE:
                verdict = f"output {index} has {ratio:.1f} dB where plain fake quantization has {estimate:.1f} dB"
    return verdict


def _described(item: object) -> str:
    return f"{item.dtype} {list(item.shape)}" if isinstance(item, Tensor) else type(item).__name__


def estimated(case: Case, target: Target) -> list[float]:
    """The signal-to-noise ratio of each output, in dB, where every line's result and every weight is rounded to codes.

    Where a line on the way is odd, minus infinity: nothing can be said.
    """
    program, built = case.program, case.program.built
    if any(statement.odd for statement in program.live()):
        return [-math.inf] * len(built.leaves)
    bits = {"activation_bits": target.activation_bits, "weight_bits": target.weight_bits}
    for value in case.overrides.values():
        wanted = {"activation_bits": value, "weight_bits": value} if isinstance(value, int) else value
        if isinstance(wanted, dict):
            bits = {key: min(bits[key], wanted.get(key, bits[key])) for key in bits}
    rounded = _rounded(program, built.data, bits["activation_bits"], bits["weight_bits"])
    return [sqnr_db(a, b) for a, b in zip(built.leaves, rounded, strict=True)]  # type: ignore[arg-type]  # tensors


def _rounded(program: Program, data: object, activation_bits: int, weight_bits: int) -> list[Tensor]:
    """The outputs with every tensor on a grid between its extremes."""
    model = Program.built.func(program).model.float()  # type: ignore[attr-defined]  # a fresh one
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(_on_grid(parameter, weight_bits, symmetric=True))
        values: dict[str, object] = {"torch": torch, "F": nn.functional, "nn": nn, "self": model}
        inputs = dict(zip(program.inputs, program.built.data[0], strict=True))
        for name, x in inputs.items():
            values[name] = _on_grid(x.float() if x.is_floating_point() else x.clone(), activation_bits)
        for statement in program.statements:
            found = eval(statement.text, values)  # noqa: S307  # text that was drawn here
            parts = [found] if isinstance(found, Tensor) else list(found)
            values.update(zip(statement.results, (_on_grid(x, activation_bits) for x in parts), strict=True))
        return list(_pytree.tree_leaves(eval(program.output, values)))  # noqa: S307  # as above


def _on_grid(x: Tensor, bits: int, *, symmetric: bool = False) -> Tensor:
    if not x.is_floating_point() or not x.numel():
        return x
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    scale = (high - low) / (2**bits - 1)
    return x if scale == 0 else torch.round(x / scale) * scale


def _saved(case: Case, compiled: Compiled, found: object) -> str:
    """The difference after the artifact was saved and loaded; empty without a difference."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = qcompiler.load(compiled.save(Path(folder) / "model"))
        again = loaded.run(*(x.clone() for x in case.program.built.data[0]))
        if loaded.files() != compiled.artifact.files():
            return "the loaded artifact has other files"
        for a, b in zip(_pytree.tree_leaves(found), _pytree.tree_leaves(again), strict=True):
            if not torch.equal(a, b):
                return "the loaded artifact gives other numbers"
        if compiled.verification is not None and not loaded.verify().passed:
            return "the loaded artifact fails its own verification"
    return ""
