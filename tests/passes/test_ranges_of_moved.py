"""Moves that add elements, such as a border: the result has a grid that holds them, and none is clipped."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.targets import load_target, targets

SQNR = 30.0
"""dB. Eight bits over a range give 40 and more, of which far borders cost some: a value that is cut off leaves 0 to 10."""

Rule = Callable[[Tensor], "Tensor | tuple[Tensor, ...]"]


class Moved(nn.Module):
    """A convolution, and what is done with its result."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.conv = nn.Conv2d(3, 4, 3)
        self.other = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.rule(self.conv(x))


def _pad(value: float, amounts: tuple[int, ...] = (1, 1)) -> Rule:
    return lambda x: functional.pad(x, amounts, value=value)


NEVER = float("-inf")
CHEQUERS = torch.arange(9) % 2 == 0
RULES: dict[str, Rule] = {
    "pad with more": _pad(5.0),
    "pad with less": lambda x: functional.pad(functional.relu(x), (1, 1), value=-5.0),
    "pad with far more": _pad(60.0),
    "pad on another grid than other readers": lambda x: (functional.pad(x, (1, 1), value=60.0), functional.relu(x)),
    "pad with zero what is above": lambda x: functional.pad(x.clamp(1.0, 6.0), (1, 1)),
    "pad a fixed grid": lambda x: functional.pad(torch.sigmoid(x), (1, 1), value=5.0),
    "pad twice": lambda x: functional.pad(functional.pad(x, (1, 1), value=3.0), (1, 1), value=-7.0),
    "pad what is moved": lambda x: functional.pad(x.flatten(2), (1, 1), value=4.0),
    "pad and activate": lambda x: functional.relu(functional.pad(x, (1, 1), value=4.0)),
    "pad and join": lambda x: torch.cat([functional.pad(x, (1, 1), value=3.0), functional.pad(x, (0, 2), value=-7.0)]),
    "pad with nothing, and pool": lambda x: functional.max_pool2d(_never(x), 2),
    "pad far below, and pool": lambda x: functional.max_pool2d(functional.pad(x, (1, 0, 1, 0), value=-1e9), 2),
    "pad above, and pool": lambda x: functional.max_pool2d(functional.pad(x, (1, 0, 1, 0), value=9.0), 2),
    "pad with nothing, and activate": lambda x: functional.relu(_never(x)),
    "pad far below, and softmax": lambda x: torch.softmax(functional.pad(x, (1, 0), value=-1e4), -1),
    "pad and crop": lambda x: functional.pad(x, (2, -1, -1, 2), value=6.0),
    "reflect": lambda x: functional.pad(x, (2, 1, 0, 3), mode="reflect"),
    "replicate": lambda x: functional.pad(x, (2, 1, 0, 3), mode="replicate"),
    "max pool with a padding": lambda x: functional.max_pool2d(x - 3.0, 3, 1, 1),
    "average of a padding": lambda x: functional.avg_pool2d(x.clamp(1.0, 6.0), 3, 1, 1),
    "sum of windows": lambda x: functional.avg_pool2d(x, 3, divisor_override=1),
    "small share of windows": lambda x: functional.avg_pool2d(x, 2, divisor_override=100),
    "sum of windows past the end": lambda x: functional.avg_pool2d(
        x + 3.0, 4, 3, 1, ceil_mode=True, divisor_override=2
    ),
    "cat of a constant": lambda x: torch.cat([x, torch.full_like(x, 9.0)], 1),
    "stack": lambda x: torch.stack([x, 0.5 * x], 1),
    "where": lambda x: torch.where(CHEQUERS, x, torch.full_like(x, -9.0)),
    "masked fill": lambda x: x.masked_fill(CHEQUERS, 12.0),
    "scatter": lambda x: x.scatter(1, torch.zeros_like(x[:, :1], dtype=torch.int64), 9.0),
    "index fill": lambda x: x.index_fill(1, torch.tensor([1]), 7.0),
    "bicubic": lambda x: functional.interpolate(x, scale_factor=2.0, mode="bicubic"),
    "bilinear": lambda x: functional.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "expand": lambda x: x[:, :1].expand(-1, 5, -1, -1) * 2.0,
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "roll": lambda x: torch.roll(x, 2, -1),
    "flip": lambda x: x.flip(-1),
    "index select": lambda x: torch.index_select(x, 1, torch.tensor([3, 0, 0])),
    "unfold": lambda x: functional.unfold(x, 3, padding=1),
}


def _never(x: Tensor) -> Tensor:
    return functional.pad(x, (1, 0, 1, 0), value=NEVER)


def _sqnr(expected: Tensor, found: Tensor) -> float:
    noise = float((found.double() - expected.double()).square().sum())
    return math.inf if not noise else 10.0 * math.log10(float(expected.double().square().sum()) / noise)


def _ratios(name: str, target: str, verify: Literal["error", "off"]) -> list[float]:
    torch.manual_seed(0)
    model = Moved(RULES[name]).eval()
    data = [torch.randn(4, 3, 11, 11) for _ in range(3)]
    hardware = load_target(target).override(fallback="float")
    compiled = qcompiler.compile(model, hardware, calibration_data=data, verify=verify)
    with torch.no_grad():
        expected, found = model(data[0]), compiled.run(data[0])
    if isinstance(expected, Tensor):
        return [_sqnr(expected, cast("Tensor", found))]
    return [_sqnr(old, new) for old, new in zip(expected, cast("tuple[Tensor, ...]", found), strict=True)]


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_cut_off(name: str) -> None:
    assert min(_ratios(name, "int8_dsp", verify="off")) > SQNR


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("target", [name for name in targets() if load_target(name).descriptor.simulation is None])
def test_nothing_is_cut_off_on_any_target(target: str, name: str) -> None:
    hardware = load_target(target)
    ratios = _ratios(name, target, verify="error")
    # Weights of four bits lose more than the borders; steps of powers of two are up to twice as wide.
    least = 20.0 if hardware.weight_bits < 8 else SQNR - 6.0 if target == "pow2_mcu" else SQNR
    assert min(ratios) > least


def test_only_what_shows_gets_a_grid_of_its_own() -> None:
    """A border that no window can choose, and zeros, cost nothing."""

    def quantizers(rule: Rule) -> int:
        torch.manual_seed(0)
        data = [torch.randn(4, 3, 11, 11)]
        compiled = qcompiler.compile(Moved(rule).eval(), "int8_dsp", calibration_data=data, verify="off")
        quantized = [node for node in compiled.quantized.main.nodes if node.op == "fake_quantize"]
        instructions = [item.op for item in compiled.artifact.program.program.instructions]
        assert "rescale" not in instructions
        return len(quantized)

    plain = quantizers(lambda x: functional.max_pool2d(functional.pad(x, (1, 0, 1, 0)), 2))
    assert quantizers(RULES["pad with nothing, and pool"]) == plain
    assert quantizers(RULES["pad far below, and pool"]) == plain
    assert quantizers(RULES["pad above, and pool"]) == plain + 1
