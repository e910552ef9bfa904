"""Small networks whose channels differ, and passes up to equalization: for tests of passes that rescale channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qcompiler import frontends
from qcompiler.ir.events import Record
from qcompiler.ir.graph import Module
from qcompiler.passes import Pass, PassContext, PassManager
from qcompiler.passes.calibrate_weights import CalibrateWeights
from qcompiler.passes.fix_ranges import FixRanges
from qcompiler.passes.insert_quantizers import InsertQuantizers
from qcompiler.passes.partition import Partition
from qcompiler.passes.unify_scales import UnifyScales
from qcompiler.session.pipeline import structural_passes
from qcompiler.targets import Target, load_target
from tests.support.running import outputs_of

FRONT = structural_passes()[0]
QUANTIZED = [Partition(), InsertQuantizers(), FixRanges(), UnifyScales(), CalibrateWeights()]
PLACES = ["canonical", "quantized"]


class Net(nn.Module):
    """Layers by name and a forward given from outside."""

    a: Any
    b: Any
    c: Any
    n: Any

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def measured(record: Record, name: str) -> float:
    """A figure of a record."""
    value = record.metrics[name]
    assert isinstance(value, int | float)
    return value


def wide(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Output channels of ranges over three decades."""
    assert isinstance(layer.weight, Tensor)
    count = layer.weight.shape[1 if isinstance(layer, nn.ConvTranspose2d) else 0]
    factors = 10 ** (torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 3 - 1.5)
    shape = (1, -1, 1, 1) if isinstance(layer, nn.ConvTranspose2d) else (-1, *[1] * (layer.weight.dim() - 1))
    with torch.no_grad():
        layer.weight *= factors.reshape(shape)
        if isinstance(layer.bias, Tensor):
            layer.bias *= factors
    return layer


def depthwise() -> Net:
    torch.manual_seed(3)
    layers: dict[str, nn.Module] = {}
    for index, (groups, width) in enumerate([(1, 16), (16, 16), (1, 16), (16, 16), (1, 8)]):
        before = 3 if index == 0 else 16
        layers[f"c{index}"] = nn.Conv2d(before, width, 3 if groups > 1 else 1, padding=int(groups > 1), groups=groups)
        layers[f"n{index}"] = nn.BatchNorm2d(width)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        for index in range(5):
            x = torch.relu(getattr(m, f"n{index}")(getattr(m, f"c{index}")(x)))
        return x

    net = Net(forward, **layers)
    with torch.no_grad():
        for _ in range(150):
            net.train()(torch.randn(16, 3, 8, 8))
    return net


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(1))


def placed(place: str, *passes: Pass) -> list[Pass]:
    """Both orders are legal: before and after quantizers are inserted."""
    return list(passes) if place == "canonical" else [Partition(), InsertQuantizers(), *passes]


def run_exactly(
    model: nn.Module, passes: Sequence[Pass], x: Tensor, target: Target, *, calibrate: bool = True
) -> tuple[Module, list[Record]]:
    """The passes after `FRONT`, on a graph that keeps the precision of the model, so that float64 shows mistakes."""
    captured = frontends.capture(model.eval(), x, precision="own").module
    context = PassContext(target, [[x]], [[x]] if calibrate else None)
    return captured, PassManager([*FRONT, *passes]).run(captured, context)


def run_alike(
    model: nn.Module, passes: Sequence[Pass], x: Tensor, *, calibrate: bool = True
) -> tuple[Module, list[Record]]:
    """The passes after `FRONT`, on a target that clamps all channels alike and has one table for all of them."""
    module = frontends.capture(model.eval(), x).module
    target = load_target("int8_dsp").override(fallback="float", per_channel_clamp=False, per_channel_tables=False)
    context = PassContext(target, [[x]], [[x]] if calibrate else None)
    return module, PassManager([*FRONT, *passes]).run(module, context)


def computed(subject: Module, x: Tensor) -> Tensor:
    """The output of a graph."""
    with torch.no_grad():
        return outputs_of(subject.main, [x])[0]


def expected(model: nn.Module, x: Tensor) -> Tensor:
    """The output of a model."""
    with torch.no_grad():
        result: Tensor = model(x)
    return result
