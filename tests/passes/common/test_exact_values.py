"""Integers, indices, masks and angles of positions: none of them is ever on a grid."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.ir.graph import Graph
from qcompiler.passes.common.exact_values import integer_exact
from qcompiler.targets import load_target

SQNR = 30.0
"""dB. Another row of a table, or a mask that lets through what it should not, leaves less than 10."""

Rule = Callable[["Computed", Tensor, Tensor], Tensor]


class Computed(nn.Module):
    """Layers and a table, and what is computed with them from data [N, 12, 8] and something else per position."""

    rates: Tensor
    causal: Tensor
    far: Tensor

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.first, self.second, self.narrow = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 12)
        self.table = nn.Embedding(20, 8)
        self.register_buffer("rates", torch.exp(-torch.arange(4) / 2.0))
        self.register_buffer("causal", torch.triu(torch.full((12, 12), -torch.inf), 1))
        self.register_buffer("far", torch.triu(torch.full((12, 12), -1e9), 1))

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        return self.rule(self, x, m)


def _scores(b: Computed, x: Tensor) -> Tensor:
    scores: Tensor = b.first(x) @ b.second(x).transpose(1, 2)
    return scores


def _turned(b: Computed, x: Tensor, m: Tensor) -> Tensor:
    q, angle = b.first(x), torch.cat([m[..., None].float() * b.rates] * 2, -1)
    turned: Tensor = q * angle.cos() + torch.cat([-q[..., 4:], q[..., :4]], -1) * angle.sin()
    return turned


def _waves(b: Computed, x: Tensor, m: Tensor) -> Tensor:
    angle = 40.0 * m[..., None].float() * b.rates * 1.0
    waves: Tensor = b.first(torch.cat([angle.sin(), angle.cos()], -1)) + x
    return waves


MASKS: dict[str, tuple[Rule, torch.dtype]] = {
    "positions of a float mask": (
        lambda b, x, m: b.first(b.table((torch.cumsum(m, 1) * m - 1).long().clamp(min=0)) + x),
        torch.float32,
    ),
    "positions of an integer mask": (
        lambda b, x, m: b.first(b.table((torch.cumsum(m, 1) * m - 1).long().clamp(min=0)) + x),
        torch.int64,
    ),
    "added to scores": (
        lambda b, x, m: torch.softmax(b.narrow(x) + (1 - m.float())[:, None] * -1e4, -1),
        torch.int64,
    ),
    "added to scores, of floats": (
        lambda b, x, m: torch.softmax(b.narrow(x) + (1 - m)[:, None] * -1e4, -1),
        torch.float32,
    ),
    "causal": (lambda b, x, m: torch.softmax(_scores(b, x) + b.causal, -1) @ x, torch.float32),
    "causal, far below": (lambda b, x, m: torch.softmax(_scores(b, x) + b.far, -1) @ x, torch.float32),
    "multiplied": (lambda b, x, m: b.second(b.first(x) * (m > 0).float()[..., None]), torch.int64),
    "mean of what is there": (
        lambda b, x, m: (b.first(x) * m.float()[..., None]).sum(1) / m.float().sum(1, keepdim=True).clamp(min=1.0),
        torch.int64,
    ),
    "gathered by order": (
        lambda b, x, m: torch.gather(b.first(x), 1, x[..., :1].argsort(1).expand(-1, -1, 8)),
        torch.float32,
    ),
    "turned by positions": (_turned, torch.int64),
    "waves of positions": (_waves, torch.int64),
    "whole steps": (lambda b, x, m: b.first(torch.floor(x * 4.0) / 4.0), torch.float32),
}


def _data(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 12, 8), (torch.rand(4, 12) > 0.3).to(dtype)) for _ in range(3)]


def _sqnr(rule: Rule, dtype: torch.dtype, target: str = "int8_dsp") -> float:
    torch.manual_seed(0)
    model, data = Computed(rule).eval(), _data(dtype)
    hardware = load_target(target).override(fallback="float")
    compiled = qcompiler.compile(model, hardware, calibration_data=data, verify="off")
    with torch.no_grad():
        expected, found = model(*data[0]), compiled.run(*data[0])
    assert isinstance(found, Tensor)
    noise = float((found.double() - expected.double()).square().sum())
    return math.inf if not noise else 10.0 * math.log10(float(expected.double().square().sum()) / noise)


@pytest.mark.parametrize("name", MASKS)
def test_masks_and_positions_stay_what_they_are(name: str) -> None:
    assert _sqnr(*MASKS[name]) > SQNR


def _index(seed: int) -> Rule:
    """Arithmetic on a mask, at random, and rows of a table by what comes out."""
    draw = random.Random(seed)
    steps = [draw.randrange(8) for _ in range(draw.randrange(2, 6))]

    def rule(b: Computed, x: Tensor, m: Tensor) -> Tensor:
        index = m
        for step in steps:
            match step:
                case 0:
                    index = torch.cumsum(index, 1)
                case 1:
                    index = index * m
                case 2:
                    index = index - 1
                case 3:
                    index = index.flip(1)
                case 4:
                    index = index * 3 + 1
                case 5:
                    index = index.clamp(0, 13)
                case 6:
                    index = index.transpose(0, 1).reshape(-1, 12) + index
                case _:
                    index = index + torch.arange(12)
        rows: Tensor = b.table(index.long().clamp(0, 19))
        result: Tensor = b.second(rows * 0.5 + b.first(x))
        return result

    return rule


@pytest.mark.parametrize("seed", range(6))
def test_no_index_is_ever_off(seed: int) -> None:
    assert _sqnr(_index(seed), (torch.float32, torch.int64)[seed % 2]) > SQNR


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ort_cpu", "hexagon_htp_a16w8", "pow2_mcu", "w4a8_npu_blocks"])
@pytest.mark.parametrize("seed", range(6, 26))
def test_no_index_is_ever_off_on_other_targets(seed: int, target: str) -> None:
    # With weights of four bits the layers alone leave some 20 dB.
    least = 15.0 if target.startswith("w4") else SQNR - 6.0
    assert _sqnr(_index(seed), (torch.float32, torch.int64)[seed % 2], target) > least


def _found(rule: Rule, dtype: torch.dtype) -> dict[str, str]:
    from qcompiler.frontends import capture

    torch.manual_seed(0)
    graph: Graph = capture(Computed(rule).eval(), _data(dtype)[0]).module.main
    return {node.op: why for node, why in integer_exact(graph).items()}


def test_says_what_belongs_to_an_index() -> None:
    found = _found(lambda b, x, m: b.table((torch.cumsum(m, 1) * m - 1).long().clamp(min=0)), torch.float32)
    assert found.keys() >= {"mul", "sub"}
    assert "an index or a mask depends on it" in found.values()


def test_leaves_data_alone() -> None:
    """Rows of a table are data, and so is what layers make of them, though integers picked the rows."""
    ids = torch.int64
    assert not {"add", "mul", "linear"} & _found(lambda b, x, m: b.first(b.table(m) + x) * 0.5 + x, ids).keys()
    assert not _found(lambda b, x, m: b.first(torch.relu(b.second(x)) * 2.0 + x), torch.float32)


@pytest.mark.parametrize("largest", [False, True])
def test_stops_at_layers_and_at_what_others_read(largest: bool) -> None:
    """The place of the largest element of data is as good as the data: the sum before it is no index."""

    def rule(b: Computed, x: Tensor, m: Tensor) -> Tensor:
        trunk = b.first(x) + x
        last = b.second(trunk) + trunk
        rows: Tensor = b.table(last.argmax(2) if largest else last.argsort(2)[:, :, 0])
        return rows

    torch.manual_seed(0)
    from qcompiler.frontends import capture

    graph = capture(Computed(rule).eval(), _data(torch.float32)[0]).module.main
    adds = [node for node in graph.nodes if node.op == "add"]
    assert [node in integer_exact(graph) for node in adds] == [False, not largest]
