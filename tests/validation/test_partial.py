"""Runs with some quantizers: what is recomputed, and that nothing else changes."""

from __future__ import annotations

import itertools

import pytest
import torch

from qcompiler.ir.graph import Node
from qcompiler.ops.quantizers import is_quantizer
from qcompiler.validation.partial import PartialRuns, Replay, quantized_operand
from tests.support.quantized import linear

X = torch.tensor([[1.1, 2.0], [0.3, -0.7]])


def runs() -> PartialRuns:
    return PartialRuns(linear().main, [X], {})


def plain(run: PartialRuns, acting: set[Node]) -> list[torch.Tensor]:
    """A whole run in which only some quantizers act."""
    own = run.graph.module.tensors
    return run(own, lambda node, real: quantized_operand(node, real, own) if node in acting else real)


@pytest.mark.parametrize("active", [False, True])
def test_switched_quantizers_give_what_a_whole_run_gives(active: bool) -> None:
    run = runs()
    quantizers = [node for node in run.graph.nodes if is_quantizer(node)]
    assert len(quantizers) >= 3
    replay = Replay(run, run.graph.module.tensors, active=active)
    everything = set(quantizers)
    assert torch.equal(replay.outputs[0], plain(run, everything if active else set())[0])
    for count in range(len(quantizers) + 1):
        for chosen in itertools.combinations(quantizers, count):
            acting = everything - set(chosen) if active else set(chosen)
            assert torch.equal(replay.switched(chosen)[0], plain(run, acting)[0])


def test_only_what_follows_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs()
    last = [node for node in run.graph.nodes if is_quantizer(node)][-1]
    replay = Replay(run, run.graph.module.tensors, active=False)
    computed: list[Node] = []
    results = PartialRuns.results

    def counted(self: PartialRuns, node: Node, *rest: object) -> tuple[torch.Tensor, ...]:
        computed.append(node)
        return results(self, node, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(PartialRuns, "results", counted)
    replay.switched([last])
    assert computed[0] is last
    assert len(computed) < len(list(run.graph.nodes)) / 2
