"""Detection of the first training step that makes a parameter or running statistic NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError
from qcompiler.training.batch_norm import BatchNorm
from qcompiler.training.quantizer import Quantizer

__all__ = ["check_finite"]


@torch.no_grad()
def check_finite(module: nn.Module, step: int) -> None:
    """Refuse parameters or running statistics that are not finite.

    The check reads each tensor once and synchronizes on one small tensor: a few milliseconds for ten million weights.
    Statistics can break alone: a forward updates them even if a loss scaler skips the optimizer step.

    Args:
        module: Training module.
        step: Number of the last optimizer step, from 1.

    Raises:
        CalibrationError: A parameter or a running statistic holds NaN or infinity; quantizer parameters are reported
            first, statistics last.
    """
    statistics = dict(_statistics(module))
    candidates = [*module.named_parameters(), *statistics.items()]
    named = [(name, tensor) for name, tensor in candidates if tensor.is_floating_point() and tensor.numel()]
    if all(bool(torch.stack(largest).isfinite().all()) for largest in _largest([p for _, p in named])):
        return
    broken = [(name, p) for name, p in named if not bool(p.isfinite().all())]
    quantizers = {name for name, item in module.named_modules() if isinstance(item, Quantizer)}
    broken.sort(key=lambda item: _owner(item[0]) not in quantizers)
    name, parameter = broken[0]
    owner = _owner(name)
    if owner in quantizers:
        what = f"the {name.rpartition('.')[2]} of the quantizer"
    else:
        what = "a running statistic" if name in statistics else "a parameter"
    more = f", and {len(broken) - 1} other tensors are not finite" if len(broken) > 1 else ""
    raise CalibrationError(
        f"after step {step} of training, {what} is {parameter[~parameter.isfinite()][0].item()}{more}",
        where=owner if owner in quantizers else name,
        expected="finite numbers",
        fix="Return to the last checkpoint, and train with lower learning rates, especially for scales: "
        "parameter_groups(lr, scale_lr=...). If the loss was not finite before, check the inputs.",
    )


def _statistics(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Running means and variances; other buffers are constants such as masks, which may hold infinities."""
    for name, item in module.named_modules():
        if isinstance(item, BatchNorm):
            for leaf in ("running_mean", "running_var"):
                yield f"{name}.{leaf}" if name else leaf, getattr(item, leaf)


def _largest(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Largest magnitude of each tensor, float32, grouped by device; one kernel per device and type."""
    ordered = sorted(tensors, key=_kind)
    found: dict[str, list[Tensor]] = {}
    for (device, _), group in groupby(ordered, key=_kind):
        norms = torch._foreach_norm(list(group), ord=float("inf"))  # noqa: SLF001  # one kernel for all
        found.setdefault(device, []).extend(norm.to(torch.float32) for norm in norms)
    return list(found.values())


def _kind(tensor: Tensor) -> tuple[str, str]:
    return str(tensor.device), str(tensor.dtype)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
