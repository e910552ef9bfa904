"""The user's model runs on copies, and nothing around it changes."""

from __future__ import annotations

import contextlib
import random
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CaptureError, InputError
from qcompiler.frontends import capture
from qcompiler.frontends.running import copy_model, first_line, plain, run, undisturbed
from tests.support.functions import Function, bound, numbers


class Watched(nn.Module):
    """Notes whether torch would keep what gradients need: every activation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(torch.is_grad_enabled())
        y: Tensor = self.linear(x)
        return y


SEEN: list[bool] = []


@pytest.mark.parametrize("outside", [torch.inference_mode, torch.enable_grad, torch.no_grad])
def test_no_activation_is_kept_for_gradients(outside: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    SEEN.clear()
    model = Watched().eval()
    with outside():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        capture(model, numbers(2, 4))
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert SEEN
    assert not any(SEEN)


def test_a_model_that_fails_is_named_with_module_inputs_and_reason() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 2)).eval()
    words = (
        r"does not run on the example inputs \(input: float32\[2, 3\]\): RuntimeError: .*mat1 and mat2 .* \(at 1\); "
        r"expected inputs that fit the model, whose parameters are float32"
    )
    with pytest.raises(InputError, match=words):
        run(model, bound(model, numbers(2, 3)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failure_outside_of_all_modules_has_its_line() -> None:
    def fails(x: Tensor) -> Tensor:
        raise KeyError("lost")

    model = Function(fails).eval()
    with pytest.raises(
        InputError, match=rf"KeyError: 'lost' \(at {__name__}:.*fails:\d+: `raise KeyError.*`\).*parameters are none"
    ):
        run(model, bound(model, numbers(2, 3)))


def test_a_copy_shares_parameters_only_if_asked() -> None:
    model = nn.BatchNorm1d(3)
    for share in (False, True):
        copied = copy_model(model, share_parameters=share)
        assert isinstance(copied, nn.BatchNorm1d)
        assert (copied.weight is model.weight) is share
        assert copied.running_mean is not model.running_mean


def test_tensors_with_a_history_are_copied_without_it() -> None:
    model = nn.Linear(3, 2)
    model.doubled = model.weight * 2
    doubled = copy_model(model).doubled
    assert isinstance(doubled, Tensor)
    assert doubled.is_leaf
    assert torch.equal(doubled, model.weight * 2)


def test_what_cannot_be_copied_is_named() -> None:
    model = nn.Linear(3, 2)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(CaptureError, match=r"the model cannot be copied: TypeError: cannot pickle '_thread.lock'"):
        copy_model(model)


def test_random_states_are_restored_and_warnings_kept_quiet() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    with undisturbed():
        random.random()
        np.random.rand()  # noqa: NPY002
        warnings.warn("about tracing", stacklevel=1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]  # noqa: NPY002


def test_autocast_of_the_caller_takes_no_part() -> None:
    layer, x = nn.Linear(3, 2), numbers(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), plain(torch.device("cpu")):
        assert layer(x).dtype == torch.float32


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert first_line(ValueError()) == "ValueError"
