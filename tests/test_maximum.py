"""The larger and the smaller of two activations, in every form, on every target and in training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import qcompiler
from qcompiler.errors import UnsupportedError

Make = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions, whose results `make` combines."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.register_buffer("level", torch.randn(8, 1, 1) * 0.01)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(self, x)


def net(make: Make) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = Net(make).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model, torch.randn(4, 3, 8, 8, generator=generator)


def with_itself(m: Net, x: Tensor) -> Tensor:
    a = m.left(x)
    return torch.maximum(a, a)


def passes(compiled: qcompiler.Compiled) -> bool:
    """Whether all forms agree."""
    return compiled.verification is not None and compiled.verification.passed


CASES: dict[str, Make] = {
    "two layers": lambda m, x: torch.maximum(m.left(x), m.right(x)),
    "a layer and itself": with_itself,
    "a constant": lambda m, x: torch.minimum(m.left(x), m.level),  # type: ignore[arg-type]
    "a number": lambda m, x: torch.maximum(m.left(x), torch.tensor(0.25)),
    "inputs": lambda m, x: torch.max(x, -x),
    "halves": lambda m, x: torch.maximum(*m.left(x).chunk(2, 1)),
    "behind activations": lambda m, x: torch.minimum(functional.relu(m.left(x)), torch.sigmoid(m.right(x))),
    "in front of one": lambda m, x: functional.relu(torch.max(m.left(x), m.right(x))) + 1.0,
    "broadcast": lambda m, x: torch.maximum(m.left(x), m.right(x).mean((2, 3), keepdim=True)),
    "in a row": lambda m, x: torch.min(torch.max(m.left(x), m.right(x)), m.left(x) * 0.5),
    "joined": lambda m, x: torch.cat([torch.maximum(m.left(x), m.right(x)), torch.tanh(m.right(x))], 1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("with_data", [True, False])
def test_all_forms_agree_and_are_near_the_model(name: str, with_data: bool) -> None:
    model, x = net(CASES[name])
    compiled = qcompiler.compile(model, example_inputs=(x,), calibration_data=[x] if with_data else None)
    assert passes(compiled)
    ops = {item.op for item in compiled.artifact.program.program.instructions}
    assert bool(ops & {"maximum", "minimum"}) is (name != "a number")  # which is a limit of the codes
    expected = model(x).detach()
    found = compiled.simulate(x)
    assert isinstance(found, Tensor)
    share = 0.06 if with_data else 0.15  # of ranges without data, some are wide
    assert float((found - expected).abs().max()) < share * float(expected.abs().max())


@pytest.mark.parametrize("target", [name for name in qcompiler.targets() if name != "lsq_paper"])
def test_every_target_has_them(target: str) -> None:
    model, x = net(CASES["in a row"])
    assert passes(qcompiler.compile(model, target, calibration_data=[x]))


def test_the_indices_of_one_tensor_are_no_real_numbers() -> None:
    model, x = net(lambda m, x: m.left(x).max(1, keepdim=True).indices.float())
    with pytest.raises(UnsupportedError, match="no integer convert"):
        qcompiler.compile(model, calibration_data=[x])


def test_gradients_go_to_the_operand_that_won() -> None:
    model, x = net(CASES["two layers"])
    module = qcompiler.prepare_qat(model, "int8_dsp", example_inputs=(x,), calibration_data=[x]).train()
    module(x).sum().backward()
    gradients = {name: item.grad for name, item in module.named_parameters() if name.endswith("weight")}
    assert len(gradients) == 2
    assert all(grad is not None and bool(torch.isfinite(grad).all()) and grad.any() for grad in gradients.values())
    assert passes(qcompiler.compile(module.eval()))
