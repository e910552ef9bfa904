"""Runs of the user's model: on copies, without changes to its random state and torch's settings."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from qcompiler.errors import CaptureError, InputError, UnsupportedError
from qcompiler.frontends.examples import WAYS, Binding
from qcompiler.frontends.locations import failing_line


def run(model: nn.Module, binding: Binding) -> object:
    """The model's result on the example.

    Raises:
        InputError: The model fails; the error names the module and gives torch's reason.
        UnsupportedError: The model of a source refuses to run.
    """
    entered: list[str] = []

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: entered.append(path)

    def leave(*_: object) -> None:
        entered.pop()

    handles = []
    for path, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        result = binding.call(model, binding.tensors)
    except UnsupportedError:
        raise  # the model of a source that refuses to run
    except Exception as error:
        described = ", ".join(
            f"{name}: {str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
            for name, x in zip(binding.tensor_names(), binding.tensors, strict=True)
        )
        floats = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
        raise InputError(
            f"the model does not run on the example inputs ({described}): {first_line(error)}",
            where=entered[-1] if entered and entered[-1] else failing_line(error)[0],
            expected=f"inputs that fit the model, whose parameters are {' and '.join(floats) or 'none'}",
            fix=WAYS,
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return result


def copy_model(model: nn.Module, share_parameters: bool = False) -> nn.Module:
    """A deep copy, so that a run cannot change the user's model.

    Raises:
        CaptureError: The model contains an object that cannot be copied.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()  # deepcopy refuses tensors with a gradient history
    if share_parameters:
        memo |= {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a __deepcopy__ may raise any error
        raise CaptureError(
            f"the model cannot be copied: {first_line(error)}",
            where=type(model).__name__,
            expected="a model that copy.deepcopy can copy",
            fix="Remove locks, files and handles from the modules.",
        ) from error


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restore the random states afterwards, and suppress torch's warnings about tracing."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global state, which a forward may use
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def plain(device: torch.device) -> Iterator[None]:
    """Run without the caller's autocast and inference mode, which are not part of the model.

    Leaving inference mode turns gradients on, which would keep every activation, so they are turned off.
    """
    with torch.inference_mode(mode=False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def first_line(error: BaseException) -> str:
    """The class and the first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
