"""Second spellings of what is supported: verified in every form, and as accurate as the plain spelling."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qcompiler

TARGETS = ("int8_dsp", "tflite_int8", "pow2_mcu", "w4a8_npu", "ort_cpu", "cmsis_nn")
Make = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions, of which `make` uses one or both."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.deviation = nn.Buffer(torch.linspace(0.2, 1.5, 3).reshape(3, 1, 1))
        self.order = nn.Buffer(torch.tensor([5, 0, 3, 3, 7, 1]))
        self.mask = nn.Buffer(torch.arange(36).reshape(6, 6) % 3 == 0)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(self, x)


def with_edges(x: Tensor) -> Tensor:
    wide = torch.cat([x[..., :1], x, x[..., -1:]], -1)
    return torch.cat([wide[:, :, :1], wide, wide[:, :, -1:]], -2)


def mirrored(x: Tensor) -> Tensor:
    wide = torch.cat([x[..., 1:2], x, x[..., -2:-1]], -1)
    return torch.cat([wide[:, :, 1:2], wide, wide[:, :, -2:-1]], -2)


def joined(x: Tensor, places: list[int], axis: int = 1) -> Tensor:
    return torch.cat([x.narrow(axis, place, 1) for place in places], axis)


def class_token(m: Net, x: Tensor) -> Tensor:
    return torch.cat([m.token.expand(x.shape[0], -1, -1), m.first(x).flatten(2).mT], 1)


def by_assignment(m: Net, x: Tensor) -> Tensor:
    y = m.first(x)
    o = torch.zeros_like(y)
    o[:, :2], o[:, 2:] = y[:, 6:], y[:, :6]
    result: Tensor = m.second(o)
    return result


def by_slices_of_memory(m: Net, x: Tensor) -> Tensor:
    y = m.first(x)
    o = y.new_empty(y.shape)
    o[:, :4], o[:, 4:] = y[:, 4:], y[:, :4]
    result: Tensor = m.second(o)
    return result


def every_other_channel(m: Net, x: Tensor) -> Tensor:
    y = m.first(x)
    o = y.new_zeros(y.shape)
    o[:, ::2], o[:, 1::2] = y[:, :4], y[:, 4:]
    result: Tensor = m.second(o)
    return result


def constant_assigned(m: Net, x: Tensor) -> Tensor:
    y: Tensor = m.first(x).clone()
    y[:, :3] = m.deviation
    result: Tensor = m.second(y)
    return result


def by_fill(m: Net, x: Tensor) -> Tensor:
    y: Tensor = m.first(x).clone()
    y[:, :, :2] = 0
    return y


PAIRS: dict[str, tuple[Make, Make]] = {
    "divided by a tensor": (lambda m, x: m.first(x / m.deviation), lambda m, x: m.first(x * (1 / m.deviation))),
    "reflected": (lambda m, x: m.second(F.pad(m.first(x), (1, 1, 1, 1), "reflect")), lambda m, x: m.second(mirrored(m.first(x)))),
    "replicated": (lambda m, x: m.second(F.pad(m.first(x), (1, 1, 1, 1), "replicate")), lambda m, x: m.second(with_edges(m.first(x)))),
    "by indices": (lambda m, x: m.first(x)[:, m.order], lambda m, x: joined(m.first(x), [5, 0, 3, 3, 7, 1])),
    "index_select": (lambda m, x: m.first(x).index_select(1, m.order), lambda m, x: joined(m.first(x), [5, 0, 3, 3, 7, 1])),
    "flipped": (lambda m, x: m.second(m.first(x).flip(1)), lambda m, x: m.second(joined(m.first(x), [7, 6, 5, 4, 3, 2, 1, 0]))),
    "rolled": (lambda m, x: m.second(m.first(x).roll(2, 3)), lambda m, x: m.second(torch.cat([m.first(x)[..., -2:], m.first(x)[..., :-2]], 3))),
    "tiled": (lambda m, x: m.first(x).tile(2), lambda m, x: torch.cat([m.first(x)] * 2, 3)),
    "expanded": (lambda m, x: m.second(m.first(x).mean((2, 3), True).expand(-1, -1, 5, 5)), lambda m, x: m.second(m.first(x).mean((2, 3), True) + torch.zeros(5, 5))),
    "moved": (lambda m, x: m.first(x).movedim(1, -1), lambda m, x: m.first(x).permute(0, 2, 3, 1)),
    "largest of images": (lambda m, x: m.first(x).amax((2, 3), True), lambda m, x: F.max_pool2d(m.first(x), 6)),
    "largest of channels": (lambda m, x: m.first(x)[:, :2].amax(1, True), lambda m, x: torch.maximum(m.first(x)[:, :1], m.first(x)[:, 1:2])),
    "smallest of channels": (lambda m, x: m.first(x)[:, :2].min(1).values, lambda m, x: torch.minimum(m.first(x)[:, 0], m.first(x)[:, 1])),
    "sum": (lambda m, x: m.first(x).sum((2, 3)), lambda m, x: m.first(x).mean((2, 3)) * 36),
    "addcmul": (lambda m, x: torch.addcmul(m.first(x), m.first(x), m.first(x), value=0.5), lambda m, x: m.first(x) + m.first(x) * m.first(x) * 0.5),
    "cube": (lambda m, x: m.first(x) ** 3, lambda m, x: m.first(x) * m.first(x) * m.first(x)),
    "root": (lambda m, x: m.first(x).relu() ** 0.5, lambda m, x: m.first(x).relu().sqrt()),
    "masked": (lambda m, x: m.first(x).masked_fill(m.mask, 0.0), lambda m, x: m.first(x) * (~m.mask).float()),
    "chosen": (lambda m, x: torch.where(m.mask, m.first(x), 0.25), lambda m, x: m.first(x) * m.mask.float() + 0.25 * (~m.mask).float()),
    "class token": (class_token, lambda m, x: F.pad(m.first(x).flatten(2).mT, (0, 0, 1, 0)) + torch.cat([m.token, torch.zeros(1, 36, 8)], 1)),
    "samples of zeros": (lambda m, x: torch.cat([torch.zeros(x.shape[0], 2, 6, 6), m.first(x)], 1), lambda m, x: F.pad(m.first(x), (0, 0, 0, 0, 2, 0))),
    "by assignment": (by_assignment, lambda m, x: m.second(torch.cat([m.first(x)[:, 6:], m.first(x)[:, :6]], 1))),
    "by fill": (by_fill, lambda m, x: F.pad(m.first(x)[:, :, 2:], (0, 0, 2, 0))),
    "filled memory": (by_slices_of_memory, lambda m, x: m.second(torch.cat([m.first(x)[:, 4:], m.first(x)[:, :4]], 1))),
    "every other channel": (every_other_channel, lambda m, x: m.second(m.first(x)[:, [0, 4, 1, 5, 2, 6, 3, 7]])),
    "a constant assigned": (constant_assigned, lambda m, x: m.second(F.pad(m.first(x)[:, 3:], (0, 0, 0, 0, 3, 0)) + torch.cat([m.deviation.expand(3, 6, 6), torch.zeros(5, 6, 6)]))),
    "by indices of a buffer": (lambda m, x: m.first(x)[:, :, m.order[1:4]], lambda m, x: joined(m.first(x), [0, 3, 3], 2)),
    "by pairs": (lambda m, x: m.first(x)[:, m.order, m.order % 6], lambda m, x: m.first(x).flatten(1, 2)[:, [35, 0, 21, 21, 43, 7]]),
    "by a mask of pixels": (lambda m, x: m.first(x)[:, :, m.mask], lambda m, x: m.first(x).flatten(2)[:, :, ::3]),
    "limits as tensors": (lambda m, x: m.first(x).clamp(torch.tensor(-0.5), torch.tensor(0.5)), lambda m, x: m.first(x).clamp(-0.5, 0.5)),
    "both extremes": (lambda m, x: sum(m.first(x).aminmax(dim=1)), lambda m, x: m.first(x).amin(1) + m.first(x).amax(1)),
    "method of a choice": (lambda m, x: m.first(x).where(m.mask, torch.zeros(())), lambda m, x: m.first(x) * m.mask.float()),
    "another root": (lambda m, x: (m.first(x).relu() + 1) ** -0.25, lambda m, x: (m.first(x).relu() + 1).sqrt().rsqrt()),
}  # fmt: skip
"""A spelling, and the plain spelling of the same function."""


def net(make: Make) -> nn.Module:
    model = Net(make).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def images() -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def decibels(model: nn.Module, target: str) -> float:
    """Signal to noise ratio of the verified program, dB."""
    x = images()
    compiled = qcompiler.compile(model, target, calibration_data=[x], effort="fast")
    assert compiled.verification is not None
    assert compiled.verification.passed
    assert not any(item.op == "call" for item in compiled.artifact.program.program.instructions)
    expected, found = model(x).detach(), compiled.run(x)
    assert isinstance(found, Tensor)
    noise = float((found - expected).double().square().sum())
    return 10 * math.log10(float(expected.double().square().sum()) / max(noise, 1e-30))


@pytest.mark.parametrize("name", PAIRS)
def test_a_spelling_is_as_accurate_as_the_plain_one(name: str) -> None:
    spelled, plain = (net(make) for make in PAIRS[name])
    torch.testing.assert_close(spelled(images()), plain(images()))
    assert decibels(spelled, "int8_dsp") >= decibels(plain, "int8_dsp") - 0.5


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["reflected", "by indices", "smallest of channels", "another root"])
def test_every_target_has_them(name: str, target: str) -> None:
    assert decibels(net(PAIRS[name][0]), target) > 15


@pytest.mark.parametrize("name", ["flipped", "rolled", "divided by a tensor", "by assignment", "class token"])
def test_exported_programs_have_them(name: str) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net(PAIRS[name][0]), (images(),), dynamic_shapes=({0: batch},))
    compiled = qcompiler.compile(program, calibration_data=[images()], effort="fast")
    assert compiled.verification is not None
    assert compiled.verification.passed


@pytest.mark.parametrize("name", ["reflected", "by indices", "cube"])
def test_gradients_pass_them(name: str) -> None:
    x = images()
    module = qcompiler.prepare_qat(net(PAIRS[name][0]), "int8_dsp", example_inputs=(x,), calibration_data=[x]).train()
    module(x).square().sum().backward()
    weights = [item.grad for key, item in module.named_parameters() if key == "first.weight"]
    assert all(grad is not None and bool(grad.isfinite().all()) and bool(grad.any()) for grad in weights)


def test_indices_without_a_pattern_move_in_runs() -> None:
    from qcompiler.backends.integer.c.rules.movement import runs_of

    assert runs_of([3, 2, 1, 0]) == [(3, (4, -1), (1, 0))]
    assert runs_of([0, 0, 1, 1, 2, 2]) == [(0, (3, 1), (2, 0))]
    assert runs_of([0, 1, 2, 0, 1, 2]) == [(0, (2, 0), (3, 1))]
    assert runs_of([5, 6, 7, 1, 0]) == [(5, (1, 0), (3, 1)), (1, (1, 0), (2, -1))]
    assert runs_of([4]) == [(4, (1, 0), (1, 0))]


BYTES: dict[str, Make] = {
    "float": lambda m, x: m.first(x.float() / 255),
    "to": lambda m, x: m.first((x.to(torch.float32) - 127.5) / 127.5),
    "divided": lambda m, x: m.first(x / 255),
    "normalized": lambda m, x: m.first((x.type(torch.float32) * (1 / 255) - 0.45) / m.deviation),
}
"""Spellings of a model whose input is bytes."""


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_inputs_of_every_form(name: str) -> None:
    model = net(BYTES[name])
    x = torch.randint(0, 256, (8, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    compiled = qcompiler.compile(model, calibration_data=[x], effort="fast", io="uint8")
    assert compiled.verification is not None
    assert compiled.verification.passed
    ops = {item.op for item in compiled.artifact.program.program.instructions}
    assert ops <= {"quantize", "rescale", "slice", "pad", "concat", "int_conv2d", "dequantize"}
    (codes,) = compiled.run_integer(x)
    assert codes.dtype == torch.uint8
    expected, found = model(x).detach(), compiled.run(x)
    assert isinstance(found, Tensor)
    assert torch.equal(found, compiled.simulate(x))  # type: ignore[arg-type]
    assert 10 * math.log10(float(expected.square().sum() / (found - expected).square().sum())) > 30


def test_without_data_the_range_of_bytes_is_known() -> None:
    x = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    compiled = qcompiler.compile(net(BYTES["float"]), example_inputs=(x,), effort="fast", io="uint8")
    program = compiled.artifact.program.program
    grid = next(program.tensors[item.output] for item in program.instructions if item.op == "quantize")
    assert grid.scale == (1.0,)
    assert grid.zero_point == (0,)
