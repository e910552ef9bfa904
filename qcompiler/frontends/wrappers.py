"""Removes wrappers that do not change the computation of a model."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from qcompiler.frontends.hosts import HostedNetwork
from qcompiler.ir.diagnostics import Diagnostic

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


def unwrap(model: object) -> tuple[object, list[Diagnostic]]:
    """The model inside DataParallel, DistributedDataParallel, AveragedModel, torch.compile and a split, at any depth.

    Args:
        model: A model; any other object is returned unchanged.

    Returns:
        The model, and one note per removed wrapper: the steps of the host if it is the network of `split_host`.
    """
    notes: list[Diagnostic] = []
    while (inner := _inside(model)) is not None:
        wrapper = {"wrapper": _name(model), "model": type(inner).__name__}
        notes.append(model.steps if isinstance(model, HostedNetwork) else Diagnostic("wrapper-removed", wrapper))
        model = inner
    return model, notes


def _inside(model: object) -> nn.Module | None:
    if isinstance(model, nn.Module) and isinstance(getattr(model, "_orig_mod", None), nn.Module):
        inner = model._orig_mod
    elif isinstance(model, _WRAPPERS):
        inner = model.module
    elif isinstance(model, HostedNetwork):
        inner = model.network
    else:
        return None
    return inner if isinstance(inner, nn.Module) else None


def _name(model: object) -> str:
    return "torch.compile" if hasattr(model, "_orig_mod") else type(model).__name__
