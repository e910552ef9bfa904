"""Parameter groups for optimizers, with default learning rates."""

from __future__ import annotations

from typing import TypedDict

from torch import nn

from qcompiler.training.batch_norm import BatchNorm
from qcompiler.training.quantizer import Quantizer

__all__ = ["ParameterGroup", "parameter_groups"]


class ParameterGroup(TypedDict):
    """A parameter group for torch optimizers.

    `name` is one of `weights`, `biases`, `batch_norms`, `scales` (in units of a scale) and `ranges` (in units of a
    tensor: clips, ends, offsets).
    """

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def parameter_groups(
    module: nn.Module, lr: float = 0.01, *, scale_lr: float | None = None, weight_decay: float = 2.5e-5
) -> list[ParameterGroup]:
    """The trainable parameters of `module`, each in one group; empty groups are omitted.

    One learning rate serves all parameters: with the factor of LSQ, a step is about the same share of a scale as of a
    weight (decision 27). `scale_lr` is for scales with a separate optimizer. Nagel et al. 2022 (section 5) train
    weights with SGD at 0.01 or 0.0033 and scales with Adam at 1e-5, over millions of steps. In a training of thousands
    of steps that rate does not move scales; use 1e-3 there.

    Args:
        module: Result of `prepare_qat`.
        lr: Learning rate of weights, biases and batch norms.
        scale_lr: Learning rate of scales and ranges; None for `lr`.
        weight_decay: Weight decay of weights, and of ranges whose method uses weight decay; 0 for all others.
    """
    scale_lr = lr if scale_lr is None else scale_lr
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
