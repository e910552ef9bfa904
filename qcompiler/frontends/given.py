"""Checks of the model and the device that the user gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from qcompiler.errors import GraphError, InputError
from qcompiler.frontends.finite import not_finite
from qcompiler.frontends.trace import GUARDS
from qcompiler.ir.types import DType


def check_kind(model: object) -> nn.Module | ExportedProgram:
    """`model`, if its type can be captured.

    Raises:
        InputError: The model has another type, or a parameter or buffer has no values or holds NaN or infinity.
    """
    if isinstance(model, ExportedProgram):
        parameters = set(model.graph_signature.parameters)
        for name, tensor in model.state_dict.items():
            _check_held(name, tensor, is_parameter=name in parameters)
        return model
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the model is a TorchScript module", fix="Pass the module from which it was scripted.")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model is {_kind(model)}",
            expected="an nn.Module, a GraphModule or an ExportedProgram",
            fix=_way_to_module(model),
        )
    for name, parameter in model.named_parameters():
        _check_held(name, parameter, is_parameter=True)
    for name, buffer in model.named_buffers():
        _check_held(name, buffer, is_parameter=False)
    return model


def _kind(model: object) -> str:
    if isinstance(model, type):
        return f"the class {model.__name__}"
    if isinstance(model, Mapping):
        return f"a state dict: a {type(model).__name__} of {len(model)} entries"
    return f"a {type(model).__name__}"


def _way_to_module(model: object) -> str | None:
    if isinstance(model, Mapping):
        return "Create the module, call model.load_state_dict(state), and compile model.eval()."
    if isinstance(model, type):
        return f"Create an instance: {model.__name__}(...)."
    if callable(model):
        return "Write an nn.Module whose forward calls it."
    return None


def _check_held(name: str, tensor: Tensor, *, is_parameter: bool) -> None:
    what = f"the {'parameter' if is_parameter else 'buffer'} {name!r}"
    if nn.parameter.is_lazy(tensor):
        raise InputError(f"{what} has no shape yet", fix="Run the model once on real inputs.")
    if tensor.is_meta:
        raise InputError(f"{what} is on the meta device and has no values", fix="Load the weights first.")
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout)
        raise InputError(f"{what} is a {kind} tensor", expected="a dense tensor")
    try:
        DType.of(tensor.dtype)
    except GraphError as error:
        raise InputError(f"{what} has the element type {tensor.dtype}", expected=error.expected) from None
    if not tensor.is_floating_point():
        return
    # A buffer may hold infinities on purpose: a mask that is added to scores.
    right = tensor.isfinite() if is_parameter else ~tensor.isnan()
    if not bool(right.all()):
        raise InputError(
            f"{what} contains {not_finite([tensor])} in {int((~right).sum())} of {tensor.numel()} elements",
            expected="finite numbers",
            fix="Check how it was trained or loaded.",
        )


def check_mode(model: nn.Module) -> None:
    """Refuse a model in train mode.

    Raises:
        InputError: Modules are in train mode; the error names them.
    """
    # These have no mode: a graph of torch calls, the bare modules that hold its tensors, and the input checks that
    # torch.export adds.
    checks = {f"{name}.{GUARDS}".lstrip(".") for name, m in model.named_modules() if isinstance(m, fx.GraphModule)}
    training = [
        name or "the model itself"
        for name, module in model.named_modules()
        if module.training
        and not isinstance(module, fx.GraphModule)
        and type(module) is not nn.Module
        and name not in checks
    ]
    if training:
        shown = ", ".join(training[:3]) + (f" and {len(training) - 3} more" if len(training) > 3 else "")
        raise InputError(f"modules are in train mode: {shown}", expected="eval mode", fix="Call model.eval() first.")


def parse_device(device: torch.device | str) -> torch.device:
    """The device itself, with its index.

    Raises:
        InputError: This machine has no such device, or the device holds no values.
    """
    try:
        found = torch.empty(0, device=device).device
    except Exception as error:  # torch raises RuntimeError or AssertionError, by the kind of device
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            f"the device is {str(device)!r}: {type(error).__name__}: {first}",
            expected="a device of this machine",
            fix="Omit device= to use the device of the model.",
        ) from error
    if found.type == "meta":
        raise InputError("the device is 'meta', which has no values", expected="a device of this machine")
    return found
