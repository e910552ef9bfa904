"""The first step after which a number that learns is NaN or infinite, found at that step."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError
from qcompiler.training.quantizer import Quantizer

__all__ = ["check_finite"]


@torch.no_grad()
def check_finite(module: nn.Module, step: int) -> None:
    """Refuse to go on with parameters that are not finite.

    All parameters are read once, and one small tensor is waited for: a few milliseconds for ten million weights.

    Args:
        module: The module that learns.
        step: Number of the optimizer step that was just made, from 1.

    Raises:
        CalibrationError: A parameter holds NaN or infinity; parameters of quantizers are named first.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.is_floating_point() and p.numel()]
    if all(bool(torch.stack(largest).isfinite().all()) for largest in _largest([p for _, p in named])):
        return
    broken = [(name, p) for name, p in named if not bool(p.isfinite().all())]
    quantizers = {name for name, item in module.named_modules() if isinstance(item, Quantizer)}
    broken.sort(key=lambda item: _owner(item[0]) not in quantizers)
    name, parameter = broken[0]
    owner = _owner(name)
    what = f"the {name.rpartition('.')[2]} of the quantizer" if owner in quantizers else "a parameter"
    more = f", and {len(broken) - 1} other parameters are not finite" if len(broken) > 1 else ""
    raise CalibrationError(
        f"step {step} of training made {what} {parameter[~parameter.isfinite()][0].item()}{more}",
        where=owner if owner in quantizers else name,
        expected="finite numbers",
        fix="Go back to the last checkpoint; train with lower rates, of the scales above all: "
        "parameter_groups(lr, scale_lr=...). If the loss was not finite before, look at the inputs.",
    )


def _largest(parameters: list[Tensor]) -> list[list[Tensor]]:
    """The largest magnitudes, float32, by device and type, which one call handles together."""
    ordered = sorted(parameters, key=_kind)
    found: dict[str, list[Tensor]] = {}
    for (device, _), group in groupby(ordered, key=_kind):
        norms = torch._foreach_norm(list(group), ord=float("inf"))  # noqa: SLF001  # one kernel for all
        found.setdefault(device, []).extend(norm.to(torch.float32) for norm in norms)
    return list(found.values())


def _kind(tensor: Tensor) -> tuple[str, str]:
    return str(tensor.device), str(tensor.dtype)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
