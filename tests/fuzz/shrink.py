"""Makes a failing case small: what can be taken away is, as long as the failure stays of its kind."""

from __future__ import annotations

import ast
import dataclasses
import re
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tests.fuzz.oracle import Verdict, judge
from tests.fuzz.programs import Case, Program, Statement

_INTEGER = re.compile(r"(?<![\w.])\d+(?![\w.])")
_NAME = re.compile(r"\b[xv]\d+\b")
_OPTION = re.compile(r", \w+=(?:\([^()]*\)|\"[^\"]*\"|[^,()]+)")


def shrink(case: Case, verdict: Verdict, seconds: float) -> Case:
    """The smallest case found that fails as `case` does.

    Args:
        case: A failing case.
        verdict: How it fails.
        seconds: Time that may be spent.
    """
    until = time.monotonic() + seconds

    def fails(candidate: Case) -> bool:
        try:
            if not candidate.program.built.is_finite():
                return False
        except Exception:  # noqa: BLE001  # what is left of the program need not run
            return False
        found = judge(candidate)
        return (found.outcome, found.kind) == (verdict.outcome, verdict.kind)

    progress = True
    while progress and time.monotonic() < until:
        progress = False
        for step in STEPS:
            for candidate in step(case):
                if time.monotonic() > until:
                    return case
                if size(candidate) < size(case) and fails(candidate):
                    case, progress = candidate, True
                    break
            if progress:
                break
    return case


def size(case: Case) -> tuple[int, ...]:
    """The measure of size: few lines, then few characters, then small numbers."""
    program, text = case.program, case.source()
    numbers = sum(map(int, _INTEGER.findall(text)))
    asked = [bool(case.overrides), case.exported, case.fallback, case.effort != "fast", program.batches > 1]
    asked += [bool(program.dtype), program.smaller_last]
    return len(program.statements), len(program.made), sum(asked), len(text), numbers


Step = Callable[[Case], Iterator[Case]]


def _with(case: Case, **changes: object) -> Case:
    return dataclasses.replace(case, program=dataclasses.replace(case.program, **changes).trimmed())  # type: ignore[arg-type]  # its fields


def settings(case: Case) -> Iterator[Case]:
    """Fewer arguments of the call."""
    if case.overrides:
        yield dataclasses.replace(case, overrides={})
    if case.exported:
        yield dataclasses.replace(case, exported=False)
    if case.fallback:
        yield dataclasses.replace(case, fallback=False)
    if case.effort != "fast":
        yield dataclasses.replace(case, effort="fast")
    if case.program.dtype:
        yield _with(case, dtype="")
    if case.program.smaller_last:
        yield _with(case, smaller_last=False)
    elif case.program.batches > 1:
        yield _with(case, batches=1)


def live_only(case: Case) -> Iterator[Case]:
    """Without lines and inputs that no output depends on."""
    program = case.program
    live = program.live()
    read = {name for statement in live for name in statement.reads} | set(program.outputs)
    inputs = {name: text for name, text in program.inputs.items() if name in read} or dict(
        [*program.inputs.items()][:1]
    )
    yield _with(case, statements=live, inputs=inputs)
    yield _with(case, statements=live)


def fewer_outputs(case: Case) -> Iterator[Case]:
    """One tensor as the output: one that was returned, or any line's result."""
    program = case.program
    for name in program.outputs:
        if program.output != name:
            yield _with(case, output=name)
    for statement in program.statements:
        for name in statement.results:
            yield _with(case, output=name, statements=_without_dead(program, name))


def _without_dead(program: Program, output: str) -> tuple[Statement, ...]:
    return dataclasses.replace(program, output=output).live()


def inputs_for_lines(case: Case) -> Iterator[Case]:
    """The result of a line as an input of the model, the last lines first."""
    program = case.program
    samples = _samples(program)
    for index in reversed(range(len(program.statements))):
        statement = program.statements[index]
        if not all(name in samples and samples[name].is_floating_point() for name in statement.results):
            continue
        inputs = dict(program.inputs)
        names = {}
        for result in statement.results:
            names[result] = f"x{1 + max(int(name[1:]) for name in inputs)}"
            inputs[names[result]] = f"torch.randn({', '.join(map(str, samples[result].shape))})"
        rest = [item for at, item in enumerate(program.statements) if at != index]
        renamed = _renamed(dataclasses.replace(program, statements=tuple(rest), inputs=inputs), names)
        yield from live_only(dataclasses.replace(case, program=renamed))


