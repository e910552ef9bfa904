"""Parameters by what they are, with learning rates to begin with."""

from __future__ import annotations

from typing import TypedDict

from torch import nn

from qcompiler.training.batch_norm import BatchNorm
from qcompiler.training.quantizer import Quantizer

__all__ = ["ParameterGroup", "parameter_groups"]


class ParameterGroup(TypedDict):
    """What an optimizer of torch takes as a group.

    `name` is one of `weights`, `biases`, `batch_norms`, `scales` (in units of a scale) and `ranges` (in units of a
    tensor: clips, ends, offsets).
    """

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def parameter_groups(
    module: nn.Module, lr: float = 0.01, *, scale_lr: float = 1e-5, weight_decay: float = 2.5e-5
) -> list[ParameterGroup]:
    """The parameters of `module` that learn, each in one group; groups without any are left out.

    The rates are those of Nagel et al. 2022 for MobileNetV2 (section 5): SGD with momentum 0.9 for the model, and Adam
    at 1e-5 for the scales, which live in an optimizer of their own. With Adam for everything one rate will do.

    Args:
        module: Of `prepare_qat`.
        lr: Of weights, biases and batch norms.
        scale_lr: Of scales and ranges.
        weight_decay: Of weights, and of ranges whose method asks for it; of nothing else.
    """
    groups: dict[str, ParameterGroup] = {}

    def add(name: str, parameter: nn.Parameter, rate: float, decay: float) -> None:
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            key = f"{name} {decay}"
            groups.setdefault(key, {"name": name, "params": [], "lr": rate, "weight_decay": decay})
            groups[key]["params"].append(parameter)

    seen: set[int] = set()
    for item in module.modules():
        for name, parameter in item.named_parameters(recurse=False):
            if isinstance(item, Quantizer):
                kind = "scales" if name in item.ranges.scales else "ranges"
                add(kind, parameter, scale_lr, weight_decay if item.ranges.decays else 0.0)
            elif isinstance(item, BatchNorm):
                add("batch_norms", parameter, lr, 0.0)
            elif parameter.dim() > 1:
                add("weights", parameter, lr, weight_decay)
            else:
                add("biases", parameter, lr, 0.0)
    order = ("weights", "biases", "batch_norms", "scales", "ranges")
    return sorted(groups.values(), key=lambda group: order.index(group["name"]))
