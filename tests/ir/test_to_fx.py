"""Graphs written down as torch calls compute what the interpreter does, at every batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qcompiler.frontends import capture
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.to_fx import Recorder, record
from tests.support.running import outputs_of


class Root(nn.Module):
    """Holds the tensors of a graph under flat names."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.paths = {name: f"t{index}" for index, name in enumerate(graph.module.tensors)}
        for name, tensor in graph.module.tensors.items():
            self.register_buffer(self.paths[name], tensor)


def written(graph: Graph) -> tuple[Any, Callable[..., list[Tensor]], Root]:
    root = Root(graph)

    def rule(recorder: Recorder, node: Node, operands: Sequence[Any]) -> tuple[Any, ...]:
        if node.op in LEAVES:
            return (recorder.attribute(root.paths[str(node.attributes["ref"])], node.output.type),)
        return recorder.evaluate(node, operands)

    calls, program = record(graph, rule)
    return calls, program, root


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        parts = self.qkv(self.norm(x)).reshape(n, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        weights = (parts[0] @ parts[1].transpose(-2, -1) * 0.5).softmax(-1)
        found: Tensor = (weights @ parts[2]).transpose(1, 2).reshape(n, 6, 8)
        return found


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3, padding=(1, 0)), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.slopes, self.norm = nn.PReLU(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.slopes(self.norm(self.conv(x)))
        pooled = functional.avg_pool2d(functional.max_pool2d(y, 2), 2, ceil_mode=True)
        large = functional.interpolate(self.up(pooled), size=(5, 7), mode="bilinear")
        joined = torch.cat([large, functional.pad(large, (0, 0, 0, 0, 1, 0))[:, 1:] * 2.0], 1)
        return functional.adaptive_avg_pool2d(joined, 2), {"clamped": joined.clamp(-0.1, 0.2).mean((2, 3))}


class Sums(nn.Module):
    """Holds a function without an operator, whose sizes follow the batch."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.topk(x, 2, dim=1)
        return torch.cumsum(first * second.to(x.dtype), 0).sigmoid()


CASES = {
    "attention": (Attention(), torch.randn(3, 6, 8)),
    "images": (Images(), torch.randn(3, 3, 12, 13)),
    "functions without operators": (Sums(), torch.randn(3, 9)),
}


@pytest.mark.parametrize("case", CASES)
def test_calls_compute_what_the_interpreter_does(case: str) -> None:
    model, example = CASES[case]
    graph = capture(model.eval(), example).module.main
    _, program, root = written(graph)
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 2, 5):
        x = torch.randn(batch, *example.shape[1:], generator=generator)
        found, expected = program(root, x), outputs_of(graph, [x])
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_operators_are_torch_calls_and_nothing_else() -> None:
    model, example = CASES["images"]
    calls, _, _ = written(capture(model.eval(), example).module.main)
    names = [getattr(node.target, "__name__", str(node.target)) for node in calls.nodes if node.op == "call_function"]
    assert "conv2d" in names
    assert not any(name.startswith("evaluate_") for name in names)


def test_what_needs_its_tensors_is_called_whole() -> None:
    model, example = CASES["functions without operators"]
    calls, _, _ = written(capture(model, example).module.main)
    names = [getattr(node.target, "__name__", str(node.target)) for node in calls.nodes if node.op == "call_function"]
    assert any(name.startswith("evaluate_custom") for name in names)
