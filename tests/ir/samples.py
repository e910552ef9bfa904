"""Small modules that the tests of the graph share: one in text, one compiled, and an operator that takes anything."""

from __future__ import annotations

import functools
from typing import cast

import torch
from torch import Tensor, nn

from qcompiler import frontends
from qcompiler.ir.graph import Graph, Module, Node
from qcompiler.ir.registry import REQUIRED, OpDef, known_ops, register
from qcompiler.ir.text import parse_module
from qcompiler.ir.types import Stage
from qcompiler.passes.base import PassContext
from qcompiler.passes.manager import PassManager
from qcompiler.session.pipeline import default_pipeline, quantization_passes
from qcompiler.targets import load_target

SMALL = """graph @main stage=float {
  input %x : f32[N, 4]
  bound N 1 64
  %w = parameter() {ref = "w", dtype = "f32", shape = (4, 4)} : f32[4, 4]
  %a = linear(%x, %w) : f32[N, 4]
  %b = relu(%a) : f32[N, 4]
  %c = add(%a, %b) : f32[N, 4]
  return %c
}
"""

# The table of operators is one per process and has no way to remove one, hence the name that no other test takes.
ANYTHING = "test_ir_anything"
if ANYTHING not in known_ops():
    register(
        OpDef(
            name=ANYTHING,
            operands=("x*",),
            infer=lambda types, attributes: (types[0],) * cast("int", attributes["results"]),
            evaluate=lambda node, tensors: (tensors[0],) * len(node.outputs),
            stages=frozenset(Stage),
            attributes={"results": 1, "first": None, "second": REQUIRED},
        )
    )


def small() -> Module:
    """`SMALL`, whose weight is the identity."""
    return parse_module(SMALL, {"w": torch.eye(4)})


def node_of(graph: Graph, op: str) -> Node:
    """The first node of `op`."""
    return next(node for node in graph.nodes if node.op == op)


class ConvNet(nn.Module):
    """Convolutions with a batch norm and a residual sum, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.branch(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@functools.cache
def conv_net(stage: Stage) -> Module:
    """`ConvNet` at `stage`, for reading only."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = ConvNet().eval(), torch.randn(4, 3, 8, 8)
    module = frontends.capture(model, x).module
    passes = {Stage.FLOAT: (), Stage.QUANTIZED: quantization_passes(), Stage.INTEGER: default_pipeline()}[stage]
    context = PassContext(load_target("int8_dsp_per_channel"), samples=[[x]], calibration_data=[[x]])
    PassManager(passes).run(module, context)
    assert module.main.stage is stage
    return module
