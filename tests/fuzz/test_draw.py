"""Random models: the same for a seed, valid, and of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import qcompiler
from tests.fuzz.draw import LARGEST_TENSOR, Drawing, all_kinds, draw_case, draw_program
from tests.fuzz.programs import Program
from tests.fuzz.table import Kind

SEEDS = range(60)


@pytest.fixture(scope="module")
def programs() -> list[Program]:
    return [draw_program(seed) for seed in SEEDS]


def test_a_seed_gives_the_same_text_and_the_same_numbers(programs: list[Program]) -> None:
    torch.manual_seed(7)  # what the caller draws elsewhere changes nothing
    for program in programs[:10]:
        again = draw_program(program.seed)
        assert again.source() == program.source()
        for a, b in zip(again.built.leaves, program.built.leaves, strict=True):
            assert isinstance(a, Tensor)
            assert isinstance(b, Tensor)
            assert torch.equal(a, b)
    state = torch.get_rng_state()
    _ = draw_program(0).built
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is unchanged"


def test_every_program_runs_and_gives_finite_numbers(programs: list[Program]) -> None:
    for program in programs:
        assert program.built.is_finite(), program.source()
        assert all(isinstance(x, Tensor) and x.numel() <= LARGEST_TENSOR for x in program.built.leaves)


def test_programs_differ_in_form(programs: list[Program]) -> None:
    assert len({program.source() for program in programs}) == len(programs)
    assert any(len(program.inputs) > 1 for program in programs)
    assert any(len(program.outputs) > 1 for program in programs)
    assert any(program.output.startswith("{") for program in programs)
    assert any(program.wild for program in programs)
    assert any(len(program.live()) < len(program.statements) for program in programs), "dead branches"
    ranks = {x.dim() for program in programs for x in program.built.data[0]}
    assert ranks == {2, 3, 4, 5}


def test_every_kind_of_line_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: set[int] = set()

    def noted(index: int, kind: Kind) -> Kind:
        def draw(d: Drawing, x: str) -> str:
            text = kind.draw(d, x)
            drawn.add(index)
            return text

        return Kind(draw, kind.weight, kind.wild)

    kinds = all_kinds()
    watched = [noted(index, kind) for index, kind in enumerate(kinds)]
    monkeypatch.setattr("tests.fuzz.draw.all_kinds", lambda: watched)
    for seed in range(600):  # the rarest one is there after 200
        draw_program(seed)
        if len(drawn) == len(kinds):
            break
    assert drawn == set(range(len(kinds)))


def test_a_case_can_be_pasted_and_run(programs: list[Program]) -> None:
    program = next(program for program in programs if not program.wild and not program.live()[-1].odd)
    case = draw_case(program, "int8_dsp")
    assert case == draw_case(draw_program(program.seed), "int8_dsp")
    text = case.source().replace("qcompiler.compile(", "compiled = qcompiler.compile(")
    space: dict[str, object] = {"__name__": "pasted"}
    exec(text, space)  # noqa: S102  # text that was made here
    assert isinstance(space["compiled"], qcompiler.Compiled)
