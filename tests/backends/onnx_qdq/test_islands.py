"""Float islands in ONNX: one run of torch's exporter for all, and names that depend on the island alone."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.onnx_qdq import islands
from qcompiler.backends.onnx_qdq.runtime import run
from qcompiler.errors import UnsupportedError
from tests.support.forms import onnx_of

FLOAT = qcompiler.load_target("int8_dsp").override(fallback="float")


class Sums(nn.Module):
    """Layers with two running sums, an island each, before each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(torch.cumsum(x, 1) * x.flip(1).cumsum(1))
        return x


def compiled(model: nn.Module) -> qcompiler.Compiled:
    torch.manual_seed(0)
    return qcompiler.compile(model.eval(), FLOAT, calibration_data=[torch.randn(4, 6)], verify="off")


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of islands in each run of torch's exporter."""
    counts: list[int] = []
    original = islands._written

    def counted(graphs: Any, opset: int) -> object:
        counts.append(len(graphs))
        return original(graphs, opset)

    monkeypatch.setattr(islands, "_written", counted)
    return counts


def test_one_run_of_the_exporter_writes_all_islands(exports: list[int]) -> None:
    found = compiled(Sums(5))
    assert exports == [10]
    x = torch.randn(7, 6)
    (real,) = run(onnx_of(found.artifact), [x.numpy()], optimize=False)
    torch.testing.assert_close(torch.from_numpy(real), found.run(x), rtol=0.0, atol=1e-2)


def described(artifact: Any, name: str) -> list[str]:
    """The nodes of one island."""
    graph = onnx.load_from_string(onnx_of(artifact)).graph
    return [
        f"{', '.join(node.output)} = {node.op_type}({', '.join(node.input)})"
        for node in graph.node
        if node.name.startswith(f"{name}/") and "Linear" not in node.op_type
    ]


def test_an_island_is_written_alike_in_any_company(exports: list[int]) -> None:
    expected = [
        "cumsum_1/0/out.0 = Gather(x, cumsum_1/0/in.1)",
        "cumsum_1 = CumSum(cumsum_1/0/out.0, cumsum_1/1/in.1)",
    ]
    for count in (1, 3):
        assert described(compiled(Sums(count)).artifact, "cumsum_1") == expected
    assert exports == [2, 6]


def test_an_island_that_cannot_be_written_is_named(exports: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.onnx.export

    def fails(runner: Any, *arguments: object, **keywords: object) -> object:
        if any(graph.name == "cumsum_3" for graph in runner.graphs):
            raise RuntimeError("no such function")
        return original(runner, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.onnx, "export", fails)
    found = compiled(Sums(3))
    reason = found.artifact.forms["ONNX"].reason
    assert "no such function" in reason
    assert "cumsum_3" in reason
    assert exports == [6, 1, 1, 1, 1], "first all together, then each alone up to the one at fault"
    with pytest.raises(UnsupportedError, match="no such function"):
        islands.export([node for node in found.integer.main.nodes if node.op == "call"], 18)
