"""The lines of compiled C: a program that is not the executor's is caught, here and on a microcontroller."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conformance import c_networks
from conformance.c_networks import BOARD_NEEDS, BOARDS, MACHINES, check, check_board
from conformance.environments import missing
from conformance.networks import Network
from qcompiler.backends.integer.c import emit
from qcompiler.program.files import ProgramFiles

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
needs_board = pytest.mark.skipif(any(map(missing, BOARD_NEEDS)), reason="needs the cross compiler and the emulator")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One convolution and a linear layer in the place of every network."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
    images = torch.randn(20, 2, 6, 6, generator=generator)
    monkeypatch.setattr(c_networks, "_make", lambda name: Network(model.eval(), images))
    cases = c_networks._case
    cases.cache_clear()
    yield
    cases.cache_clear()


def emit_with_another_weight(files: ProgramFiles, *arguments: Any) -> dict[str, bytes]:
    """C whose first weight is one more or less."""
    name = next(item.inputs[1] for item in files.program.instructions if item.op == "int_conv2d")
    weight = np.array(files.constants[name])
    weight.reshape(-1)[0] += 1 if weight.reshape(-1)[0] < 0 else -1
    return emit(dataclasses.replace(files, constants={**files.constants, name: weight}), *arguments)


@needs_compiler
@pytest.mark.parametrize("target", ["single", "f32_rne"])
def test_every_element_of_every_tensor_is_compared(target: str) -> None:
    tally = check(target, ["tiny"], MACHINES["host"])
    assert tally.mismatches == 0, tally.notes
    images = 20 + c_networks.NOISE
    # Input, convolution, reshape and output, once for the graph and once for the C; the reals at both ends only in the graph.
    codes = images * (2 * 36 + 4 * 16 + 64 + 5)
    assert tally.compared >= 2 * codes


@needs_compiler
def test_c_of_another_program_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_networks, "emit", emit_with_another_weight)
    tally = check("single", ["tiny"], MACHINES["host"])
    assert tally.mismatches > 0
    assert all("C, %" in note for note in tally.notes)


@needs_compiler
def test_a_graph_that_computes_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    case = c_networks._case("single", "tiny")
    name = next(iter(case.graph))
    other = {**case.graph, name: case.graph[name] + 1}
    monkeypatch.setattr(c_networks, "_case", lambda *_: dataclasses.replace(case, graph=other))
    tally = check("single", ["tiny"], MACHINES["host"])
    assert tally.mismatches == case.graph[name].size


@needs_board
@pytest.mark.parametrize("board", BOARDS)
def test_the_self_test_runs_on_a_microcontroller(board: str) -> None:
    tally = check_board("single", "tiny", BOARDS[board])
    assert (tally.compared, tally.mismatches) == (5 * c_networks.VECTORS, 0)


@needs_board
def test_the_self_test_counts_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_networks, "emit", emit_with_another_weight)
    tally = check_board("single", "tiny", BOARDS["cortex_m3"])
    assert tally.compared == 5 * c_networks.VECTORS
    assert tally.mismatches > 0
