"""A module of torch as a source: torch.fx first, torch.export where that fails."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CaptureError, InputError
from qcompiler.frontends import capture
from qcompiler.frontends.examples import bind_example
from qcompiler.frontends.torch_module import TorchModule, device_of
from tests.support.functions import Function, bound, numbers
from tests.support.running import outputs_of


class LoopOnShape(nn.Module):
    """torch.fx cannot iterate over a proxy, torch.export can."""

    def forward(self, x: Tensor) -> Tensor:
        total = x[:, 0]
        for channel in x.unbind(1)[1:]:
            total = total + channel
        return torch.relu(total)


def test_what_fx_cannot_trace_is_exported() -> None:
    x = numbers(2, 3, 4)
    captured = capture(LoopOnShape().eval(), x)
    assert captured.route == "export"
    assert torch.equal(outputs_of(captured.module.main, [x])[0], torch.relu(x[:, 0] + x[:, 1] + x[:, 2]))


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


def test_what_neither_can_trace_names_the_line_and_both_reasons() -> None:
    line = inspect.getsourcelines(Decides.forward)[1] + 1
    with pytest.raises(CaptureError) as caught:
        capture(Decides().eval(), numbers(2, 3))
    message = str(caught.value)
    assert "neither by torch.fx (" in message
    assert "nor by torch.export (" in message
    assert f"(at {__name__}:Decides.forward:{line}: `if x.sum() > 0:`)" in message
    assert message.count("if x.sum() > 0:") == 1


def test_a_line_without_a_file_is_quoted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, whose module has no file: the place cannot be looked up later."""
    monkeypatch.delattr(sys.modules[__name__], "__file__")
    with pytest.raises(CaptureError) as caught:
        capture(Decides().eval(), numbers(2, 3))
    assert str(caught.value).count("if x.sum() > 0:") == 1


def test_a_module_is_named_after_its_class_and_called_like_its_forward() -> None:
    source = TorchModule(nn.Linear(3, 2))
    assert source.name == "Linear"
    assert list(source.signature().parameters) == ["input"]
    assert source.example() is None
    assert source.place(bound(source.model, numbers(2, 3)), None) == torch.device("cpu")


def test_a_module_in_train_mode_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(InputError, match="modules are in train mode: 1; expected eval mode"):
        TorchModule(model).reference(torch.device("cpu"))


def test_the_reference_is_a_copy() -> None:
    model = nn.Linear(3, 2).eval()
    reference = TorchModule(model).reference(torch.device("cpu"))
    assert isinstance(reference, nn.Linear)
    assert torch.equal(reference.weight, model.weight)
    assert reference.weight.data_ptr() != model.weight.data_ptr()


def test_a_second_graph_is_offered_only_for_what_torch_fx_traced() -> None:
    x = numbers(2, 3)
    traced = torch.fx.symbolic_trace(Function(lambda x: x * 2).eval())
    assert capture(traced, x).route == "given"
    custom = capture(Function(lambda x: torch.cumsum(x, 1)).eval(), x)
    assert custom.route == "fx"
    both = capture(Function(lambda x: x[:, [[0, 1], [1, 2]]]).eval(), x)
    assert both.route == "export"
    assert str(both.diagnostics[-1]).startswith("Captured with torch.export because torch.fx failed: ")


def test_a_model_on_two_devices_and_inputs_on_another_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(InputError, match=r"spread over several devices: '0.weight' on cpu, '1.weight' on meta"):
        device_of(model, bind_example(inspect.signature(model.forward), numbers(2, 3)))
    far = bind_example(inspect.signature(model[1].forward), numbers(2, 2))
    with pytest.raises(InputError, match="the example input 'input' is on cpu and the model on meta"):
        device_of(model[1], far)
    assert device_of(nn.ReLU(), far) == torch.device("cpu")


@pytest.mark.gpu
def test_inputs_on_another_device_are_refused() -> None:
    with pytest.raises(InputError, match="cuda"):
        capture(nn.Linear(3, 2).eval(), numbers(2, 3).cuda())
