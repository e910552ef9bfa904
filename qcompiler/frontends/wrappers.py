"""Removes wrappers that do not change the computation of a model."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from qcompiler.ir.diagnostics import Diagnostic

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


def unwrap(model: object) -> tuple[object, list[Diagnostic]]:
    """The model inside DataParallel, DistributedDataParallel, AveragedModel and torch.compile, at any depth.

    Args:
        model: A model; any other object is returned unchanged.

    Returns:
        The model, and one note per removed wrapper.
    """
    notes: list[Diagnostic] = []
    while (inner := _inside(model)) is not None:
        notes.append(Diagnostic("wrapper-removed", {"wrapper": _name(model), "model": type(inner).__name__}))
        model = inner
    return model, notes


def _inside(model: object) -> nn.Module | None:
    if isinstance(model, nn.Module) and isinstance(getattr(model, "_orig_mod", None), nn.Module):
        inner = model._orig_mod
    elif isinstance(model, _WRAPPERS):
        inner = model.module
    else:
        return None
    return inner if isinstance(inner, nn.Module) else None


def _name(model: object) -> str:
    return "torch.compile" if hasattr(model, "_orig_mod") else type(model).__name__
