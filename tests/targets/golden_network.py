"""A small network whose integer graph is written down for every shipped target: `python -m tests.targets.golden_network`.

All numbers in it are multiples of powers of two, and all sums are exact in float32, so that no machine finds other ranges.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler import frontends
from qcompiler.ir.graph import Module
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.text import print_graph
from qcompiler.passes.base import PassContext
from qcompiler.passes.manager import PassManager
from qcompiler.passes.merge_branches import MergeBranches
from qcompiler.session.pipeline import default_pipeline
from qcompiler.targets import Target, load_target

GOLDEN = Path(__file__).with_name("golden")


class Network(nn.Module):
    """Convolutions of both kinds, an addition, a table, a product, averages and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                parameter.copy_(numbers(parameter.shape, index) / 2.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.first(x))
        z = self.depthwise(y) + y
        gate = torch.sigmoid(z.clamp(max=0.0))  # 1/2 at most, which is exact
        both = torch.cat([functional.avg_pool2d(y * y, 2), functional.max_pool2d(y, 2)], 1)
        return self.head(both.mean((2, 3))), gate


def numbers(shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    """Whole numbers from -3 to 3, the same on every machine."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * (5 + 2 * seed) + 3 * seed) % 7 - 3).reshape(shape).to(torch.float32)


INPUT = numbers((4, 2, 4, 4), 3) / 4.0


def lowered(target: Target) -> Module:
    """The integer graph of the network."""
    module = frontends.capture(Network().eval(), (INPUT,)).module
    every = default_pipeline("fast", per_channel=target.per_channel)
    passes = [item for item in every if not isinstance(item, MergeBranches)]  # the addition is to stay
    PassManager(passes).run(module, PassContext(target, calibration_data=[[INPUT]]))
    return module


def golden_text(target: Target) -> str:
    """The graph, and the constants from which it requantizes; of long ones the sha256 of their bytes."""
    module = lowered(target)
    lines = [print_graph(module.main, locations=False).rstrip(), ""]
    for node in module.main.nodes:
        if node.op not in LEAVES:
            continue
        tensor = module.tensors[str(node.attributes["ref"])].detach()
        if tensor.numel() <= 8:
            content = " ".join(map(str, tensor.reshape(-1).tolist()))
        else:
            content = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
        lines.append(f"{node.attributes['ref']}: {content}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write what differs, to be looked at before it is committed."""
    for name in qcompiler.targets():
        if load_target(name).simulation is not None:
            continue
        path, text = GOLDEN / f"{name}.txt", golden_text(load_target(name))
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.name}")  # noqa: T201  # it is a program


if __name__ == "__main__":
    main()