@torch.no_grad()
def _samples(program: Program) -> dict[str, Tensor]:
    values: dict[str, object] = dict(zip(program.inputs, program.built.data[0], strict=True))
    from tests.fuzz.draw import Drawing

    space = Drawing(0).namespace() | {"self": program.built.model}
    for statement in program.statements:
        found = eval(statement.text, space | values)  # noqa: S307  # text that was drawn here
        parts = [found] if isinstance(found, Tensor) else list(found)
        values.update(zip(statement.results, parts, strict=True))
    return {name: x for name, x in values.items() if isinstance(x, Tensor)}


def _renamed(program: Program, names: dict[str, str]) -> Program:
    def new(text: str) -> str:
        return _NAME.sub(lambda match: names.get(match[0], match[0]), text)

    statements = tuple(dataclasses.replace(item, text=new(item.text)) for item in program.statements)
    return dataclasses.replace(program, statements=statements, output=new(program.output))


def fewer_lines(case: Case) -> Iterator[Case]:
    """Without one line, whose readers read what it read."""
    program = case.program
    for index in reversed(range(len(program.statements))):
        statement = program.statements[index]
        rest = tuple(item for at, item in enumerate(program.statements) if at != index)
        for source in statement.reads:
            renamed = _renamed(dataclasses.replace(program, statements=rest), dict.fromkeys(statement.results, source))
            yield dataclasses.replace(case, program=renamed.trimmed())


def fewer_made(case: Case) -> Iterator[Case]:
    """Without one line of `__init__`."""
    made = case.program.made
    for index in reversed(range(len(made))):
        yield _with(case, made=made[:index] + made[index + 1 :])


def simpler_text(case: Case) -> Iterator[Case]:
    """Parts of expressions: an operand instead of the whole, fewer options, plain data."""
    program = case.program
    for name, text in program.inputs.items():
        plain = re.match(r"torch\.\w+\([^()]*\)", text)
        if plain and plain[0].replace("rand(", "randn(") != text:
            yield _with(case, inputs={**program.inputs, name: plain[0].replace("rand(", "randn(")})
    for index, (name, line) in enumerate(program.made):
        for match in _OPTION.finditer(line):
            shorter = line[: match.start()] + line[match.end() :]
            yield _with(case, made=(*program.made[:index], (name, shorter), *program.made[index + 1 :]))
    for index, statement in enumerate(program.statements):
        found = [statement.text[: m.start()] + statement.text[m.end() :] for m in _OPTION.finditer(statement.text)]
        found += _hoisted(statement.text)
        for text in found:
            changed = dataclasses.replace(statement, text=text)
            yield _with(case, statements=(*program.statements[:index], changed, *program.statements[index + 1 :]))


def _hoisted(text: str) -> Iterator[str]:
    """The expression with one part of it replaced by what that part is made of."""
    for outer in ast.walk(ast.parse(text, mode="eval").body):
        if isinstance(outer, ast.Call | ast.BinOp | ast.Subscript | ast.UnaryOp):
            for inner in ast.walk(outer):
                if inner is not outer and isinstance(inner, ast.Call | ast.BinOp | ast.Subscript | ast.Name):
                    part = ast.unparse(inner)
                    if _NAME.search(part):
                        yield ast.unparse(ast.parse(text, mode="eval")).replace(ast.unparse(outer), part)


def smaller_numbers(case: Case) -> Iterator[Case]:
    """Sizes, everywhere at once or in one line."""
    program = case.program
    lines = [*program.inputs.values(), *(line for _, line in program.made), *(item.text for item in program.statements)]
    numbers = sorted({int(n) for line in lines for n in _INTEGER.findall(line) if int(n) > 1}, reverse=True)

    def changed(text: str, old: int, new: int) -> str:
        return _INTEGER.sub(lambda match: str(new) if int(match[0]) == old else match[0], text)

    for old in numbers:
        for new in dict.fromkeys([1, 2, 3, old // 2]):
            if new < old:
                yield _with(
                    case,
                    inputs={name: changed(text, old, new) for name, text in program.inputs.items()},
                    made=tuple((name, changed(line, old, new)) for name, line in program.made),
                    statements=tuple(
                        dataclasses.replace(item, text=changed(item.text, old, new)) for item in program.statements
                    ),
                )
    for name, text in program.inputs.items():
        for match in _INTEGER.finditer(text):
            for new in dict.fromkeys([1, 2]):
                if new < int(match[0]):
                    shorter = f"{text[: match.start()]}{new}{text[match.end() :]}"
                    yield _with(case, inputs={**program.inputs, name: shorter})


STEPS: tuple[Step, ...] = (
    fewer_outputs,
    live_only,
    settings,
    inputs_for_lines,
    fewer_lines,
    simpler_text,
    fewer_made,
    smaller_numbers,
)
